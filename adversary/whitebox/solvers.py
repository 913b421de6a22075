"""Solvers: how a variable is moved to lower a weighted sum of terms.

:func:`adam` is the paper's optimiser; :func:`lbfgs` uses curvature; :func:`plug_and_play` splits fidelity and
prior, so that no gradient runs through the sampler. All stop when their callback says that it is late, return the
best value that they saw, and show it to the callback at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adversary.callback import Callback
from adversary.priors.prior import Prior, Text
from adversary.whitebox.terms import Proximal, TemporalSmoothing, Term
from adversary.whitebox.variables import Latent, Variable
from splitsight.errors import unknown_name

__all__ = ["ANSWERS", "UNAIDED_LEVELS", "Outcome", "Schedule", "adam", "lbfgs", "plug_and_play"]

Schedule = Callable[[float], float]

ANSWERS = ("mean", "pixels", "best")
"""How several samples become one answer."""

UNAIDED_LEVELS = (0.9, 0.7, 0.5, 0.35, 0.2, 0.1)
"""Plug-and-play's noise levels where no inversion network gives a start: from nearly pure noise."""


@dataclass
class Outcome:
    """What a solver found.

    Attributes:
        images: ``(K, 3, H, W)`` in [0, 1].
        value: the variable's value at its best.
        losses: mean total loss a frame, one an iteration.
        iterations: optimiser steps.
        seconds: wall-clock time.
        final: total loss of each frame at ``value``, ``(K,)``; infinite where there was no time for any.
    """

    images: Tensor
    value: Tensor
    losses: list[float] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0
    final: Tensor = field(default_factory=lambda: torch.empty(0))


class _Best:
    """The best value and images of each frame so far."""

    def __init__(self, variable: Variable, callback: Callback) -> None:
        self.variable, self.callback = variable, callback
        self.value = variable.value.detach().clone()
        self.loss = self.value.new_full((len(self.value),), math.inf)
        self.images: Tensor | None = None

    def see(self, loss: Tensor, images: Tensor, better: Tensor) -> None:
        """File a step: losses ``(K,)``, images, and which frames it is better for."""
        images, value = images.detach(), self.variable.value.detach()
        if self.images is None:
            self.images = images.clone()
        self.loss = torch.where(better, loss, self.loss)
        self.value[better] = value[better]
        self.images[better] = images[better]
        kept = self.images
        self.callback.show(lambda: kept.clamp(0, 1))

    @torch.no_grad()
    def outcome(self, losses: list[float], seconds: float) -> Outcome:
        """Leave the variable at its best."""
        self.variable.value.copy_(self.value)
        images = self.variable.images() if self.images is None else self.images
        return Outcome(images.clamp(0, 1), self.value, losses, len(losses), seconds, self.loss)


def _losses(variable: Variable, terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
    """Images, and the weighted sum of all terms, one a frame."""
    images = variable.images()
    return images, torch.stack([term.weight * term(variable.value, images) for term in terms]).sum(0)


def adam(
    variable: Variable,
    terms: Sequence[Term],
    *,
    iterations: int,
    lr: float = 0.1,
    schedule: Schedule | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Adam (β = 0.9, 0.999) on the sum over frames of all weighted terms.

    Args:
        variable: what is moved.
        terms: summands.
        iterations: steps at most.
        lr: learning rate.
        schedule: factor on ``lr`` as a function of the part of the iterations done, in [0, 1].
        callback: keeps the time; once it is late, no further step begins.
    """
    callback = callback or Callback()
    start = callback.now()
    optimizer = torch.optim.Adam([variable.value], lr=lr, betas=(0.9, 0.999))
    best = _Best(variable, callback)
    losses: list[float] = []
    for i in range(iterations):
        if callback.late():
            break
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = lr * schedule(i / iterations)
        images, loss = _losses(variable, terms)
        best.see(loss.detach(), images, loss.detach() < best.loss)
        losses.append(float(loss.detach().mean()))
        (variable.value.grad,) = torch.autograd.grad(loss.sum(), variable.value)
        optimizer.step()
        variable.project()
        callback.step(i + 1, iterations, losses[-1])
    return best.outcome(losses, callback.now() - start)


def lbfgs(
    variable: Variable,
    terms: Sequence[Term],
    *,
    evaluations: int,
    history: int = 10,
    together: bool = True,
    first: float | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """L-BFGS (Nocedal & Wright, algorithm 7.4) with a backtracking line search, on one problem or on K at once.

    F1∘Dec is nearly piecewise linear, so the fit on a latent is close to least squares, where curvature pays:
    about a third of Adam's evaluations for the same loss.

    Every evaluation is one candidate of each problem. A problem whose candidate falls enough (Armijo) moves there
    and takes its next direction; one whose candidate does not, tries a shorter step next time. So frames that
    share nothing are solved side by side, each as if it were alone, and none waits for another's line search.

    Args:
        variable: what is moved.
        terms: summands.
        evaluations: of loss and gradient, at most; counted as iterations in the outcome.
        history: pairs kept for the curvature.
        together: all frames are one problem, as they must be where a term couples them; else each is its own.
        first: the first step's length in gradients, where the curvature is known roughly (it is about the
            inverse of the largest one); else a very small step finds out.
        callback: keeps the time; once it is late, no further evaluation begins.
    """
    callback = callback or Callback()
    start = callback.now()
    best = _Best(variable, callback)
    frames = len(variable.value)
    problems = 1 if together else frames
    losses: list[float] = []

    def evaluate() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, each = _losses(variable, terms)
        (gradient,) = torch.autograd.grad(each.sum(), variable.value)
        each = each.detach()
        losses.append(float(each.mean()))
        callback.step(len(losses), evaluations, losses[-1])
        return images, each, each.view(problems, -1).sum(1), gradient.reshape(problems, -1)

    def show(images: Tensor, each: Tensor, moved: Tensor) -> None:
        best.see(each, images, moved.repeat_interleave(frames // problems))

    if evaluations < 1 or callback.late():
        return best.outcome(losses, callback.now() - start)
    images, each, value, gradient = evaluate()
    show(images, each, torch.ones_like(value, dtype=torch.bool))
    point = variable.value.detach().reshape(problems, -1).clone()
    pairs = _Curvature(point, history)
    direction = -gradient
    # nothing is known about the scale yet: a small step, whose answer says it
    step = _first_step(gradient) if first is None else torch.full_like(value, first)
    while len(losses) < evaluations and not callback.late():
        slope = _dot(direction, gradient)
        with torch.no_grad():
            variable.value.copy_((point + step[:, None] * direction).view_as(variable.value))
        images, each, reached, there = evaluate()
        moved = reached <= value + 1e-4 * step * slope  # false for NaN
        with torch.no_grad():
            show(images, each, moved)
            pairs.add(step[:, None] * direction, there - gradient, moved)
            point = torch.where(moved[:, None], point + step[:, None] * direction, point)
            gradient = torch.where(moved[:, None], there, gradient)
            # where it was too long, to the minimum of the parabola through what is known
            parabola = -slope * step.square() / (2 * (reached - value - slope * step))
            shorter = torch.where(parabola.isfinite(), parabola, 0.1 * step)
            step = torch.where(moved, 1.0, torch.clamp(shorter, 0.1 * step, 0.5 * step))
            value = torch.where(moved, reached, value)
            direction = torch.where(moved[:, None], -pairs.inverse_hessian(gradient), direction)
            uphill = _dot(direction, gradient) >= 0
            # rounding can spoil a direction, and a step can become too short to mean anything: start over
            lost = uphill | (step < 1e-6)
            if lost.any():
                pairs.forget(lost)
                direction = torch.where(lost[:, None], -gradient, direction)
                step = torch.where(lost, _first_step(gradient), step)
    return best.outcome(losses, callback.now() - start)


def _first_step(gradient: Tensor) -> Tensor:
    """Along the negative gradient: changes the numbers of a problem by at most 1 in all."""
    return (1 / gradient.abs().sum(1).clamp_min(1e-12)).clamp_max(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row."""
    return (a * b).sum(1)


class _Curvature:
    """The last pairs of steps s and gradient changes y of several problems side by side, oldest first.

    Args:
        like: ``(problems, numbers)``.
        history: pairs a problem; one that is not there yet has ρ = 0 and so changes nothing.
    """

    def __init__(self, like: Tensor, history: int) -> None:
        problems, numbers = like.shape
        self.s = like.new_zeros(problems, history, numbers)
        self.y = like.new_zeros(problems, history, numbers)
        self.rho = like.new_zeros(problems, history)
        self.scale = like.new_ones(problems)

    def add(self, s: Tensor, y: Tensor, moved: Tensor) -> None:
        """File a pair for the problems that moved and whose curvature is positive there."""
        sy = _dot(s, y)
        good = moved & (sy > 1e-10 * s.norm(dim=1) * y.norm(dim=1))
        for kept, new in ((self.s, s), (self.y, y), (self.rho, 1 / sy)):
            kept[good] = torch.cat([kept[good, 1:], new[good, None]], 1)
        self.scale[good] = (sy / _dot(y, y))[good]

    def forget(self, which: Tensor) -> None:
        """Drop the pairs of some problems."""
        self.rho[which] = 0
        self.scale[which] = 1

    def inverse_hessian(self, gradient: Tensor) -> Tensor:
        """The two loops: an approximate inverse Hessian times the gradient, row by row."""
        q = gradient
        factors = []
        for s, y, rho in zip(*(t.unbind(1)[::-1] for t in (self.s, self.y, self.rho)), strict=True):
            factor = rho * _dot(s, q)
            factors.append(factor)
            q = q - factor[:, None] * y
        q = self.scale[:, None] * q
        for s, y, rho, factor in zip(
            *(t.unbind(1) for t in (self.s, self.y, self.rho)), reversed(factors), strict=True
        ):
            q = q + (factor - rho * _dot(y, q))[:, None] * s
        return q


def plug_and_play(
    prior: Prior,
    start: Tensor,
    match: Term,
    *,
    levels: Sequence[float],
    inner: int,
    lr: float | None = None,
    proximal_weight: float | Callable[[float], float] = 5e-5,
    anchor: Tensor | None = None,
    smoothing: TemporalSmoothing | None = None,
    extra: Sequence[Term] = (),
    text: Text | None = None,
    samples: int = 1,
    answer: str = "mean",
    seed: int | Sequence[int] = 0,
    callback: Callback | None = None,
) -> Outcome:
    """Alternate a denoiser's answer (no gradient) with feature fitting on the latent.

    For each noise level t: ``u ← argmin_u L_re(Dec(u)) + w ‖u − û‖² + λ_c ‖u_k − ū‖²`` by ``inner``
    evaluations, with ``û = E[u | (1 − t) u + t ε]`` from the denoiser; at t = 0, û is ``anchor`` and the
    denoiser is not asked. One ε is shared by all frames of a window, which couples them already.

    Samples differ in ε. Their mean lowers the expected error and is blurred where they disagree; the one of
    them that fits best keeps its sharpness.

    Args:
        prior: decoder and denoiser.
        start: latents ``(K, C, h, w)``.
        match: the feature loss, for K frames.
        levels: noise levels in [0, 1], falling, one a round.
        inner: evaluations of loss and gradient a round.
        lr: Adam's learning rate on the latent; ``None`` fits with L-BFGS.
        proximal_weight: w, per latent number; may depend on the level.
        anchor: the proximal term's target at t = 0; ``start`` where not given.
        smoothing: temporal term on the latents; without one, frames are fitted each on its own.
        extra: further terms that do not couple frames, e.g. total variation.
        text: prompt for the denoiser.
        samples: independent answers.
        answer: ``mean`` of their latents; ``pixels``, the mean of their images; or ``best``, for each frame
            (for a window that is coupled by ``smoothing``, together) the one with the lowest feature loss.
        seed: of ε; one a frame makes ε, and so the answer, independent of the other frames.
        callback: keeps the time; once it is late, no further step begins.
    """
    if answer not in ANSWERS:
        raise unknown_name("answer", answer, list(ANSWERS))
    callback = callback or Callback()
    begin = callback.now()
    generators = [torch.Generator().manual_seed(s) for s in ([seed] if isinstance(seed, int) else seed)]
    done, losses = 0, []
    planned = samples * len(levels) * inner
    found: list[Outcome] = []
    fits: list[Tensor] = []
    for _ in range(samples):
        u, images, final = start.detach().clone(), None, start.new_full((len(start),), math.inf)
        late = False
        for level in levels:
            if callback.late():
                late = True
                break
            target, begin_at = (start if anchor is None else anchor), u
            if level > 0:
                eps = torch.cat([torch.randn(1, *u.shape[1:], generator=g) for g in generators]).to(u)
                with torch.no_grad():
                    target = begin_at = prior.denoise(prior.noised(u, eps.expand_as(u), level), level, text)
            weight = proximal_weight(level) if callable(proximal_weight) else proximal_weight
            terms: list[Term] = [match, Proximal(target, weight), *extra]
            if smoothing is not None:
                terms.append(smoothing)
            # what would be handed back now is the mean of the samples so far, not one that is half done
            part = callback.part(done=done, planned=planned, shown=not found)
            if lr is None:
                variable, together = Latent(prior, begin_at), smoothing is not None
                outcome = lbfgs(variable, terms, evaluations=inner, together=together, callback=part)
            else:
                outcome = adam(Latent(prior, target), terms, iterations=inner, lr=lr, callback=part)
            u, images, final = outcome.value, outcome.images, outcome.final
            losses += outcome.losses
            done += outcome.iterations
        # a sample that the deadline cut short would drag the mean towards its noise
        if late and found:
            break
        with torch.no_grad():
            images = prior.decode(u).clamp(0, 1) if images is None else images
            if samples > 1 and answer == "best":
                fits.append(match(u, images))
        found.append(Outcome(images, u, final=final))
        if samples > 1:
            callback.show(lambda: _joined(prior, found, answer, fits, smoothing is not None).images)
        if late:
            break
    joined = _joined(prior, found, answer, fits, smoothing is not None)
    return Outcome(joined.images, joined.value, losses, done, callback.now() - begin, joined.final)


@torch.no_grad()
def _joined(prior: Prior, found: Sequence[Outcome], answer: str, fits: Sequence[Tensor], together: bool) -> Outcome:
    """One answer from several samples; ``fits`` holds the feature loss of each, ``(K,)``, for ``best``."""
    if len(found) == 1:
        return found[0]
    values = torch.stack([f.value for f in found])
    images = torch.stack([f.images for f in found])
    final = torch.stack([f.final for f in found])
    if answer == "mean":
        value = values.mean(0)
        return Outcome(prior.decode(value).clamp(0, 1), value, final=final.mean(0))
    if answer == "pixels":
        return Outcome(images.mean(0), values.mean(0), final=final.mean(0))
    fit = torch.stack(list(fits))
    chosen = (fit.mean(1, keepdim=True).expand_as(fit) if together else fit).argmin(0)
    frames = torch.arange(len(chosen), device=chosen.device)
    return Outcome(images[chosen, frames], values[chosen, frames], final=final[chosen, frames])
