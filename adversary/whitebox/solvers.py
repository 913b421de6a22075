"""Solvers: how a variable is moved to lower a weighted sum of terms.

:func:`adam` is the paper's optimiser; :func:`plug_and_play` splits fidelity and prior, so that no gradient
runs through the sampler. Both stop at a deadline and return the best value that they saw.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversary.priors.prior import Prior, Text
from adversary.whitebox.terms import FeatureMatch, Pull, TemporalSmoothing, Term
from adversary.whitebox.variables import Latent, Variable

__all__ = ["Outcome", "Schedule", "adam", "lbfgs", "plug_and_play"]

Progress = Callable[[int, int, float], None]
Schedule = Callable[[float], float]


@dataclass
class Outcome:
    """What a solver found.

    Attributes:
        images: ``(K, 3, H, W)`` in [0, 1].
        value: the variable's value at its best.
        losses: mean total loss a frame, one an iteration.
        iterations: optimiser steps.
        seconds: wall-clock time.
    """

    images: Tensor
    value: Tensor
    losses: list[float] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0


def adam(
    variable: Variable,
    terms: Sequence[Term],
    *,
    iterations: int,
    lr: float = 0.1,
    schedule: Schedule | None = None,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Adam (β = 0.9, 0.999) on the sum over frames of all weighted terms.

    Args:
        variable: what is moved.
        terms: summands.
        iterations: steps at most.
        lr: learning rate.
        schedule: factor on ``lr`` as a function of the part of the iterations done, in [0, 1].
        deadline: ``time.monotonic()`` value after which no further step begins.
        progress: called with (done, planned, mean loss a frame).
    """
    start = time.monotonic()
    optimizer = torch.optim.Adam([variable.value], lr=lr)
    best = torch.full((len(variable.value),), math.inf)
    keep = variable.value.detach().clone()
    losses: list[float] = []
    for i in range(iterations):
        if deadline is not None and time.monotonic() >= deadline:
            break
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = lr * schedule(i / iterations)
        images = variable.images()
        loss = torch.stack([term.weight * term(variable.value, images) for term in terms]).sum(0)
        better = loss.detach() < best
        best = torch.where(better, loss.detach(), best)
        keep[better] = variable.value.detach()[better]
        losses.append(float(loss.detach().mean()))
        (gradient,) = torch.autograd.grad(loss.sum(), variable.value)
        variable.value.grad = gradient
        optimizer.step()
        if progress is not None:
            progress(i + 1, iterations, losses[-1])
    with torch.no_grad():
        variable.value.copy_(keep)
        images = variable.images().clamp(0, 1)
    return Outcome(images, keep, losses, len(losses), time.monotonic() - start)


class _Late(Exception):
    """Leaves a line search at the deadline."""


def lbfgs(
    variable: Variable,
    terms: Sequence[Term],
    *,
    evaluations: int,
    history: int = 10,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """L-BFGS with a strong Wolfe line search on the sum over frames of all weighted terms.

    F1∘Dec is nearly piecewise linear, so the fit on a latent is close to least squares, where curvature pays:
    about a third of Adam's evaluations for the same loss.

    Args:
        variable: what is moved.
        terms: summands.
        evaluations: of loss and gradient, at most; counted as iterations in the outcome.
        history: pairs kept for the curvature.
        deadline: ``time.monotonic()`` value after which no further evaluation begins.
        progress: called with (done, planned, mean loss a frame).
    """
    start = time.monotonic()
    best, keep = math.inf, variable.value.detach().clone()
    losses: list[float] = []
    optimizer = torch.optim.LBFGS(
        [variable.value],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=history,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> Tensor:
        nonlocal best, keep
        # a line search may ask for more than max_eval
        if len(losses) >= evaluations or (deadline is not None and time.monotonic() >= deadline):
            raise _Late
        images = variable.images()
        loss = torch.stack([term.weight * term(variable.value, images) for term in terms]).sum()
        (variable.value.grad,) = torch.autograd.grad(loss, variable.value)
        value = float(loss.detach())
        if value < best:
            best, keep = value, variable.value.detach().clone()
        losses.append(value / len(keep))
        if progress is not None:
            progress(len(losses), evaluations, losses[-1])
        return loss.detach()

    with contextlib.suppress(_Late):
        optimizer.step(closure)
    with torch.no_grad():
        variable.value.copy_(keep)
        images = variable.images().clamp(0, 1)
    return Outcome(images, keep, losses, len(losses), time.monotonic() - start)


def plug_and_play(
    prior: Prior,
    start: Tensor,
    match: FeatureMatch,
    *,
    levels: Sequence[float],
    inner: int,
    lr: float | None = None,
    pull: float = 5e-5,
    anchor: Tensor | None = None,
    smoothing: TemporalSmoothing | None = None,
    extra: Sequence[Term] = (),
    text: Text | None = None,
    samples: int = 1,
    seed: int = 0,
    deadline: float | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Alternate a denoiser's answer (no gradient) with feature fitting on the latent.

    For each noise level t: ``u ← argmin_u L_re(Dec(u)) + pull ‖u − û‖² + λ_c ‖u_k − ū‖²`` by ``inner``
    evaluations, with ``û = E[u | (1 − t) u + t ε]`` from the denoiser; at t = 0, û is ``anchor`` and the
    denoiser is not asked. One ε is shared by all frames of a window,
    which couples them already; samples differ in ε and are averaged at the end (the mean lowers the
    expected error; ``samples=1`` keeps the sharpness).

    Args:
        prior: decoder and denoiser.
        start: latents ``(K, C, h, w)``.
        match: the feature loss, for K frames.
        levels: noise levels in [0, 1], falling, one a round.
        inner: evaluations of loss and gradient a round.
        lr: Adam's learning rate on the latent; ``None`` fits with L-BFGS.
        pull: weight of the proximal term, per latent number.
        anchor: what t = 0 pulls towards; ``start`` where not given.
        smoothing: temporal term on the latents.
        extra: further terms, e.g. total variation.
        text: prompt for the denoiser.
        samples: independent answers that are averaged.
        seed: of ε.
        deadline: ``time.monotonic()`` value after which no further step begins.
        progress: called with (done, planned, mean loss a frame).
    """
    begin = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    u = start.detach().clone()
    total = torch.zeros_like(u)
    done, losses, finished = 0, [], 0
    planned = samples * len(levels) * inner
    late = False
    for _ in range(samples):
        u = start.detach().clone()
        for level in levels:
            if deadline is not None and time.monotonic() >= deadline:
                late = True
                break
            target, begin_at = (start if anchor is None else anchor), u
            if level > 0:
                eps = torch.randn(1, *u.shape[1:], generator=generator).to(u)
                with torch.no_grad():
                    target = begin_at = prior.denoise(prior.noised(u, eps.expand_as(u), level), level, text)
            terms: list[Term] = [match, Pull(target, pull), *extra]
            if smoothing is not None:
                terms.append(smoothing)
            offset = done
            report = (
                None if progress is None else (lambda i, n, loss, offset=offset: progress(offset + i, planned, loss))
            )
            if lr is None:
                outcome = lbfgs(Latent(prior, begin_at), terms, evaluations=inner, deadline=deadline, progress=report)
            else:
                outcome = adam(
                    Latent(prior, target), terms, iterations=inner, lr=lr, deadline=deadline, progress=report
                )
            u = outcome.value
            losses += outcome.losses
            done += outcome.iterations
        # a sample that the deadline cut short would drag the mean towards its noise
        if not late or finished == 0:
            total += u
            finished += 1
        if late:
            break
    mean = total / max(finished, 1)
    with torch.no_grad():
        images = prior.decode(mean).clamp(0, 1)
    return Outcome(images, mean, losses, done, time.monotonic() - begin)
