"""The two live tiers: a preview for every frame at once, a refined window before its deadline.

The window solver is either plug-and-play on the latent (the fast equivalent) or Algorithm 2 as published
(DMB through the sampler); both carry the temporal smoothing term and both start from what is known: the
preview's answer, corrected by what the last window's refinement changed where the features still agree.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.live.windows import Observation, Window
from adversary.priors.prior import Prior, Text
from adversary.whitebox.solvers import Outcome, adam, plug_and_play
from adversary.whitebox.terms import FeatureMatch, TemporalSmoothing, TotalVariation, agreement
from adversary.whitebox.variables import Noise
from splitsight.errors import unknown_name

__all__ = ["SOLVERS", "Engine", "WindowResult", "WindowSettings"]

SOLVERS = ("pnp", "dmb")


@dataclass(frozen=True)
class WindowSettings:
    """How a window is refined.

    Attributes:
        solver: ``pnp`` (plug-and-play) or ``dmb`` (Algorithm 2).
        levels: plug-and-play's noise levels, one a round.
        inner: fitting steps a round, at most; fewer where the deadline asks for it.
        samples: independent answers averaged by plug-and-play.
        lr: Adam's learning rate (latent for pnp, noise for dmb); ``None`` fits pnp with L-BFGS.
        pull: weight of the denoiser's answer, relative feature loss being 1.
        smoothing: λ_c. For dmb as in equation 10; for pnp relative, weighted by feature agreement.
        tv: λ_s.
        iterations: dmb's iterations at most.
        steps: dmb's sampling steps.
        seed: of all draws.
    """

    solver: str = "pnp"
    levels: tuple[float, ...] = (0.0,)
    inner: int = 60
    samples: int = 1
    lr: float | None = None
    pull: float = 5e-5
    smoothing: float = 1e-4
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
        base: dict[str, Any] = {"lr": 0.1, "smoothing": 5.0} if solver == "dmb" else {}
        return cls(solver=solver, **{**base, **changes})


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
        head: F1 (white-box), images in [0, 1] → tuple of features.
        inversion: features → latents, for previews and starts; ``None`` starts from the prior's own guess.
        settings: of the window tier.
        text: prompt; the empty one by default.
    """

    def __init__(
        self,
        prior: Prior,
        head: nn.Module,
        inversion: InversionNetwork | None,
        settings: WindowSettings | None = None,
        text: Text | None = None,
    ) -> None:
        self.prior, self.head, self.inversion, self.text = prior, head, inversion, text
        self.settings = settings or WindowSettings()
        if self.settings.solver not in SOLVERS:
            raise unknown_name("window solver", self.settings.solver, list(SOLVERS))
        self._last: tuple[Observation, Tensor] | None = None
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
            generator = torch.Generator().manual_seed(self.settings.seed)
            noise = torch.randn(1, *self.prior.latent_shape, generator=generator)
            with torch.no_grad():
                return self.prior.denoise(noise, 1.0, self.text).repeat(len(frames), 1, 1, 1)
        start = torch.cat([f.latent for f in frames if f.latent is not None])
        if self._last is not None:
            before, result = self._last
            correction = result - before.latent
            stacked = [torch.cat([old, new]) for old, new in zip(before.features, features, strict=True)]
            still = agreement(stacked, self.prior.latent_shape[-1])[1:]
            start = start + still * correction
        return start

    def refine(self, window: Window, deadline: float | None = None) -> WindowResult:
        """Reconstruct a window's frames together.

        Args:
            window: its frames should have had their previews.
            deadline: ``time.monotonic()`` value by which the answer must be there.
        """
        s = self.settings
        features = [torch.cat(parts) for parts in zip(*(f.features for f in window.frames), strict=True)]
        match = FeatureMatch(self.head, features, relative=s.solver == "pnp")
        before = self.prior.evaluations
        begin = time.monotonic()
        if s.solver == "pnp":
            outcome = self._plug_and_play(window, features, match, deadline)
            self._last = (window.frames[-1], outcome.value[-1:]) if window.frames[-1].latent is not None else None
        else:
            outcome = self._algorithm_2(window, match, deadline)
        if outcome.iterations:
            self._step_seconds = (time.monotonic() - begin) / outcome.iterations
        return WindowResult(
            window,
            outcome.images,
            outcome.losses[-1] if outcome.losses else float("nan"),
            outcome.iterations,
            match.evaluations + self.prior.evaluations - before,
            outcome.seconds,
        )

    def _plug_and_play(
        self, window: Window, features: list[Tensor], match: FeatureMatch, deadline: float | None
    ) -> Outcome:
        s = self.settings
        start = self._start(window, features)
        inner = s.inner
        if deadline is not None:
            # spread what fits before the deadline over all rounds, so that the last, least noisy one is reached
            step = self._step_seconds or self._probe(match, start)
            room = max(deadline - time.monotonic(), 0.0)
            inner = max(1, min(s.inner, int(0.9 * room / (step * len(s.levels) * s.samples))))
        smoothing = None
        if s.smoothing > 0 and len(window.frames) > 1:
            smoothing = TemporalSmoothing(s.smoothing, agreement(features, self.prior.latent_shape[-1]))
        return plug_and_play(
            self.prior,
            start,
            match,
            levels=s.levels,
            inner=inner,
            lr=s.lr,
            pull=s.pull,
            # the preview's answer, not the warm start: fits must not drift away over many windows
            anchor=torch.cat([f.latent for f in window.frames if f.latent is not None])
            if window.frames[0].latent is not None
            else None,
            smoothing=smoothing,
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

    def _algorithm_2(self, window: Window, match: FeatureMatch, deadline: float | None) -> Outcome:
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
