"""Our strongest attack: an inversion network's answer, posterior samples around it, the denoiser, a pixel residual.

Fidelity and naturalness pull apart, so there are two settings: ``faithful`` lowers the expected error (the mean of
posterior samples), ``sharp`` gives what a person recognises (one image, which the denoiser has seen). Both run
stages, described in :mod:`adversary.attacks._stages`, which are data: any setting may name them in any order.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch

from adversary.attacks._stages import STAGES, State, takes_time
from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, Settings, option
from adversary.whitebox.posterior import PIXEL_NOISE
from adversary.whitebox.solvers import UNAIDED_LEVELS

__all__ = ["Best", "BestMulti", "BestSettings"]

Stage = Literal["fit", "pixels", "posterior", "noise", "rounds", "residual", "denoise"]


class BestSettings(Settings):
    """What the stages read."""

    stages: tuple[Stage, ...] = option(
        ("posterior", "denoise"), "in order", tune=(("posterior", "denoise"), ("fit",), ("pixels",), ("fit", "pixels"))
    )
    combine: Literal["mean", "last"] = option("mean", "the mean of what the stages answered, or the last one")
    likelihood_weight: float = option(
        0.3, "of the feature loss on latents; 1 takes its measured errors at their word", ge=0, tune=(0.1, 0.3, 1.0)
    )
    fit_evaluations: int = option(30, "of each fit of latents", ge=0, tune=(15, 30, 60))
    fit_samples: int = option(8, "posterior samples of latents, 1 or an even number", ge=1)
    fit_scale: float = option(0.5, "of their perturbation", ge=0, tune=(0.3, 0.5, 0.7, 1.0))
    fit_proximal_weight: float = option(5e-5, "of the network's answer, where its errors were not measured", ge=0)
    pixel_evaluations: int = option(60, "of each fit of pixels", ge=0, tune=(30, 60, 100))
    pixel_samples: int = option(8, "posterior samples of pixels, 1 or an even number", ge=1)
    pixel_scale: float = option(0.5, "of their perturbation", ge=0, tune=(0.3, 0.5, 0.7, 1.0))
    pixel_noise: float = option(
        PIXEL_NOISE, "that pixels are fitted to, as a part of the features' spread", ge=0, tune=(0.05, 0.1, 0.2)
    )
    pixel_ratio: float = option(0.5, "numbers a feature holds over an image's, from which on pixels are fitted", ge=0)
    noise_steps: int = option(4, "sampling steps", ge=1)
    noise_iterations: int = option(50, "of Adam on the noise", ge=0)
    noise_lr: float = option(0.02, "its learning rate", ge=0)
    levels: tuple[float, ...] = option((0.3, 0.2, 0.12, 0.06), "noise levels of plug-and-play, one a round")
    round_evaluations: int = option(12, "a round", ge=0)
    round_proximal_weight: float = option(5e-5, "of the denoiser's answer, where no errors were measured", ge=0)
    round_spread: float = option(1.0, "part of the noise that is left in the denoiser's answer", ge=0)
    samples: int = option(4, "of plug-and-play", ge=1)
    answer: Literal["mean", "pixels", "best"] = option("mean", "how these samples become one answer")
    unaided_levels: tuple[float, ...] = option(UNAIDED_LEVELS, "the levels without an inversion network")
    unaided_samples: int = option(8, "the samples without an inversion network", ge=1)
    residual_evaluations: int = option(30, "of the residual's fit", ge=0)
    residual_weight: float = option(1e-3, "of the residual's square", ge=0)
    unaided_residual_weight: float = option(
        3e-5, "the same without an inversion network, where the residual has more to say", ge=0
    )
    residual_tv: float = option(1e-3, "λ_s, weight of total variation with a residual", ge=0)
    residual_ratio: float = option(1.0, "numbers a feature holds over an image's, from which on there is one", ge=0)
    unaided_residual_ratio: float = option(0.5, "the same without an inversion network", ge=0)
    smoothing: float = option(0.0, "λ_c, weighted by how well the tapped features agree; couples the frames", ge=0)


_SHARP = {
    "stages": ("fit", "rounds", "residual"),
    "combine": "last",
    "likelihood_weight": 1.0,
    "fit_evaluations": 60,
    "fit_samples": 1,
    "answer": "best",
}


@ATTACKS.register("best")
class Best(Attack):
    """White-box, our strongest: posterior samples around an inversion network's answer, each image alone.

    A stage that has nothing to go by (no measured errors, too few features for a residual) is left out; the answer says
    which ran. The time before a deadline is shared among the stages.
    """

    Settings = BestSettings
    name = "best"
    presets: ClassVar = {"faithful": {}, "sharp": _SHARP}
    tunes = "faithful"
    needs = frozenset({"pipeline", "prior"})
    uses = frozenset({"initial"})
    text = True

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames; nothing is carried on."""
        self.check(problem)
        callback, s = callback or Callback(), self.settings
        begin = callback.now()
        found = State.start(problem, s.smoothing)
        callback.show(lambda: found.images)
        for i, stage in enumerate(s.stages):
            left = sum(takes_time(found, s, name) for name in s.stages[i:])
            found.callback = callback.part(1 / max(1, left))
            STAGES[stage](found, s)
        images = found.images
        if s.combine == "mean" and found.answers:
            images = torch.stack(list(found.answers.values())).mean(0)
        callback.show(lambda: images)
        start = "inversion network" if found.network is not None else "prior"
        return Reconstruction(
            images,
            math.nan if found.final is None else float(found.final.mean()),
            len(found.curve),
            problem.evaluations,
            (callback.now() - begin) / problem.frames,
            found.final,
            found.curve,
            {"start": start, "stages": " ".join(found.answers)},
        )


@ATTACKS.register("best-multi")
class BestMulti(Best):
    """White-box, our strongest on several frames, coupled where their features agree.

    The control ``…-single`` couples nothing and is otherwise the same.
    """

    class Settings(BestSettings):
        """Those of :class:`Best`, with the coupling on."""

        smoothing: float = option(
            0.1,
            "λ_c, weighted by how well the tapped features agree; couples the frames",
            ge=0,
            tune=(1e-4, 1e-3, 1e-2, 0.1, 1.0),
        )

    name = "best-multi"
    windowed = True
    variants: ClassVar = {f"{name}-single": (name, {"smoothing": 0.0}) for name in ("faithful", "sharp")}
