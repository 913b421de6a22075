"""The stages of :mod:`adversary.attacks.best`, each a function on the state that the last one left.

``fit``
    From the inversion network's latent u₀ to the most probable one given the features. Where the network's errors
    were measured (:mod:`adversary.gaussian`), ``½‖R^{-1/2}(F1(Dec u) − z)‖² + ½‖C^{-1/2}(u − u₀)‖²`` in whitened
    variables; where not, the relative feature loss with ``fit_proximal_weight ‖u − u₀‖²``. Left out without a network:
    from the prior's mean image one fit ends in patterns that no image has.
``pixels``
    The same on the pixels, around the network's image x₀ with the measured covariance of its error:
    ``½‖F1(x) − z‖²/σ² + ½‖Q^{-1/2}(x − x₀)‖²``, σ being ``pixel_noise`` times the features' spread (and noise on
    them, where there is some). No
    autoencoder stands between the image and its features, and a step costs a third.
``posterior``
    ``pixels`` where the features hold at least ``pixel_ratio`` times as many numbers as the image, ``fit`` elsewhere:
    a shallow split tells more than the autoencoder can show, a deep one needs its range as a prior. Without an
    inversion network there is nothing to sample around: then ``unaided_samples`` of ``rounds``, and ``residual``.
``noise``
    The latent turned to the noise that generates it (the sampler's ODE run backwards), and DMB from there.
``rounds``
    Plug-and-play: noise the latent to a moderate level, let the denoiser answer, fit the features around its
    answer; with falling levels, several times with other noise. Without an inversion network the levels start at
    nearly pure noise (``unaided_levels``).
``residual``
    A small image on top of what there is, ``relative L_re + residual_weight ‖r‖² + residual_tv TV(x̂)`` (without an
    inversion network ``unaided_residual_weight``), for shallow splits that tell more than the autoencoder can show.
    Only where the features hold at least ``residual_ratio`` times as many numbers as the image (without an inversion
    network ``unaided_residual_ratio``); deeper, the residual would fit them by an invisible pattern. Left out where
    there is known to be noise, which it would fit.
``denoise``
    The prior's denoiser of pixels, once, at the noise level that the answer has by its own finest differences
    (the median of the diagonal Haar coefficients over 0.6745, Donoho & Johnstone, Biometrika 1994): what noise on the
    features has left in the pixels. Left out where the prior has no such denoiser, or nothing is known of noise.

**Samples.** The most probable image is not the one with the least expected error: F1 is not linear, and one fit
follows whatever happens to explain the features. ``fit`` and ``pixels`` can instead draw from the posterior by
"randomise, then optimise" (Bardsley et al., SIAM J. Sci. Comput. 2014; perturb-and-MAP, Papandreou & Yuille, ICCV
2011): each sample is the fit around u₀ + ξ with ξ out of the measured error distribution, and their mean
estimates the posterior mean. ξ is scaled by ``fit_scale`` or ``pixel_scale``: F1 is less linear the farther a
sample starts, and a fit that stops early leaves more of ξ behind. Samples come in pairs ± ξ, since for a linear F1
the mean of one such pair is exact.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adversary.attacks.base import Callback, Problem
from adversary.attacks.descent import cosine
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork
from adversary.priors.pixels import SIGMAS, pixel_deviation
from adversary.whitebox import variables
from adversary.whitebox.noise import seen_through
from adversary.whitebox.posterior import (
    OnImages,
    OnLatents,
    WhitenedLatent,
    WhitenedMatch,
    WhitenedPixels,
    pixel_match,
)
from adversary.whitebox.solvers import Outcome, adam, lbfgs, plug_and_play
from adversary.whitebox.terms import (
    FeatureMatch,
    Proximal,
    TemporalSmoothing,
    Term,
    Told,
    TotalVariation,
    coupling,
)
from adversary.whitebox.variables import Latent, Residual, Variable
from splitsight.defenses import Scale
from splitsight.devices import standard_normal
from splitsight.errors import UserError

if TYPE_CHECKING:
    from adversary.attacks.best import BestSettings

__all__ = ["STAGES", "State", "takes_time"]


@dataclass
class State:
    """What one stage hands to the next.

    Attributes:
        problem: what is known.
        network: the inversion network; ``None`` where there is none.
        latent: ``(K, C, h, w)``, the latest.
        features: the tapped ones, each ``(K, …)``; what coupled frames have in common stands out of their noise.
        noise: standard deviation of the noise that is left on each.
        smoothing: λ_c on latents (or pixels), weighted by how well the tapped features agree; 0 couples nothing.
        answers: images ``(K, 3, H, W)`` of each stage that had time for a step, by name.
        final: loss of each frame after the last of them, ``(K,)``.
        curve: mean loss a frame of every step.
        callback: of the present stage.
    """

    problem: Problem
    network: InversionNetwork | None
    latent: Tensor
    features: list[Tensor]
    noise: list[Scale]
    smoothing: float = 0.0
    answers: dict[str, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    curve: list[float] = field(default_factory=list)
    callback: Callback = field(default_factory=Callback)

    @classmethod
    @torch.no_grad()
    def start(cls, problem: Problem, smoothing: float) -> State:
        """At the inversion network's answer, or where there is none, at the denoiser's answer to pure noise.

        Args:
            problem: what is known.
            smoothing: λ_c.
        """
        prior, features = problem.generator, list(problem.features)
        network = None
        if problem.initial is not None:
            with contextlib.suppress(NoInversionNetwork):
                network = problem.initial()
        if network is not None:
            latent = network(tuple(features))
        else:
            drawn = standard_normal(prior.latent_shape, problem.seeds, problem.device)
            latent = prior.denoise(drawn, 1.0, problem.text)
        features, each, changed = seen_through(
            features,
            problem.specs,
            problem.pipeline,
            lambda: prior.decode(latent[:1]),
            known=problem.noise,
            together=smoothing > 0 and problem.fresh and problem.support is None,
        )
        if changed and network is not None:
            latent = network(tuple(features))
        return cls(problem, network, latent, features, each, smoothing)

    @property
    def together(self) -> bool:
        """Whether frames are coupled."""
        return self.smoothing > 0 and self.problem.frames > 1

    def coupling(self, size: int, copies: int = 1) -> list[TemporalSmoothing]:
        """The temporal term for maps of ``size``, for ``copies`` of the window side by side; none if not coupled."""
        term = coupling(self.features, self.problem.specs, self.smoothing, size, copies)
        return [] if term is None else [term]

    @property
    def images(self) -> Tensor:
        """The latest images, ``(K, 3, H, W)`` in [0, 1]."""
        if self.answers:
            return self.answers[next(reversed(self.answers))]
        with torch.no_grad():
            return self.problem.generator.decode(self.latent).clamp(0, 1)

    def take(self, stage: str, outcome: Outcome) -> None:
        """File a stage's outcome, if it had time for a single step."""
        if outcome.iterations:
            self.answers[stage] = outcome.images
            self.final = outcome.final
            self.curve += outcome.losses

    def copied(self, copies: int) -> list[Tensor]:
        """The tapped features so many times over."""
        return [torch.cat([z] * copies) for z in self.features]

    def told(self, copies: int = 1) -> Told:
        """What the feature losses take of the defence, with the noise that is left."""
        return self.problem.told(copies, noise=self.noise)

    def match(self, s: BestSettings, copies: int = 1) -> FeatureMatch | WhitenedMatch:
        """The feature loss on latents: in standard deviations where they are known, else relative to ‖z_mid‖²."""
        pipeline, features, told = self.problem.f1, self.copied(copies), self.told(copies)
        if self.network is not None and self.network.errors is not None:
            weight = s.likelihood_weight
            return WhitenedMatch(pipeline, features, self.network.errors, weight=weight, **told)
        if self.problem.noisy:
            return pixel_match(pipeline, features, part=s.pixel_noise, specs=self.problem.specs, **told)
        return FeatureMatch(pipeline, features, relative=True, support=told["support"])


def _perturbations(state: State, samples: int, scale: float, shape: tuple[int, ...]) -> list[Tensor]:
    """In whitened numbers: zeros ``(K, …)`` for one sample, else ``samples / 2`` pairs ± ξ, each ``(2K, …)``."""
    frames = state.problem.frames
    if samples == 1:
        return [torch.zeros(frames, *shape, device=state.problem.device)]
    if samples < 1 or samples % 2:
        raise UserError(f"samples come in pairs: give 1 or an even number, not {samples}")
    # one draw for a coupled window; a frame by itself must not depend on its neighbours
    generators = [torch.Generator().manual_seed(seed) for seed in state.problem.seeds]
    draws = []
    for _ in range(samples // 2):
        each = [torch.randn(1, *shape, generator=g) for g in (generators[:1] if state.together else generators)]
        xi = scale * torch.cat(each).to(state.problem.device).expand(frames, *shape)
        draws.append(torch.cat([xi, -xi]))
    return draws


def _sampled(
    state: State,
    stage: str,
    perturbations: list[Tensor],
    build: Callable[[int], tuple[Variable, list[Term]]],
    evaluations: int,
) -> None:
    """Fit around each perturbation, and file the mean of the images.

    Args:
        state: receives the outcome.
        stage: its name there.
        perturbations: out of :func:`_perturbations`.
        build: makes a whitened variable and the terms besides its Gaussian prior, for so many copies of the frames.
        evaluations: of each fit.
    """
    problem, callback = state.problem, state.callback
    frames, planned = problem.frames, len(perturbations) * evaluations
    copies = len(perturbations[0]) // frames
    images: list[Tensor] = []
    finals: list[Tensor] = []
    losses: list[float] = []
    for i, xi in enumerate(perturbations):
        if images and callback.late():
            break
        variable, terms = build(copies)
        with torch.no_grad():
            variable.value.copy_(xi)
        # one of a pair is not an answer yet, their mean is
        part = callback.part(1 / (len(perturbations) - i), done=i * evaluations, planned=planned, shown=copies == 1)
        terms = [*terms, Proximal(xi, 0.5)]
        outcome = lbfgs(variable, terms, evaluations=evaluations, together=state.together, callback=part)
        if not outcome.iterations:
            break
        images += outcome.images.split(frames)
        finals += outcome.final.split(frames)
        losses += outcome.losses
        mean = torch.stack(images).mean(0)
        callback.show(lambda mean=mean: mean)
    if images:
        final = torch.stack(finals).mean(0)
        state.take(stage, Outcome(torch.stack(images).mean(0), finals[0], losses, len(losses), final=final))


def _fit(state: State, s: BestSettings) -> None:
    problem, network = state.problem, state.network
    if network is None:
        return
    prior, errors = problem.generator, network.errors
    size = prior.latent_shape[-1]
    if errors is None:
        terms = [state.match(s), Proximal(state.latent, s.fit_proximal_weight), *state.coupling(size)]
        latent = Latent(prior, state.latent)
        outcome = lbfgs(latent, terms, evaluations=s.fit_evaluations, together=state.together, callback=state.callback)
        state.take("fit", outcome)
        state.latent = outcome.value
        return
    fitted: list[WhitenedLatent] = []

    def build(copies: int) -> tuple[Variable, list[Term]]:
        variable = WhitenedLatent(prior, errors, state.latent.repeat(copies, 1, 1, 1))
        fitted.append(variable)
        coupling = [OnLatents(variable, term) for term in state.coupling(size, copies)]
        return variable, [state.match(s, copies), *coupling]

    perturbations = _perturbations(state, s.fit_samples, s.fit_scale, prior.latent_shape)
    _sampled(state, "fit", perturbations, build, s.fit_evaluations)
    with torch.no_grad():
        found = [part for v in fitted for part in v.latents().split(problem.frames)]
        state.latent = torch.stack(found).mean(0) if found else state.latent


def takes_time(state: State, s: BestSettings, stage: str) -> bool:
    """Whether a stage has something to go by here, and more to do than one pass."""
    aided = state.network is not None
    if stage in ("fit", "pixels"):
        return aided
    if stage == "residual":
        least = s.residual_ratio if aided else s.unaided_residual_ratio
        return _known(state) >= least and not state.problem.noisy
    return stage != "denoise"


def _known(state: State) -> float:
    """Numbers that the features of a frame hold, as a part of those of its image."""
    return sum(spec.numel for spec in state.problem.specs) / (3 * state.problem.image_size**2)


def _posterior(state: State, s: BestSettings) -> None:
    if state.network is None:
        callback, further = state.callback, takes_time(state, s, "residual")
        state.callback = callback.part(0.5 if further else 1.0)
        _rounds(state, s.model_copy(update={"samples": s.unaided_samples}))
        state.callback = callback
        _residual(state, s)
        if "residual" in state.answers:  # which has the rounds' answer in it
            state.answers.pop("rounds", None)
        return
    measured = state.network.pixels is not None
    (_pixels if measured and _known(state) >= s.pixel_ratio else _fit)(state, s)


def _pixels(state: State, s: BestSettings) -> None:
    problem, network = state.problem, state.network
    if network is None or network.pixels is None:
        return
    errors, size = network.pixels, problem.image_size
    with torch.no_grad():
        centre = problem.generator.decode(network(tuple(state.features))).clamp(0, 1)

    def build(copies: int) -> tuple[Variable, list[Term]]:
        told = state.told(copies)
        match = pixel_match(problem.f1, state.copied(copies), part=s.pixel_noise, specs=problem.specs, **told)
        variable = WhitenedPixels(errors, centre.repeat(copies, 1, 1, 1))
        return variable, [match, *(OnImages(term) for term in state.coupling(size, copies))]

    perturbations = _perturbations(state, s.pixel_samples, s.pixel_scale, (3, size, size))
    _sampled(state, "pixels", perturbations, build, s.pixel_evaluations)


def _noise(state: State, s: BestSettings) -> None:
    problem, prior, steps = state.problem, state.problem.generator, s.noise_steps
    if state.callback.late():
        return
    with torch.no_grad():
        start = prior.invert(state.latent, problem.text, steps)
    variable = variables.Noise(prior, start, problem.text, steps)
    outcome = adam(
        variable,
        [state.match(s)],
        iterations=s.noise_iterations,
        lr=s.noise_lr,
        schedule=cosine,
        callback=state.callback,
    )
    state.take("noise", outcome)
    if outcome.iterations:
        state.latent = variable.latents()


def _rounds(state: State, s: BestSettings) -> None:
    problem, prior = state.problem, state.problem.generator
    measured = state.network is not None and state.network.errors is not None
    coupling = state.coupling(prior.latent_shape[-1])
    outcome = plug_and_play(
        prior,
        state.latent,
        state.match(s),
        levels=_entered(state, s.levels) if state.network is not None else s.unaided_levels,
        inner=s.round_evaluations,
        # the loss is in standard deviations where they are known
        proximal_weight=_expected_error(s.round_spread) if measured or problem.noisy else s.round_proximal_weight,
        smoothing=coupling[0] if coupling else None,
        text=problem.text,
        samples=s.samples,
        answer=s.answer,
        seed=problem.seeds[:1] if state.together else problem.seeds,
        callback=state.callback,
    )
    state.take("rounds", outcome)
    state.latent = outcome.value


def _entered(state: State, levels: Sequence[float]) -> Sequence[float]:
    """The levels of plug-and-play, scaled to begin where the noise of a defence has left the network's answer.

    An answer with errors of standard deviation σ is what the schedule calls noise level ``σ / (1 + σ)`` (Kulynych et
    al., "Visual privacy auditing with diffusion models", arXiv 2403.07588, enter a denoiser like that at the noise of
    a differentially private image); without known noise, or where the errors are less, the setting's levels hold.
    """
    if state.network is None or state.network.errors is None or not state.problem.noisy:
        return levels
    sigma = state.network.errors.deviation
    factor = max(1.0, sigma / (1 + sigma) / max(levels))
    return [min(0.95, factor * level) for level in levels]


def _expected_error(spread: float) -> Callable[[float], float]:
    """The weight ``1/(2 r²)`` of a denoiser's answer at level t, with its standard deviation r.

    For unit-variance latents, ``(1 − t) u + t ε`` leaves u uncertain by ``t / √((1 − t)² + t²)`` before a denoiser
    knows anything about images; ``spread`` is the part of it that remains.
    """

    def weight(level: float) -> float:
        r = spread * level / math.sqrt((1 - level) ** 2 + level**2)
        return 0.5 / max(r, 1e-3) ** 2

    return weight


def _residual(state: State, s: BestSettings) -> None:
    problem = state.problem
    if not takes_time(state, s, "residual"):
        return
    variable = Residual(state.images)
    weight = s.residual_weight if state.network is not None else s.unaided_residual_weight
    match = FeatureMatch(problem.f1, state.features, relative=True, support=problem.support)
    terms = [match, Proximal(torch.zeros_like(variable.value), weight), TotalVariation(s.residual_tv)]
    outcome = lbfgs(variable, terms, evaluations=s.residual_evaluations, together=False, callback=state.callback)
    state.take("residual", outcome)


@torch.no_grad()
def _denoise(state: State, s: BestSettings) -> None:
    problem = state.problem
    denoiser = problem.generator.pixel_denoiser
    if denoiser is None or not problem.noisy or state.callback.late():
        return
    every = list(state.answers.values())
    images = torch.stack(every).mean(0) if s.combine == "mean" and every else state.images
    sigma = pixel_deviation(images).clamp_max(SIGMAS[1])
    # below what it was trained for there is nothing to take away
    seen = torch.where((sigma >= SIGMAS[0]).view(-1, 1, 1, 1), denoiser(images, sigma), images).clamp(0, 1)
    # the last word, in place of what it has seen
    state.answers = {f"{' '.join(state.answers)} denoise".strip(): seen}


STAGES: dict[str, Callable[[State, BestSettings], None]] = {
    "fit": _fit,
    "pixels": _pixels,
    "posterior": _posterior,
    "noise": _noise,
    "rounds": _rounds,
    "residual": _residual,
    "denoise": _denoise,
}
"""By the names that a setting's ``stages`` may use, in any order."""
