"""What DO, DB and DMB share: Adam on a variable, feature loss and total variation, best of several starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from adversary.attacks.base import Callback, Problem, Reconstruction, Settings, option
from adversary.whitebox.solvers import Outcome, Schedule, adam
from adversary.whitebox.terms import BatchNormStatistics, FeatureMatch, Term, TotalVariation
from adversary.whitebox.variables import Variable
from splitsight.devices import standard_normal

__all__ = ["PAPER", "Descent", "cosine", "descend", "draw"]

_RESTART = 1_000_003


def cosine(fraction: float) -> float:
    """Learning-rate factor: a half cosine from 1 down to 0.05."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction))


_SCHEDULES: dict[str, Schedule | None] = {"constant": None, "cosine": cosine}

PAPER = {"iterations": 1500, "lr": 0.1, "schedule": "constant", "relative": False, "tv": 1.0}
"""Adam as published."""


class Descent(Settings):
    """Settings of :func:`descend`."""

    iterations: int = option(300, "steps of each start", ge=1, tune=(150, 300))
    lr: float = option(0.1, "learning rate of Adam", ge=0, tune=(0.02, 0.05, 0.1, 0.2))
    schedule: Literal["constant", "cosine"] = option(
        "cosine", "learning rate over the iterations; the paper's is constant", tune=("constant", "cosine")
    )
    relative: bool = option(True, "divide the feature loss by ‖z_mid‖², so that tv weighs the same at every split")
    tv: float = option(0.3, "λ_s, weight of total variation", ge=0, tune=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0))
    restarts: int = option(1, "starts; for each frame the one with the lowest final loss is kept", ge=1, tune=(1, 2))
    noise_tv: float = option(
        2.0, "how tv follows known noise: times 1 + that many times its energy over that of the features", ge=0
    )
    halving_steps: int = option(
        0, "successive halving: steps that each start gets before only the best goes on; 0: every start ends", ge=0
    )


def draw(problem: Problem, shape: tuple[int, ...], restart: int, *, shared: bool = False) -> Tensor:
    """Standard normal numbers ``(K, *shape)`` of one start; ``shared``: one draw for all frames."""
    seeds = [seed + restart * _RESTART for seed in problem.seeds]
    return standard_normal(shape, seeds[:1] * problem.frames if shared else seeds, problem.device)


def descend(
    problem: Problem,
    start: Callable[[int], Variable],
    s: Descent,
    callback: Callback | None = None,
    *,
    statistics: float = 0.0,
    terms: Sequence[Term] = (),
    together: bool = False,
    state: Callable[[Tensor], Any] = lambda value: None,
) -> Reconstruction:
    """Adam on ``L_re + λ_s TV + …`` from one or several starts.

    With several starts and ``halving_steps``, each start gets so many steps, and only the best one goes on, for
    ``iterations`` more (one rung of successive halving, Jamieson & Talwalkar, AISTATS 2016): a start that leads to a
    poor local minimum mostly shows it early.

    Args:
        problem: what is known.
        start: the variable for a restart's number, 0 …; each must begin elsewhere.
        s: how.
        callback: keeps the time.
        statistics: weight of :class:`~adversary.whitebox.terms.BatchNormStatistics`; 0 leaves it out.
        terms: further summands.
        together: frames are coupled, so that the best restart is chosen for all of them.
        state: makes the warm start of the next window out of the variable's value.
    """
    callback, pipeline = callback or Callback(), problem.f1
    begin = callback.now()
    more: list[Term] = []
    if statistics > 0:
        more.append(norms := BatchNormStatistics(pipeline, statistics))
        pipeline = norms.head
    match = FeatureMatch(pipeline, problem.features, relative=s.relative, specs=problem.specs, **problem.told())
    # what is known to be noise says nothing against a smoother image
    every = [match, TotalVariation(s.tv * (1 + s.noise_tv * match.noise_share)), *more, *terms]
    best: Outcome | None = None
    curve: list[float] = []
    rate = _SCHEDULES[s.schedule]
    # number of the start (None: what is best so far goes on), steps, schedule; a rung is too short for one
    runs: list[tuple[int | None, int, Schedule | None]]
    if s.restarts > 1 and s.halving_steps > 0:
        runs = [*((i, s.halving_steps, None) for i in range(s.restarts)), (None, s.iterations, rate)]
    else:
        runs = [(i, s.iterations, rate) for i in range(s.restarts)]
    planned = sum(steps for _, steps, _ in runs)
    left = planned
    for i, steps, factor in runs:
        if best is not None and callback.late():
            break
        part = callback.part(steps / left, done=len(curve), planned=planned, shown=not i)
        left -= steps
        variable = start(i or 0)
        if i is None and best is not None:
            with torch.no_grad():
                variable.value.copy_(best.value)
        outcome = adam(variable, every, iterations=steps, lr=s.lr, schedule=factor, callback=part)
        curve += outcome.losses
        best = outcome if best is None else _better(best, outcome, together)
        kept = best.images
        callback.show(lambda kept=kept: kept)
    assert best is not None
    loss = float(best.final.mean()) if len(curve) else math.nan
    return Reconstruction(
        best.images,
        loss,
        len(curve),
        problem.evaluations,
        (callback.now() - begin) / problem.frames,
        best.final if len(curve) else None,
        curve,
        state=state(best.value),
    )


def _better(a: Outcome, b: Outcome, together: bool) -> Outcome:
    """For each frame, or for all of them, the outcome with the lower final loss."""
    wins = b.final < a.final
    if together:
        wins = (b.final.mean() < a.final.mean()).expand_as(wins)
    row = wins.view(-1, 1, 1, 1)
    return Outcome(
        torch.where(row, b.images, a.images),
        torch.where(row, b.value, a.value),
        final=torch.where(wins, b.final, a.final),
    )
