"""Training a black-box network on query pairs alone: what an oracle answered, and the attacker's own prior.

What is trained, in which parts and with which losses stands in the method's class
(:class:`adversary.attacks.blackbox.NetAttack`), which yields one :class:`Stage` after the other; here is the loop that
they share. Networks, and net-best's surrogate, know a few hundred pairs by heart long before five minutes are over, so
that each part of a training stops early: some pairs are put aside, and it ends with the averaged weights that did best
on those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversary.attacks.base import Settings, option
from adversary.blackbox._batches import Batch, Batches, Captions
from adversary.blackbox._truths import true_values
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.queries import Pairs
from splitsight.errors import UserError
from splitsight.metrics import image_quality
from splitsight.training import Best, Budget, Run, ema, one_cycle

__all__ = ["LOOKED_AT", "Fit", "Loss", "Stage", "Training", "pair_quality", "train_pairs"]

Loss = Callable[[AttackNetwork, Batch], Tensor]
"""Of a network's answers; one number."""

LOOKED_AT = 32
"""Pairs put aside, at most, that tell which weights are best."""
_LOOKS = 20
"""Times, at most, that weights are looked at: as seldom as this, it costs the slowest network a few per cent."""
_SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": lambda fraction, lr: lr,
    "one_cycle": one_cycle,
}


class Training(Settings):
    """Values of a training that all methods share; each declares its own on top."""

    batch: int = option(32, "pairs of a step", ge=1)
    lr: float = option(2e-3, "peak learning rate of Adam with decoupled weight decay", gt=0)
    schedule: Literal["constant", "one_cycle"] = option("one_cycle", "of the learning rate")
    decay: float = option(0.01, "weight decay", ge=0)
    average: float = option(0.998, "decay of the averaged weights; 0 keeps none", ge=0, lt=1)
    clip: float = option(1.0, "largest norm of a step's gradient; 0 for any", ge=0)
    early_stopping: bool = option(True, "end with the weights that did best on pairs put aside")
    width: int = option(48, "channels of the network", ge=1)

    def length(self, per_epoch: int) -> int:
        """Optimiser steps without another budget, of all parts together.

        Args:
            per_epoch: steps in which each pair is seen once.
        """
        raise NotImplementedError


@dataclass
class Fit:
    """A training under way.

    Attributes:
        network: what is trained.
        learnt: pairs to learn from.
        held: pairs put aside; ``learnt`` again where none are.
        batches: of the former.
        seed: of all draws.
        device: where to train.
        unasked: further pictures of the attacker, ``(N, S, S, 3)`` uint8.
        captions: of the pairs, for a network with text.
        figures: what a method found on the way, beside its quality.
    """

    network: AttackNetwork
    learnt: Pairs
    held: Pairs
    batches: Batches
    seed: int
    device: torch.device
    unasked: np.ndarray | None = None
    captions: Captions | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def shown(self) -> Pairs:
        """Pairs put aside that tell which weights are best."""
        return self.held[:LOOKED_AT]

    def generator(self) -> torch.Generator:
        """A fresh source of draws, for one part."""
        return torch.Generator().manual_seed(self.seed)

    def truths(self, steps: int | None = None) -> Tensor:
        """Latent of each picture that is learnt from, or the noise from which a sampler of so many steps makes it."""
        text = None if self.captions is None else self.captions.text
        return true_values(self.network.prior, self.learnt, self.device, steps=steps, text=text)


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    Attributes:
        trained: what learns.
        loss: of a batch.
        lr: peak learning rate.
        generator: of the loss's draws; set anew when the part begins or goes on.
        name: of its run; empty for the only part.
        share: of the budget.
        measure: how far off it is on pairs put aside; by default the network's answers are compared.
        answers: whether the network answers differently after it.
    """

    trained: nn.Module
    loss: Loss
    lr: float
    generator: torch.Generator
    name: str = ""
    share: float = 1.0
    measure: Callable[[], float] | None = None
    answers: bool = True


@torch.no_grad()
def pair_quality(network: AttackNetwork, pairs: Pairs, batch: int = 32) -> dict[str, float]:
    """Mean ``psnr``, ``psnr_eq14`` and ``ssim`` of a network's answers over pairs that it was not trained on."""
    device = next(network.parameters()).device
    captions = Captions(network.prior, pairs.captions) if network.made.text else None
    batches = Batches(pairs, network.made.frames, batch, device=device, captions=captions)
    found: dict[str, list[Tensor]] = {}
    for part in batches.in_order():
        answers = network.images(network(part.z, part.text), part.text)
        for name, values in image_quality(answers, part.x).items():
            found.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def train_pairs(
    network: AttackNetwork,
    train: Pairs,
    test: Pairs,
    out: Path,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    unasked: np.ndarray | None = None,
    computing: bool = False,
) -> tuple[AttackNetwork, dict[str, float | int | bool]]:
    """Train on pairs with the network's own values, resuming from ``out``.

    Args:
        network: fresh, for these pairs' features; its prior is moved to ``device``.
        train: pairs to learn from, with pictures of the prior's size.
        test: pairs to measure with, none of their pictures among the others.
        out: folder of the run, or runs.
        seconds: time budget over resumed runs, shared among the method's parts.
        steps: optimiser steps; likewise. Without either, what the values say.
        seed: of shuffling and draws.
        device: where to train; CPU by default.
        unasked: for methods that use them, further pictures of the attacker, ``(N, S, S, 3)`` uint8, none in ``test``.
        computing: on a CPU, count only seconds in which the training's thread computes.

    Returns:
        The network, in eval mode on the CPU, and its figures: quality on ``test``, pictures seen, minutes,
        whether the budget was used up.

    Raises:
        UserError: pictures in both sets, no captions for a network with text, or a run in ``out`` that does not fit.
    """
    if set(train.hashes) & set(test.hashes):
        raise UserError("training and test queries share pictures: collect them again with other --pairs")
    made, method, values, device = network.made, network.method, network.values, device or torch.device("cpu")
    if made.text and not any(train.captions):
        raise UserError("a network with text needs captions: give --data with classes.tsv, or leave --text out")
    learnt, held = method.put_aside(train, values, made.frames)
    network.standard.measure(learnt.features)
    if network.surrogate is not None:
        network.surrogate.measure(learnt.features)
    network.prior.to(device)
    network.to(device).to(memory_format=torch.channels_last)
    captions = Captions(network.prior, train.captions) if made.text else None
    batches = Batches(learnt, made.frames, values.batch, seed=seed, device=device, captions=captions)
    if steps is None and seconds is None:
        steps = values.length(batches.per_epoch)
    fit = Fit(network, learnt, held, batches, seed, device, unasked, captions)
    seen, minutes, finished, last = 0, 0.0, True, out
    with closing(method.stages(fit)) as stages:
        for stage in stages:
            budget = Budget(
                None if seconds is None else seconds * stage.share,
                None if steps is None else max(1, round(steps * stage.share)),
                computing=computing and device.type == "cpu",
            )
            run = _train(fit, stage, test, out / "-".join(filter(None, ("run", stage.name))), budget)
            seen, minutes, last = seen + run.step * batches.size, minutes + run.seconds / 60, run.folder
            finished = finished and run.fraction() >= 1.0
            if not finished:
                break
    network.made = replace(made, curve=_curve(last / "log.jsonl"))
    network.eval()
    figures: dict[str, float | int | bool] = {**pair_quality(network, test)}
    figures |= {"queries": len(train), "test_queries": len(test), "images_seen": seen}
    network.prior.cpu()
    network.cpu()
    method.finish(fit)
    return network, figures | fit.figures | {"minutes": round(minutes, 2), "finished": finished}


def _curve(log: Path) -> tuple[float, ...]:
    """Loss at each hundredth of a training, between the points that were logged; empty where none was."""
    found = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        row = json.loads(line)
        if "loss" in row:
            found[float(row["fraction"])] = float(row["loss"])
    at = sorted(found)
    return tuple(np.interp(np.arange(1, 101) / 100, at, [found[x] for x in at]).tolist()) if at else ()


def _train(fit: Fit, stage: Stage, test: Pairs, folder: Path, budget: Budget) -> Run:
    """Train one part of a network to the end of its budget; it has its averaged weights then.

    With early stopping, those averaged weights that were best on pairs put aside. They are looked at in the end, and
    before that :data:`_LOOKS` times, though not twice in an epoch.
    """
    network, trained, values, batches = fit.network, stage.trained, fit.network.values, fit.batches
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=values.decay)
    average = ema(trained, values.average) if values.average else None
    parts: dict[str, Any] = {"network": trained, "optimizer": optimizer}
    if average is not None:
        parts["average"] = average
    best = Best()
    if values.early_stopping:
        parts["best"] = best
    measure = stage.measure or (lambda: -pair_quality(network, fit.shown)["psnr"])
    schedule = _SCHEDULES[values.schedule]
    total, count = 0.0, 0
    with Run(folder, budget, parts, title=" ".join(filter(None, ("train", network.made.method, stage.name)))) as run:

        def look() -> dict[str, float]:
            if not values.early_stopping or run.interrupted:
                return {}
            own = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
            if average is not None:
                trained.load_state_dict(average.module.state_dict())
            network.eval()
            value = measure()
            best.offer(value, trained)
            trained.load_state_dict(own)
            return {"held_out": value}

        begun, logged, looked = run.step, -1.0, (run.step, run.fraction())
        stage.generator.manual_seed(batches.seed + run.step)
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = schedule(fraction, stage.lr)
            batch = batches.at(run.step)
            trained.train()
            value = stage.loss(network, batch)
            if not torch.isfinite(value):
                raise UserError(
                    f"training {network.made.method} diverged at step {run.step}: give a lower lr with --set lr=…",
                    code=1,
                )
            optimizer.zero_grad()
            value.backward()
            if values.clip:
                nn.utils.clip_grad_norm_(parameters, values.clip)
            optimizer.step()
            if average is not None:
                average.update_parameters(trained)
            total, count = total + float(value.detach()), count + 1
            # the first one, and then as fine as the curve that is kept
            if fraction - logged >= 0.01:
                found = {}
                if run.step - looked[0] >= batches.per_epoch and fraction - looked[1] >= 1 / _LOOKS:
                    found, looked = look(), (run.step, fraction)
                run.log(loss=total / count, fraction=fraction, **found)
                total, count, logged = 0.0, 0, fraction
        if run.step > begun:
            found = look()
            if count:
                found["loss"] = total / count
            run.log(fraction=run.fraction(), **found)
    if best.weights is not None:
        trained.load_state_dict(best.weights)
    elif average is not None and run.step:
        trained.load_state_dict(average.module.state_dict())
    network.eval()
    if run.step > begun and not run.interrupted and stage.answers:
        run.log(**{f"test_{k}": v for k, v in pair_quality(network, test).items()})
    return run
