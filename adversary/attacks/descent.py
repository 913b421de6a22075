"""What DO, DB and DMB share: Adam on a variable, feature loss and total variation, best of several starts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch

from adversary.attacks.base import Problem, Reconstruction
from adversary.whitebox.solvers import Outcome, Schedule, adam
from adversary.whitebox.terms import BatchNormStatistics, FeatureMatch, Term, TotalVariation
from adversary.whitebox.variables import Variable

__all__ = ["LIMITS", "SCHEDULES", "cosine", "descend"]


def cosine(fraction: float) -> float:
    """Learning-rate factor: a half cosine from 1 down to 0.05."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction))


SCHEDULES: dict[str, Schedule | None] = {"constant": None, "cosine": cosine}
"""Learning rate over the iterations; the paper's is constant."""

LIMITS = {"iterations": (1, math.inf), "restarts": (1, math.inf), "audition": (0, math.inf)}
"""Values that make sense."""


def descend(
    problem: Problem,
    start: Callable[[int], Variable],
    *,
    iterations: int,
    lr: float,
    schedule: str,
    relative: bool,
    tv: float,
    restarts: int = 1,
    audition: int = 0,
    statistics: float = 0.0,
    terms: Sequence[Term] = (),
    together: bool = False,
) -> Reconstruction:
    """Adam on ``L_re + λ_s TV + …`` from one or several starts.

    Args:
        problem: what is known.
        start: the variable for a restart's number, 0 …; each must begin elsewhere.
        iterations: steps of each restart.
        lr: learning rate.
        schedule: a name out of :data:`SCHEDULES`.
        relative: divide the feature loss by ‖z_mid‖², so that ``tv`` weighs the same at every split.
        tv: λ_s.
        restarts: starts; for each frame the one with the lowest final loss is kept.
        audition: steps that each start gets before only the best one goes on, for ``iterations`` more; 0 lets every
            start run to its end. A start that leads to a poor local minimum mostly shows it early.
        statistics: weight of :class:`~adversary.whitebox.terms.BatchNormStatistics`; 0 leaves it out.
        terms: further summands.
        together: frames are coupled, so that the best restart is chosen for all of them.
    """
    clock, head = problem.clock, problem.head
    begin = clock.now()
    more: list[Term] = []
    if statistics > 0:
        more.append(norms := BatchNormStatistics(head, statistics))
        head = norms.head
    match = FeatureMatch(head, problem.features, relative=relative)
    every = [match, TotalVariation(tv), *more, *terms]
    best: Outcome | None = None
    curve: list[float] = []
    rate = SCHEDULES[schedule]
    # number of the start (None: what is best so far goes on), steps, schedule; an audition is too short for one
    runs: list[tuple[int | None, int, Schedule | None]]
    if restarts > 1 and audition > 0:
        runs = [*((i, audition, None) for i in range(restarts)), (None, iterations, rate)]
    else:
        runs = [(i, iterations, rate) for i in range(restarts)]
    planned = sum(steps for _, steps, _ in runs)
    left = planned
    for i, steps, factor in runs:
        if best is not None and clock.late(problem.deadline):
            break
        deadline = problem.deadline
        if deadline is not None:
            deadline = clock.now() + (deadline - clock.now()) * steps / left
        left -= steps
        variable = start(i or 0)
        if i is None and best is not None:
            with torch.no_grad():
                variable.value.copy_(best.value)
        with clock.unseen() if i else contextlib.nullcontext():
            outcome = adam(
                variable,
                every,
                iterations=steps,
                lr=lr,
                schedule=factor,
                deadline=deadline,
                progress=_after(problem, len(curve), planned),
                clock=clock,
            )
        curve += outcome.losses
        best = outcome if best is None else _better(best, outcome, together)
        kept = best.images
        clock.show(lambda kept=kept: kept)
    assert best is not None
    loss = float(best.final.mean()) if len(curve) else math.nan
    seconds = (clock.now() - begin) / problem.frames
    return Reconstruction(
        best.images, loss, len(curve), problem.evaluations, seconds, best.final if len(curve) else None, curve
    )


def _after(problem: Problem, done: int, planned: int) -> Callable[[int, int, float], None] | None:
    report = problem.progress
    return None if report is None else lambda i, n, loss: report(done + i, planned, loss)


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
