"""The training loop of all targets: one cycle of the learning rate over the budget, an average of the weights.

Every draw of a step is seeded by the run's seed and the step's number, and the order of the examples by the epoch's: a
run that was interrupted ends where one that was not does.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from splitsight.recipes import Draw, Recipe
from splitsight.training import Budget, Run, ema, one_cycle

__all__ = ["train"]

_LOG, _MEASURE, _FEW = 100, 1000, 2000
"""Steps between lines of the log; between measurements; held-out examples that those look at."""


def _optimizer(recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in recipe.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.peak)


class _Order:
    """Which examples each step takes: every epoch in an order of its own."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self._batch, self._seed = count, min(batch, count), seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __call__(self, step: int) -> np.ndarray:
        epoch, at = divmod(step, self._count // self._batch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self._seed, epoch)).permutation(self._count)
        # ascending, because images are read from a file that is mapped into memory
        return np.sort(self._order[at * self._batch : (at + 1) * self._batch])


def train(
    recipe: Recipe, out: Path, budget: Budget, *, title: str, seed: int = 0, bfloat16: bool = False
) -> tuple[nn.Module, dict[str, float | int | bool]]:
    """Train, resuming from ``out`` where an earlier run stopped.

    Args:
        recipe: what is trained, on what, with which loss.
        out: folder of the run.
        budget: when to stop.
        title: words for the progress line.
        seed: of all draws.
        bfloat16: compute products in it while training.

    Returns:
        The averaged model in eval mode, and ``examples_seen``, ``minutes``, ``finished``.
    """
    model = recipe.model
    optimizer = _optimizer(recipe)
    average = ema(model, recipe.average)
    order = _Order(recipe.count, recipe.batch, seed)
    device = next(model.parameters()).device
    sums: dict[str, float] = defaultdict(float)
    with Run(out, budget, {"model": model, "average": average, "optimizer": optimizer}, title=title) as run:
        for fraction in run.steps():
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence((seed, run.step)).generate_state(1)[0])
            )
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(fraction, recipe.peak)
            model.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                loss, figures = recipe.loss(Draw(fraction, order(run.step), generator))
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            average.update_parameters(model)
            for name, value in {"loss": float(loss.detach()), **figures}.items():
                sums[name] += value
            sums["steps"] += 1
            if run.step % _LOG == _LOG - 1:
                steps = sums.pop("steps")
                held = recipe.measure(average.module.eval(), _FEW) if run.step % _MEASURE == _MEASURE - 1 else {}
                run.log(
                    **{name: value / steps for name, value in sums.items()},
                    fraction=fraction,
                    **{f"val_{name}": value for name, value in held.items()},
                )
                sums.clear()
    return average.module.eval(), {
        "examples_seen": run.step * min(recipe.batch, recipe.count),
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
