"""The two live tiers: a preview for every frame at once, a refined window before its deadline.

The window solver is the maximum a posteriori fit of latents, then pixels, under the preview's measured errors (the
fast equivalent, :mod:`adversary.live.fit`), plug-and-play with the denoiser, or Algorithm 2 as published (DMB through
the sampler). All carry the temporal smoothing term and start from what is known: the preview's answer, corrected by
what the last window's refinement changed where the features still agree.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.live.fit import Fit, Start, fit_window
from adversary.live.windows import Observation, Window
from adversary.priors.prior import Prior, Text
from adversary.whitebox.noise import seen_through
from adversary.whitebox.solvers import UNAIDED_LEVELS, Outcome, adam, plug_and_play
from adversary.whitebox.terms import FeatureMatch, TemporalSmoothing, TotalVariation, agreement, coupling
from adversary.whitebox.variables import Noise
from splitsight.devices import standard_normal
from splitsight.errors import UserError, unknown_name

__all__ = ["SOLVERS", "Engine", "WindowResult", "WindowSettings"]

SOLVERS = ("map", "pnp", "dmb")


@dataclass(frozen=True)
class WindowSettings:
    """How a window is refined.

    Attributes:
        solver: ``map`` (maximum a posteriori, :mod:`adversary.gaussian`), ``pnp`` (plug-and-play with the
            denoiser) or ``dmb`` (Algorithm 2).
        levels: plug-and-play's noise levels, one a round.
        unaided_levels: the same, where there is no preview to start from.
        inner: fitting evaluations (a round, for pnp; on latents, for map), at most; fewer where the deadline asks for
            it.
        pixels: for map, fitting evaluations on pixels, at most, after those on latents.
        samples: independent answers averaged by plug-and-play.
        lr: Adam's learning rate (latent for pnp, noise for dmb); ``None`` fits pnp with L-BFGS.
        pull: weight of the denoiser's answer, relative feature loss being 1.
        smoothing: λ_c. For dmb as in equation 10; for map and pnp on the latents, weighted by feature agreement,
            against their feature losses (map: half the squared error in standard deviations; pnp: relative).
        noise: for map, known standard deviation of noise on the tapped features; 0 for not known, and then it is
            estimated where the features show it (:mod:`adversary.whitebox.noise`).
        trust: for map, weight of the feature loss; 1 takes its measured errors at their word.
        tv: λ_s.
        iterations: dmb's iterations at most.
        steps: dmb's sampling steps.
        seed: of all draws.
    """

    solver: str = "map"
    levels: tuple[float, ...] = (0.3, 0.2, 0.12, 0.06, 0.0)
    unaided_levels: tuple[float, ...] = UNAIDED_LEVELS
    inner: int = 12
    pixels: int = 120
    samples: int = 1
    lr: float | None = None
    pull: float = 5e-5
    smoothing: float = 3.0
    noise: float = 0.0
    trust: float = 1.0
    tv: float = 1.0
    iterations: int = 1500
    steps: int = 4
    seed: int = 0

    @classmethod
    def of(cls, solver: str, **changes: Any) -> WindowSettings:
        """The defaults of one solver, with changes.

        Raises:
            UserError: no such solver.
        """
        if solver not in SOLVERS:
            raise unknown_name("window solver", solver, list(SOLVERS))
        return cls(solver=solver, **{**_DEFAULTS[solver], **changes})


_DEFAULTS: dict[str, dict[str, Any]] = {
    "map": {},
    "pnp": {"inner": 15, "smoothing": 1e-4},
    "dmb": {"lr": 0.1, "smoothing": 5.0},
}


@dataclass
class _Carried:
    """What the last window's last frame leaves to the next: its features, and what was changed on its preview."""

    features: tuple[Tensor, ...]
    correction: Tensor
    detail: Tensor | None


@dataclass
class WindowResult:
    """A refined window: images ``(K, 3, H, W)`` in [0, 1], and what it took."""

    window: Window
    images: Tensor
    loss: float
    iterations: int
    model_evaluations: int
    seconds: float


class Engine:
    """Previews and windows for one session.

    Args:
        prior: decoder and denoiser.
        head: F1 (white-box) or a student of it, images in [0, 1] → tuple of features; ``None`` leaves the solver map
            with the previews and what a window's frames, where their features agree, tell about each other.
        inversion: features → latents, for previews and starts; ``None`` starts from the prior's own guess.
        settings: of the window tier.
        text: prompt; the empty one by default.
    """

    def __init__(
        self,
        prior: Prior,
        head: nn.Module | None,
        inversion: InversionNetwork | None,
        settings: WindowSettings | None = None,
        text: Text | None = None,
    ) -> None:
        self.prior, self.head, self.inversion, self.text = prior, head, inversion, text
        self.settings = settings or WindowSettings()
        if self.settings.solver not in SOLVERS:
            raise unknown_name("window solver", self.settings.solver, list(SOLVERS))
        if self.settings.solver == "map" and inversion is not None and inversion.errors is None:
            raise UserError(
                "this inversion network knows nothing about its own errors, which the window solver 'map' needs: "
                "retrain it with `splitsight train inversion`, or choose the solver pnp"
            )
        if head is None and self.settings.solver != "map":
            raise UserError(
                f"the window solver {self.settings.solver} fits the features, and this attacker has neither F1 nor a "
                "student of it: choose the solver map"
            )
        self._last: _Carried | None = None
        self._noise: Tensor | None = None
        self._step_seconds: float | None = None

    @torch.no_grad()
    def preview(self, frame: Observation) -> Tensor | None:
        """The inversion network's image ``(3, H, W)`` in [0, 1]; keeps its latent with the frame."""
        if self.inversion is None:
            return None
        frame.latent = self.inversion(frame.features)
        return self.prior.decode(frame.latent).clamp(0, 1)[0]

    def _start(self, window: Window, features: list[Tensor]) -> Tensor:
        frames = window.frames
        if frames[0].latent is None:
            noise = standard_normal(self.prior.latent_shape, [self.settings.seed], self.prior.device)
            with torch.no_grad():
                return self.prior.denoise(noise, 1.0, self.text).repeat(len(frames), 1, 1, 1)
        start = torch.cat([f.latent for f in frames if f.latent is not None])
        if self._last is not None:
            start = start + self._still(features, self.prior.latent_shape[-1]) * self._last.correction
        return start

    def _still(self, features: list[Tensor], size: int) -> Tensor:
        """Where each frame agrees with the last window's last one, ``(K, 1, size, size)``."""
        assert self._last is not None
        stacked = [torch.cat([old, new]) for old, new in zip(self._last.features, features, strict=True)]
        return agreement(stacked, size)[1:]

    def refine(self, window: Window, deadline: float | None = None) -> WindowResult:
        """Reconstruct a window's frames together.

        Args:
            window: its frames should have had their previews.
            deadline: ``time.monotonic()`` value by which the answer must be there.
        """
        s = self.settings
        features = [torch.cat(parts) for parts in zip(*(f.features for f in window.frames), strict=True)]
        before = self.prior.evaluations
        begin = time.monotonic()
        if s.solver == "map":
            fit = self._fit(window, features, deadline)
        else:
            assert self.head is not None
            match = FeatureMatch(self.head, features, relative=s.solver == "pnp")
            solve = self._plug_and_play if s.solver == "pnp" else self._algorithm_2
            outcome = solve(window, features, match, deadline)
            fit = Fit(outcome, None, match.evaluations)
        outcome, last = fit.outcome, window.frames[-1]
        if s.solver != "dmb" and last.latent is not None:
            detail = None if fit.detail is None else fit.detail[-1:]
            self._last = _Carried(last.features, outcome.value[-1:] - last.latent, detail)
        if outcome.iterations:
            self._step_seconds = (time.monotonic() - begin) / outcome.iterations
        return WindowResult(
            window,
            outcome.images,
            outcome.losses[-1] if outcome.losses else float("nan"),
            outcome.iterations,
            fit.evaluations + self.prior.evaluations - before,
            outcome.seconds,
        )

    def _fit(self, window: Window, features: list[Tensor], deadline: float | None) -> Fit:
        s = self.settings
        if self.inversion is None:
            raise UserError("the window solver 'map' needs an inversion network: choose the solver pnp")
        for frame in window.frames:
            if frame.latent is None:
                self.preview(frame)
        centre = torch.cat([f.latent for f in window.frames if f.latent is not None])
        latents = self._start(window, features)
        detail = None
        if self._last is not None and self._last.detail is not None:
            detail = self._still(features, self.prior.image_size) * self._last.detail
        with torch.no_grad():
            features, noise, changed = seen_through(
                features,
                self.head,
                lambda: self.prior.decode(centre[:1]).clamp(0, 1),
                known=s.noise,
                together=s.smoothing > 0,
            )
            if changed:
                # several frames tell more than their previews knew, each alone
                before, centre = centre, self.inversion(tuple(features))
                latents = centre + (latents - before)
        begin = Start(features, noise, centre, latents, detail)
        return fit_window(
            self.prior,
            self.head,
            self.inversion,
            begin,
            inner=s.inner,
            pixels=s.pixels,
            smoothing=s.smoothing,
            trust=s.trust,
            deadline=deadline,
        )

    def _plug_and_play(
        self, window: Window, features: list[Tensor], match: FeatureMatch, deadline: float | None
    ) -> Outcome:
        s = self.settings
        start = self._start(window, features)
        aided = window.frames[0].latent is not None
        levels = s.levels if aided else s.unaided_levels
        inner = s.inner
        if deadline is not None:
            # spread what fits before the deadline over all rounds, so that the last, least noisy one is reached
            step = self._step_seconds or self._probe(match, start)
            room = max(deadline - time.monotonic(), 0.0)
            inner = max(1, min(s.inner, int(0.9 * room / (step * len(levels) * s.samples))))
        return plug_and_play(
            self.prior,
            start,
            match,
            levels=levels,
            inner=inner,
            lr=s.lr,
            pull=s.pull,
            # the preview's answer, not the warm start: fits must not drift away over many windows
            anchor=torch.cat([f.latent for f in window.frames if f.latent is not None]) if aided else None,
            smoothing=coupling(features, s.smoothing, self.prior.latent_shape[-1]),
            text=self.text,
            samples=s.samples,
            seed=s.seed,
            deadline=deadline,
        )

    def _probe(self, match: FeatureMatch, start: Tensor) -> float:
        """Seconds of one fitting step, measured on two (the first one also warms the caches)."""
        u = start.clone().requires_grad_()
        for _ in range(2):
            begin = time.monotonic()
            torch.autograd.grad(match(u, self.prior.decode(u)).sum(), u)
        return time.monotonic() - begin

    def _algorithm_2(
        self, window: Window, features: list[Tensor], match: FeatureMatch, deadline: float | None
    ) -> Outcome:
        s = self.settings
        frames = len(window.frames)
        noise = self._noise if self._noise is not None else Noise.draw(self.prior, 1, s.seed, shared=True)
        variable = Noise(self.prior, noise.repeat(frames, 1, 1, 1), self.text, s.steps)
        outcome = adam(
            variable,
            [match, TotalVariation(s.tv), TemporalSmoothing(s.smoothing)],
            iterations=s.iterations,
            lr=s.lr or 0.1,
            deadline=deadline,
        )
        self._noise = outcome.value.mean(0, keepdim=True)
        return outcome

    def forget(self) -> None:
        """Drop what was carried over from earlier windows."""
        self._last = None
        self._noise = None
