"""The attacks by name: short recipes over variables, terms and solvers.

An attack gets a :class:`Problem` (features of one frame, of a batch, or of a window) and answers with
images. Another package adds one under the entry-point group ``splitsight.attacks``.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.live.engine import Engine, WindowSettings
from adversary.live.windows import Observation, Window
from adversary.priors.prior import Prior, Text
from adversary.whitebox.solvers import adam
from adversary.whitebox.terms import FeatureMatch, TemporalSmoothing, TotalVariation
from adversary.whitebox.variables import Noise
from splitsight.errors import unknown_name
from splitsight.registry import Registry

__all__ = ["ATTACKS", "Attack", "Problem", "Reconstruction", "cosine"]

Progress = Callable[[int, int, float], None]


@dataclass
class Problem:
    """What an attack knows.

    Attributes:
        prior: the generative prior.
        head: F1, images in [0, 1] → tuple of features.
        features: tapped tensors, each ``(K, …)``.
        inversion: makes the inversion network when asked; raises ``UserError`` where there is none.
        text: prompt; ``None`` for the empty one.
        seed: of all draws; frame i of the whole run draws from ``seed + first + i``.
        first: index of the first frame within the run.
        deadline: ``time.monotonic()`` value to finish by.
        progress: called with (done, planned, mean loss a frame).
    """

    prior: Prior
    head: nn.Module
    features: list[Tensor]
    inversion: Callable[[], InversionNetwork]
    text: Text | None = None
    seed: int = 0
    first: int = 0
    deadline: float | None = None
    progress: Progress | None = None

    @property
    def frames(self) -> int:
        """K."""
        return len(self.features[0])


@dataclass
class Reconstruction:
    """An attack's answer.

    Attributes:
        images: ``(K, 3, H, W)`` in [0, 1].
        loss: final loss a frame, mean.
        iterations: optimiser steps.
        model_evaluations: passes of one image through F1 or of one latent through the denoiser, a frame.
        seconds: wall-clock time a frame.
    """

    images: Tensor
    loss: float
    iterations: int
    model_evaluations: float
    seconds: float


class Attack(ABC):
    """One method with named settings.

    Attributes:
        name: on the command line.
        summary: one line for ``splitsight list attacks``.
        settings: named settings; the first one is the default.
        windowed: whether frames of a window are reconstructed together.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    settings: ClassVar[Mapping[str, Mapping[str, Any]]]
    windowed: ClassVar[bool] = False

    @classmethod
    def setting(cls, name: str | None) -> tuple[str, dict[str, Any]]:
        """Look a setting up; ``None`` is the default.

        Raises:
            UserError: no such setting.
        """
        chosen = name or next(iter(cls.settings))
        if chosen not in cls.settings:
            raise unknown_name(f"setting of {cls.name}", chosen, list(cls.settings))
        return chosen, dict(cls.settings[chosen])

    @abstractmethod
    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        """Reconstruct a problem's frames."""


ATTACKS: Registry[type[Attack]] = Registry("attack")


def cosine(fraction: float) -> float:
    """Learning-rate factor: a half cosine from 1 down to 0.05."""
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction))


def _through_sampler(
    problem: Problem, *, iterations: int, steps: int, lr: float, tv: float, smoothing: float, shared: bool, decay: bool
) -> Reconstruction:
    """Algorithms 1 and 2: Adam on the normalised noise, through every step of the sampler."""
    prior, frames = problem.prior, problem.frames
    draws = [Noise.draw(prior, 1, problem.seed + problem.first + i, shared=True) for i in range(frames)]
    noise = draws[0].repeat(frames, 1, 1, 1) if shared else torch.cat(draws)
    match = FeatureMatch(problem.head, problem.features)
    terms = [match, TotalVariation(tv)]
    if smoothing > 0:
        terms.append(TemporalSmoothing(smoothing))
    before = prior.evaluations
    outcome = adam(
        Noise(prior, noise, problem.text, steps),
        terms,
        iterations=iterations,
        lr=lr,
        schedule=cosine if decay else None,
        deadline=problem.deadline,
        progress=problem.progress,
    )
    evaluations = (match.evaluations + prior.evaluations - before) / frames
    loss = min(outcome.losses) if outcome.losses else float("nan")
    return Reconstruction(outcome.images, loss, outcome.iterations, evaluations, outcome.seconds / frames)


@ATTACKS.register("dmb")
class DMB(Attack):
    """Algorithm 1 (equation 6): the noise of the generator, one image at a time (batched, not coupled)."""

    name = "dmb"
    summary = "white-box, diffusion-model-based (Algorithm 1): noise searched through the sampler, each image alone"
    settings: ClassVar = {
        "fast": {"iterations": 150, "steps": 4, "lr": 0.1, "tv": 1.0, "decay": True},
        "paper": {"iterations": 1500, "steps": 20, "lr": 0.1, "tv": 1.0, "decay": False},
    }

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        return _through_sampler(problem, smoothing=0.0, shared=False, **settings)


@ATTACKS.register("dmb-multi")
class DMBMulti(Attack):
    """Algorithm 2 (equation 10): the frames of a window together, with λ_c ‖v_k − v̄‖²."""

    name = "dmb-multi"
    summary = "white-box, several frames with temporal smoothing (Algorithm 2): noises searched through the sampler"
    windowed = True
    settings: ClassVar = {
        "fast": {"iterations": 150, "steps": 4, "lr": 0.1, "tv": 1.0, "smoothing": 5.0, "shared": True, "decay": True},
        "paper": {
            "iterations": 1500,
            "steps": 10,
            "lr": 0.1,
            "tv": 1.0,
            "smoothing": 5.0,
            "shared": False,
            "decay": False,
        },
    }

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        return _through_sampler(problem, **settings)


def _observations(problem: Problem) -> list[Observation]:
    now = time.monotonic()
    return [Observation(i, 0, now, tuple(z[i : i + 1] for z in problem.features)) for i in range(problem.frames)]


@ATTACKS.register("window")
class WindowAttack(Attack):
    """The live window tier without a stream: plug-and-play on the latent, started from the preview."""

    name = "window"
    summary = "white-box, the live tier's plug-and-play on the latent with temporal smoothing, started from the preview"
    windowed = True
    settings: ClassVar = {
        "live": {},
        "single": {"smoothing": 0.0},
        "denoised": {"levels": (0.3, 0.2, 0.12, 0.06, 0.0), "inner": 15, "samples": 2},
    }

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        engine = Engine(
            problem.prior,
            problem.head,
            problem.inversion(),
            WindowSettings(seed=problem.seed + problem.first, **settings),
            problem.text,
        )
        frames = _observations(problem)
        begin = time.monotonic()
        for frame in frames:
            engine.preview(frame)
        result = engine.refine(Window(0, frames, True), problem.deadline)
        seconds = (time.monotonic() - begin) / len(frames)
        return Reconstruction(
            result.images, result.loss, result.iterations, result.model_evaluations / len(frames), seconds
        )


@ATTACKS.register("preview")
class Preview(Attack):
    """The live preview tier: one pass of the inversion network."""

    name = "preview"
    summary = "inversion network, one pass: the live preview"
    settings: ClassVar = {"default": {}}

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        engine = Engine(problem.prior, problem.head, problem.inversion(), text=problem.text)
        begin = time.monotonic()
        images = [engine.preview(frame) for frame in _observations(problem)]
        seconds = (time.monotonic() - begin) / problem.frames
        return Reconstruction(torch.stack([i for i in images if i is not None]), float("nan"), 0, 0.0, seconds)
