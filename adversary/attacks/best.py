"""Our strongest attack: an inversion network's answer, posterior samples around it, the denoiser, a pixel residual.

Fidelity and naturalness pull apart, so there are two settings: ``faithful`` lowers the expected error (the mean of
posterior samples), ``sharp`` gives what a person recognises (one image, which the denoiser has seen). Both run
stages, described in :mod:`adversary.attacks._stages`, which are data: any setting may name them in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from adversary.attacks._stages import STAGES, State
from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction
from adversary.whitebox.posterior import PIXEL_NOISE
from adversary.whitebox.solvers import ANSWERS, UNAIDED_LEVELS

__all__ = ["Best", "BestMulti"]

COMBINATIONS = ("last", "mean")

_FAITHFUL: dict[str, Any] = {
    "stages": ("posterior",),
    "combine": "mean",
    "feature_noise": 0.0,
    "feature_trust": 0.3,
    "fit_evaluations": 30,
    "fit_samples": 8,
    "fit_scale": 0.5,
    "fit_pull": 5e-5,
    "pixel_evaluations": 60,
    "pixel_samples": 8,
    "pixel_scale": 0.5,
    "pixel_noise": PIXEL_NOISE,
    "pixel_ratio": 0.5,
    "noise_steps": 4,
    "noise_iterations": 50,
    "noise_lr": 0.02,
    "levels": (0.3, 0.2, 0.12, 0.06),
    "round_evaluations": 12,
    "round_pull": 5e-5,
    "round_spread": 1.0,
    "samples": 4,
    "answer": "mean",
    "unaided_levels": UNAIDED_LEVELS,
    "unaided_samples": 8,
    "residual_evaluations": 30,
    "residual_pull": 1e-3,
    "residual_tv": 1e-3,
    "residual_ratio": 1.0,
    "smoothing": 0.0,
}
_SHARP = {
    **_FAITHFUL,
    "stages": ("fit", "rounds", "residual"),
    "combine": "last",
    "feature_trust": 1.0,
    "fit_evaluations": 60,
    "fit_samples": 1,
    "answer": "best",
}


@ATTACKS.register("best")
class Best(Attack):
    """White-box, our strongest: posterior samples around an inversion network's answer; each image alone."""

    name = "best"
    summary = "white-box, our strongest: posterior samples around an inversion network's answer, each image alone"
    text = True
    tunes = "faithful"
    settings: ClassVar = {"faithful": _FAITHFUL, "sharp": _SHARP}
    choices: ClassVar = {"stages": tuple(STAGES), "combine": COMBINATIONS, "answer": ANSWERS}
    limits: ClassVar = {
        key: (1, math.inf) for key in ("fit_samples", "pixel_samples", "samples", "unaided_samples", "noise_steps")
    }
    # of `faithful`: what a mean of posterior samples goes by
    space: ClassVar = {
        "stages": (("posterior",), ("fit",), ("pixels",), ("fit", "pixels")),
        "feature_trust": (0.1, 0.3, 1.0),
        "fit_evaluations": (15, 30, 60),
        "fit_scale": (0.3, 0.5, 0.7, 1.0),
        "pixel_evaluations": (30, 60, 100),
        "pixel_scale": (0.3, 0.5, 0.7, 1.0),
        "pixel_noise": (0.05, 0.1, 0.2),
    }

    def solve(
        self,
        problem: Problem,
        *,
        stages: Sequence[str],
        combine: str = "last",
        smoothing: float = 0.0,
        feature_noise: float = 0.0,
        **settings: Any,
    ) -> Reconstruction:
        """Reconstruct a problem's frames.

        Args:
            problem: what is known; its deadline is shared among the stages.
            stages: names out of :data:`~adversary.attacks._stages.STAGES`, in order. One that has nothing to go by
                (no measured errors, too few features for a residual) is left out; the answer says which ran.
            combine: ``mean`` of what the stages answered, or the ``last`` one.
            smoothing: λ_c, weighted by how well the tapped features agree; couples the frames.
            feature_noise: known standard deviation of noise on the features; 0 for not known, and then it is
                estimated where they show it (:mod:`adversary.whitebox.noise`).
            **settings: what the stages read.
        """
        clock, deadline = problem.clock, problem.deadline
        begin = clock.now()
        state = State.start(problem, smoothing, feature_noise)
        clock.show(lambda: state.images)
        for i, stage in enumerate(stages):
            if deadline is not None:
                state.deadline = clock.now() + max(deadline - clock.now(), 0.0) / (len(stages) - i)
            STAGES[stage](state, settings)
        images = state.images
        if combine == "mean" and state.answers:
            images = torch.stack(list(state.answers.values())).mean(0)
        clock.show(lambda: images)
        start = "inversion network" if state.network is not None else "prior"
        return Reconstruction(
            images,
            math.nan if state.final is None else float(state.final.mean()),
            len(state.curve),
            problem.evaluations,
            (clock.now() - begin) / problem.frames,
            state.final,
            state.curve,
            {"start": start, "stages": " ".join(state.answers)},
        )


@ATTACKS.register("best-multi")
class BestMulti(Best):
    """White-box, our strongest on the frames of a window together, coupled where their features agree.

    The control ``…-single`` couples nothing and is otherwise the same.
    """

    name = "best-multi"
    summary = "white-box, our strongest on several frames, coupled where their features agree"
    windowed = True
    settings: ClassVar = {name: {**values, "smoothing": 0.1} for name, values in Best.settings.items()}
    variants: ClassVar = {
        "faithful-single": ("faithful", {"smoothing": 0.0}),
        "sharp-single": ("sharp", {"smoothing": 0.0}),
    }
    space: ClassVar = {**Best.space, "smoothing": (1e-4, 1e-3, 1e-2, 0.1, 1.0)}
