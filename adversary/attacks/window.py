"""The live window tier, with or without a stream: a window's frames are fitted together, started from their previews,
and the prior's denoiser of pixels takes off what a fit of features alone leaves."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, Settings, option
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork
from adversary.priors.pixels import SIGMAS
from adversary.priors.prior import Prior
from adversary.whitebox.noise import seen_through
from adversary.whitebox.solvers import UNAIDED_LEVELS, plug_and_play
from adversary.whitebox.terms import FeatureMatch, agreement, coupling
from adversary.whitebox.window import Fit, Start, fit_window
from splitsight.devices import standard_normal
from splitsight.errors import UserError

__all__ = ["Window", "WindowState"]


@dataclass
class WindowState:
    """What a window's last frame leaves to the next window.

    Attributes:
        features: each ``(1, …)``.
        correction: what the fit changed on its preview's latent, ``(1, C, h, w)``; ``None`` without a preview.
        detail: what the pixels added to the latent's image, ``(1, 3, H, W)``; ``None`` where they had no turn.
        step_seconds: time of one evaluation; ``None`` where there was none.
        denoising_seconds: time that its pixels' denoising took after the fit.
    """

    features: list[Tensor]
    correction: Tensor | None
    detail: Tensor | None
    step_seconds: float | None
    denoising_seconds: float = 0.0

    def still(self, problem: Problem, size: int) -> Tensor:
        """Where each frame of a window agrees with this one, ``(K, 1, size, size)`` in [0, 1]."""
        pairs = zip(self.features, problem.features, strict=True)
        return agreement([torch.cat([old, new]) for old, new in pairs], problem.specs, size)[1:]


@ATTACKS.register("window")
class Window(Attack):
    """White-box, the live tier: most probable latents, then pixels, around the preview, several frames at once.

    ``map`` is a maximum a posteriori fit under the preview's measured errors (:mod:`adversary.whitebox.window`);
    without F1 or a surrogate of it, frames correct each other where their features agree. Its images are then taken for
    ``x_σ``, the truth under noise, at falling σ, and the prior's diffusion model of pixels
    (:mod:`adversary.priors.pixels`) decides what the features left open. At the preview's measured error it knows what
    such fits leave (:mod:`adversary.fits`), and the answer moves a part of the way to what it makes of the fit: all of
    the way has the least error, and less that a person or a classifier would recognise. Then, at small σ, each is
    replaced by ``E[x | x_σ]``. The setting ``map`` leaves that out. ``pnp`` is plug-and-play with the denoiser of
    latents; it runs without previews too. Both carry the temporal smoothing term, and start from what
    is known: the preview's answer, corrected by what the last window's fit changed where the features still agree.
    """

    class Settings(Settings):
        """Of both solvers."""

        solver: Literal["map", "pnp"] = option("map", "maximum a posteriori, or plug-and-play with the denoiser")
        inner: int = option(12, "evaluations at most: on latents (map), or a round (pnp)", ge=1)
        pixels: int = option(120, "map: evaluations on pixels, at most, after those on latents", ge=0)
        smoothing: float = option(
            3.0, "λ_c on latents, weighted by feature agreement, against the solver's own feature loss", ge=0
        )
        likelihood_weight: float = option(
            1.0, "map: of the feature loss; 1 takes its measured errors at their word", ge=0
        )
        expected_share: float = option(
            0.85, "map: weight of the expected image given the fit, as the denoiser of pixels sees it", ge=0, le=1
        )
        pixel_levels: tuple[float, ...] = option(
            (0.01,), "map: noise levels in [0, 1] at which pixels are denoised after the fit; () leaves that out"
        )
        pixel_share: float = option(
            0.15, "map: the largest level is at most this part of the preview's measured error of a pixel", gt=0
        )
        levels: tuple[float, ...] = option((0.3, 0.2, 0.12, 0.06, 0.0), "pnp: noise levels, one a round")
        unaided_levels: tuple[float, ...] = option(UNAIDED_LEVELS, "pnp: the same without a preview to start from")
        samples: int = option(1, "pnp: independent answers that are averaged", ge=1)
        proximal_weight: float = option(5e-5, "pnp: of the denoiser's answer, the relative feature loss being 1", ge=0)

    name = "window"
    presets: ClassVar = {
        "live": {},
        "map": {"expected_share": 0.0, "pixel_levels": ()},
        "single": {"smoothing": 0.0},
        "denoised": {"solver": "pnp", "inner": 15, "smoothing": 1e-4, "samples": 2},
    }
    windowed = True
    text = True

    needs = frozenset({"prior", "initial"})
    uses = frozenset({"pipeline"})

    def __init__(self, settings: Any = None, setting: str = "live") -> None:
        super().__init__(settings, setting)
        aided = self.settings.solver == "map"
        self.needs = frozenset({"prior", "initial" if aided else "pipeline"})
        self.uses = frozenset({"pipeline" if aided else "initial"})

    def check(self, known: Any) -> None:
        """As :meth:`Attack.check`; pixels are denoised only by a prior that can."""
        super().check(known)
        if self.settings.solver == "map" and self._denoises and known.prior.pixel_denoiser is None:
            raise UserError(
                f"the prior '{known.prior.name}' has no denoiser of pixels, which {self.name}:{self.setting} needs: "
                "train one with `splitsight train prior --part pixels`, or choose window:map, which does without"
            )

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a window.

        Args:
            problem: what is known.
            state: the last window's :class:`WindowState`.
            callback: keeps the time.

        Raises:
            UserError: there is no inversion network, or it does not know its errors, and the solver is ``map``.
        """
        self.check(problem)
        callback = callback or Callback()
        begin = callback.now()
        network = self._network(problem)
        with torch.no_grad():
            preview = None if network is None else network(tuple(problem.features))
            start = self._start(problem, preview, state)
        denoising_seconds = 0.0
        if self.settings.solver == "map":
            assert network is not None and preview is not None
            reserved = 0.0 if state is None else state.denoising_seconds
            fit = self._fit(problem, network, preview, start, state, callback.earlier(reserved))
            fitted = callback.now()
            fit.outcome.images = self._denoised(problem.generator, network, fit.outcome.images)
            denoising_seconds = callback.now() - fitted
        else:
            fit = self._plug_and_play(problem, preview, start, state, callback)
        outcome = fit.outcome
        callback.show(lambda: outcome.images)
        seconds = callback.now() - begin
        return Reconstruction(
            outcome.images,
            outcome.losses[-1] if outcome.losses else math.nan,
            outcome.iterations,
            problem.evaluations,
            seconds / problem.frames,
            curve=outcome.losses,
            state=WindowState(
                [z[-1:] for z in problem.features],
                None if preview is None else outcome.value[-1:] - preview[-1:],
                None if fit.detail is None else fit.detail[-1:],
                seconds / outcome.iterations if outcome.iterations else None,
                denoising_seconds,
            ),
        )

    @property
    def _denoises(self) -> bool:
        return self.settings.expected_share > 0 or bool(self.settings.pixel_levels)

    @torch.no_grad()
    def _denoised(self, prior: Prior, network: InversionNetwork, images: Tensor) -> Tensor:
        """A part of the way to the image expected given the fit, then ``E[x | x_σ]`` at each level in turn."""
        s, denoiser = self.settings, prior.pixel_denoiser
        if not self._denoises:
            return images
        assert denoiser is not None
        if s.expected_share and network.pixels is not None:
            expected = denoiser(images.clamp(0, 1), min(network.pixels.deviation, SIGMAS[1]))
            images = torch.lerp(images, expected, s.expected_share)
        # where previews are good so are fits, and a level above their error takes away what was found
        known = math.inf if network.pixels is None else s.pixel_share * network.pixels.deviation
        scale = min(1.0, known / max(s.pixel_levels, default=1.0))
        for sigma in s.pixel_levels:
            images = denoiser(images.clamp(0, 1), scale * sigma)
        return images

    def _network(self, problem: Problem) -> InversionNetwork | None:
        if self.settings.solver == "map":
            network = problem.inversion_network()
            if network.errors is None:
                raise UserError(
                    "this inversion network knows nothing about its own errors, which window:live needs: retrain it "
                    "with `splitsight train inversion`, or choose window:denoised"
                )
            return network
        if problem.initial is not None:
            with contextlib.suppress(NoInversionNetwork):
                return problem.initial()
        return None

    @staticmethod
    def _start(problem: Problem, preview: Tensor | None, state: WindowState | None) -> Tensor:
        prior = problem.generator
        if preview is None:
            noise = standard_normal(prior.latent_shape, problem.seeds[:1], problem.device)
            return prior.denoise(noise, 1.0, problem.text).repeat(problem.frames, 1, 1, 1)
        if state is None or state.correction is None:
            return preview
        return preview + state.still(problem, prior.latent_shape[-1]) * state.correction

    @torch.no_grad()
    def _seen(self, problem: Problem, network: InversionNetwork, preview: Tensor, start: Tensor) -> Start:
        """What is fitted: features as far as the frames together show them through noise."""
        features, noise, changed = seen_through(
            problem.features,
            problem.specs,
            problem.pipeline,
            lambda: problem.generator.decode(preview[:1]).clamp(0, 1),
            known=problem.noise,
            together=self.settings.smoothing > 0 and problem.fresh and problem.support is None,
        )
        # several frames tell more than their previews knew, each alone
        centre = network(tuple(features)) if changed else preview
        return Start(features, problem.specs, noise, centre, centre + (start - preview) if changed else start)

    def _fit(
        self,
        problem: Problem,
        network: InversionNetwork,
        preview: Tensor,
        start: Tensor,
        state: WindowState | None,
        callback: Callback,
    ) -> Fit:
        s = self.settings
        begin = self._seen(problem, network, preview, start)
        if state is not None and state.detail is not None:
            begin.detail = state.still(problem, problem.image_size) * state.detail
        return fit_window(
            problem.generator,
            problem.pipeline,
            network,
            begin,
            inner=s.inner,
            pixels=s.pixels,
            smoothing=s.smoothing,
            likelihood_weight=s.likelihood_weight,
            callback=callback,
            told=problem.told(noise=begin.noise),
        )

    def _plug_and_play(
        self,
        problem: Problem,
        preview: Tensor | None,
        start: Tensor,
        state: WindowState | None,
        callback: Callback,
    ) -> Fit:
        s, prior = self.settings, problem.generator
        match = FeatureMatch(problem.f1, problem.features, relative=True, specs=problem.specs, **problem.told())
        levels, inner = s.levels if preview is not None else s.unaided_levels, s.inner
        if callback.left < math.inf:
            # spread what fits before the deadline over all rounds, so that the last, least noisy one is reached
            known = None if state is None else state.step_seconds
            step = known or _step_seconds(problem, match, start, callback)
            inner = max(1, min(inner, int(0.9 * max(callback.left, 0.0) / (step * len(levels) * s.samples))))
        outcome = plug_and_play(
            prior,
            start,
            match,
            levels=levels,
            inner=inner,
            proximal_weight=s.proximal_weight,
            # the preview's answer, not the warm start: fits must not drift away over many windows
            anchor=preview,
            smoothing=coupling(problem.features, problem.specs, s.smoothing, prior.latent_shape[-1]),
            text=problem.text,
            samples=s.samples,
            seed=problem.seeds[0],
            callback=callback,
        )
        return Fit(outcome, None)


def _step_seconds(problem: Problem, match: FeatureMatch, start: Tensor, callback: Callback) -> float:
    """Seconds of one fitting step, measured on two (the first one also warms the caches)."""
    u = start.clone().requires_grad_()
    begin = callback.now()
    for _ in range(2):
        begin = callback.now()
        torch.autograd.grad(match(u, problem.generator.decode(u)).sum(), u)
    return max(callback.now() - begin, 1e-9)
