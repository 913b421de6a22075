"""The tiers of the live adversary as attacks on still images and recordings."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from adversary.live.engine import Engine, WindowSettings
from adversary.live.windows import Observation, Window
from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction

__all__ = ["Preview", "WindowAttack"]


def _observations(problem: Problem) -> list[Observation]:
    now = problem.clock.now()
    return [Observation(i, 0, now, tuple(z[i : i + 1] for z in problem.features)) for i in range(problem.frames)]


_KNOBS = {
    "map": ("inner", "pixels", "smoothing", "noise", "trust"),
    "pnp": ("inner", "smoothing", "levels", "samples", "pull"),
}


def _values(solver: str) -> dict[str, Any]:
    """What of the live engine's defaults a setting may change."""
    defaults = WindowSettings.of(solver)
    return {"solver": solver, **{name: getattr(defaults, name) for name in _KNOBS[solver]}}


@ATTACKS.register("window")
class WindowAttack(Attack):
    """White-box, the live window tier without a stream: a fit of the latent, started from the preview."""

    name = "window"
    summary = "white-box, the live tier: most probable latents, then pixels, around the preview, several frames at once"
    windowed = True
    text = True
    settings: ClassVar = {
        "live": _values("map"),
        "single": {**_values("map"), "smoothing": 0.0},
        "denoised": {**_values("pnp"), "samples": 2},
    }
    choices: ClassVar = {"solver": tuple(_KNOBS)}
    limits: ClassVar = {"samples": (1, math.inf), "inner": (1, math.inf)}

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        """Reconstruct a window as the live engine does; settings are those of :class:`WindowSettings`."""
        engine = Engine(
            problem.prior,
            problem.head,
            problem.inversion(),
            WindowSettings.of(settings.pop("solver"), seed=problem.seed + problem.first, **settings),
            problem.text,
        )
        frames = _observations(problem)
        begin = problem.clock.now()
        for frame in frames:
            engine.preview(frame)
        result = engine.refine(Window(0, frames, True), problem.deadline)
        seconds = (problem.clock.now() - begin) / len(frames)
        return Reconstruction(result.images, result.loss, result.iterations, problem.evaluations, seconds)


@ATTACKS.register("preview")
class Preview(Attack):
    """Inversion network, one pass: the live preview tier."""

    name = "preview"
    summary = "inversion network, one pass: the live preview"
    settings: ClassVar = {"default": {}}

    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        """One pass a frame."""
        engine = Engine(problem.prior, problem.head, problem.inversion(), text=problem.text)
        begin = problem.clock.now()
        images = [engine.preview(frame) for frame in _observations(problem)]
        seconds = (problem.clock.now() - begin) / problem.frames
        return Reconstruction(torch.stack([i for i in images if i is not None]), float("nan"), 0, 0.0, seconds)
