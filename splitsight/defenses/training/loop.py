"""The training of every defence: distillation from the undefended network, plus the method's penalty.

Adam, one cycle, random crops; what is kept is an exponential moving average. Halves that are not trained stay in eval
mode; those that are adapt the statistics of their BatchNorm too, where the cut goes through modules (a half that was
traced into a graph keeps its statistics).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.utils._pytree import tree_leaves

from splitsight.data import to_tensor
from splitsight.defenses import Features, Protection
from splitsight.defenses.training import Batch, Method, Settings
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.files import write_json
from splitsight.targets import Cut
from splitsight.tasks import Task
from splitsight.tasks.classify import Classify
from splitsight.training import Budget, Run, Stateful, ema, one_cycle, random_crops

__all__ = ["Pictures", "System", "Through", "distillation", "measured", "train"]

_BATCH = 64
_TEMPERATURE = 2.0
_SEEDS = 1 << 32


class Through(Protection):
    """A defence that others train behind: its values as they are, its gradient that of what is expected of it.

    Rounding, choosing and drawing have no gradient; Bengio et al., arXiv 1308.3432.

    Args:
        inner: the defence.
    """

    def __init__(self, inner: Protection) -> None:
        super().__init__()
        self.inner = inner

    def train(self, mode: bool = True) -> Self:
        """The inner one works as it will on the edge, whatever is trained behind it."""
        super().train(mode)
        self.inner.eval()
        return self

    def forward(self, features: Features, draws: Draws) -> Features:
        """As the inner one."""
        smooth = self.inner.expected(features)
        with torch.no_grad():
            sent = self.inner(features, draws)
        return tuple(e + (s - e).detach() for e, s in zip(smooth, sent, strict=True))

    def expected(self, features: Features) -> Features:
        """As the inner one."""
        return self.inner.expected(features)


class System(nn.Module):
    """What is deployed: F1′, the defence's two parts, F2′.

    Args:
        head: images → features.
        edge: features → what is sent.
        server: what is sent → features; ``None`` for nothing.
        tail: features → output.
    """

    def __init__(self, head: nn.Module, edge: Protection, server: nn.Module | None, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.edge, self.server, self.tail = head, edge, server, tail

    def forward(self, images: Tensor, cut: Cut, draws: Draws, *, own_head: bool = True) -> Batch:
        """Everything that a step needs; see :class:`Batch`.

        Args:
            images: ``(B, 3, S, S)`` in [0, 1].
            cut: the undefended halves.
            draws: of the defence.
            own_head: false where F1′ is F1, which is then computed once.
        """
        with torch.no_grad():
            original = cut.head(images)
            wanted = cut.tail(original)
        features = self.head(images) if own_head else original
        sent = self.edge(features, draws)
        received = sent if self.server is None else self.server(sent)
        return Batch(images, features, sent, received, self.tail(received), original, wanted, self.edge)


def distillation(outputs: Any, wanted: Any, task: Task) -> Tensor:
    """How far an output is from the undefended one's.

    Of logits the divergence of the softened probabilities, T² KL(softmax(w / T) ‖ softmax(o / T)) with T = 2 (Hinton et
    al., arXiv 1503.02531, section 2.1); of any other output the mean squared error in units of each tensor's variance,
    summed over its floating-point tensors.
    """
    if isinstance(task, Classify):
        p = (wanted / _TEMPERATURE).softmax(1)
        return _TEMPERATURE**2 * kl_div((outputs / _TEMPERATURE).log_softmax(1), p, reduction="batchmean")
    pairs = [(o, w) for o, w in zip(tree_leaves(outputs), tree_leaves(wanted), strict=True) if w.is_floating_point()]
    return torch.stack([(o - w).square().mean() / w.var().clamp(min=1e-12) for o, w in pairs]).sum()


@dataclass(frozen=True)
class Pictures:
    """What is trained on, and what gives the figures.

    Attributes:
        images: ``(N, S, S, 3)`` uint8.
        held: likewise, held out.
        labels: class numbers of ``held``; ``None`` where they are unknown or not the target's.
    """

    images: np.ndarray
    held: np.ndarray
    labels: np.ndarray | None


@torch.no_grad()
def measured(
    system: System, cut: Cut, method: Method, task: Task, pictures: Pictures, device: torch.device | None = None
) -> dict[str, float]:
    """Figures on held-out images, each with draws of its own that are the same each time.

    Returns:
        What the task measures (``top1``, …) where labels are known, and the same ``…_undefended``; for classes
        ``agreement``, how often the most probable class is the undefended network's; ``distillation``; and what the
        method measures.
    """
    device = device or torch.device("cpu")
    system.eval()
    method.eval()
    sums: dict[str, float] = {}
    for i in range(0, len(pictures.held), _BATCH):
        x = to_tensor(pictures.held[i : i + _BATCH]).to(device)
        batch = system(x, cut, Draws(range(i, i + len(x))))
        found = {"distillation": distillation(batch.outputs, batch.wanted, task), **method.penalty(batch).values}
        if isinstance(task, Classify):
            found["agreement"] = (batch.outputs.argmax(1) == batch.wanted.argmax(1)).float().mean()
        if pictures.labels is not None:
            truth = torch.from_numpy(pictures.labels[i : i + _BATCH])
            found |= {k: v.mean() for k, v in task.utility(batch.outputs, truth).items()}
            found |= {f"{k}_undefended": v.mean() for k, v in task.utility(batch.wanted, truth).items()}
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(x)
    return {name: total / len(pictures.held) for name, total in sums.items()}


def train(
    system: System,
    method: Method,
    settings: Settings,
    cut: Cut,
    task: Task,
    pictures: Pictures,
    out: Path,
    budget: Budget,
    *,
    identity: dict[str, Any],
    batch: int = _BATCH,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[System, dict[str, float | int | bool]]:
    """Train, resuming from ``out`` where an earlier run stopped.

    Args:
        system: fresh parts, and copies of the halves.
        method: its penalty.
        settings: which halves are trained, and how fast.
        cut: the undefended halves.
        task: of the target.
        pictures: to train on and held out.
        out: folder of the run.
        budget: when to stop.
        identity: what the run is for; a folder that holds another one's is refused.
        batch: images a step.
        seed: of order, crops and draws.
        device: where to train; CPU by default.

    Returns:
        The averaged system in eval mode; and figures: :func:`measured` before the first step (``…_before``) and
        ``images_seen``, ``minutes``, ``finished``.

    Raises:
        UserError: the folder holds another run.
    """
    device = device or torch.device("cpu")
    _claim(out, identity)
    system.to(device)
    method.to(device)
    first = to_tensor(pictures.images[: 4 * batch]).to(device)
    before = _before(system, method, cut, task, pictures, out, first, device)
    own_head = settings.halves == "both"
    trained = {"none": [], "tail": [system.tail], "both": [system.head, system.tail]}[settings.halves]
    for part in trained:
        part.requires_grad_(True)
    mine = [p for name, p in method.named_parameters() if not name.startswith("opponent.")]
    mine += [p for part in (system.edge, system.server) if part is not None for p in part.parameters()]
    groups = [
        {"params": [p for part in trained for p in part.parameters()], "peak": settings.rate},
        {"params": [p for p in mine if p.requires_grad], "peak": settings.own_rate},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(groups)
    # short, as for the target: a longer one lags behind the anneal at the end
    average = ema(system, 0.99)
    parts: dict[str, Stateful] = {"system": system, "method": method, "average": average, "optimizer": optimizer}
    rival: torch.optim.Adam | None = None
    if method.opponent is not None:
        rival = parts["rival"] = torch.optim.Adam(method.opponent.parameters(), 2e-3)
    generator = torch.Generator()
    sums: dict[str, float] = {}
    with Run(out, budget, parts, title=f"train {identity['defense']}") as run:
        generator.manual_seed(seed + run.step)
        order, at, counted = torch.randperm(len(pictures.images), generator=generator), 0, 0
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(fraction, group["peak"])
            if at + batch > len(order):
                order, at = torch.randperm(len(pictures.images), generator=generator), 0
            index = np.sort(order[at : at + batch].numpy())
            at += batch
            x = random_crops(
                to_tensor(pictures.images[index]).to(device), pictures.images.shape[1], (0.7, 1), generator
            )
            seeds = torch.randint(_SEEDS, (len(x),), generator=generator).tolist()
            _modes(system, method, trained)
            step = system(x, cut, Draws(seeds), own_head=own_head)
            kept, (penalty, values) = distillation(step.outputs, step.wanted, task), method.penalty(step)
            optimizer.zero_grad()
            (kept + penalty).backward()
            optimizer.step()
            if rival is not None:
                rival.zero_grad()  # the penalty has left gradients there
                lost = method.against(step)
                lost.backward()
                rival.step()
                values = {**values, "opponent": lost}
            average.update_parameters(system)
            for name, value in {"distillation": kept, **values}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            counted += 1
            if run.step % 50 == 49:
                run.log(fraction=fraction, **{name: total / counted for name, total in sums.items()})
                sums, counted = {}, 0
    found = average.module.eval()
    assert isinstance(found, System)
    return found, {
        **{f"{name}_before": value for name, value in before.items() if not name.endswith("_undefended")},
        "images_seen": run.step * batch,
        "minutes": round(run.seconds / 60, 2),
        "finished": run.fraction() >= 1.0,
    }


def _modes(system: System, method: Method, trained: Sequence[nn.Module]) -> None:
    system.eval()
    method.train()
    for part in (*trained, system.edge, system.server):
        if part is not None:
            part.train()


def _claim(out: Path, identity: dict[str, Any]) -> None:
    place = out / "run.json"
    if place.is_file():
        differing = [k for k, v in json.loads(place.read_text(encoding="utf-8")).items() if identity.get(k) != v]
        if differing:
            raise UserError(f"{out} holds a run with another {differing[0]}: give another --out, or remove it")
    write_json(place, identity)


def _before(
    system: System,
    method: Method,
    cut: Cut,
    task: Task,
    pictures: Pictures,
    out: Path,
    first: Tensor,
    device: torch.device,
) -> dict[str, float]:
    """Figures before the first step; measured once, and what depends on data set for it."""
    place = out / "before.json"
    if place.is_file() and (out / "checkpoint.pt").is_file():
        return json.loads(place.read_text(encoding="utf-8"))
    with torch.no_grad():
        method.begin(system.edge, system.server, cut.head(first))
    found = measured(system, cut, method, task, pictures, device)
    write_json(place, found)
    return found
