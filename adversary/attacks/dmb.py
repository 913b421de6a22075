"""DMB, diffusion-model-based: the noise of the whole generator is the variable (Algorithms 1 and 2)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction
from adversary.attacks.descent import LIMITS, SCHEDULES, descend
from adversary.whitebox.terms import Negentropy, TemporalSmoothing, Term
from adversary.whitebox.variables import Noise
from splitsight.devices import standard_normal

__all__ = ["DMB", "DMBMulti"]

_RESTART = 1_000_003


def _start(problem: Problem, shared: bool, restart: int) -> Tensor:
    seeds = [seed + restart * _RESTART for seed in problem.seeds]
    if shared:
        seeds = seeds[:1] * problem.frames
    return standard_normal(problem.prior.latent_shape, seeds, problem.device)


def _through_sampler(
    problem: Problem,
    *,
    steps: int,
    smoothing: float,
    shared: bool,
    alpha: float,
    lambda_txt: float,
    checkpoint: bool,
    **settings: Any,
) -> Reconstruction:
    terms: list[Term] = []
    if smoothing > 0:
        terms.append(TemporalSmoothing(smoothing))
    # refused where out of range even if there is no text that would need it
    negentropy = Negentropy(lambda_txt, alpha)
    if problem.text is not None and lambda_txt > 0:
        terms.append(negentropy)
    return descend(
        problem,
        lambda i: Noise(problem.prior, _start(problem, shared, i), problem.text, steps, checkpoint=checkpoint),
        terms=terms,
        together=smoothing > 0,
        **settings,
    )


_TEXT = {"alpha": 1.0, "lambda_txt": 10.0}
_FAST = {
    "iterations": 150,
    "steps": 4,
    "lr": 0.1,
    "schedule": "cosine",
    "relative": False,
    "tv": 1.0,
    "restarts": 1,
    "audition": 0,
    "checkpoint": False,
    **_TEXT,
}
_PAPER = {**_FAST, "iterations": 1500, "steps": 20, "schedule": "constant"}
_TUNED = {**_FAST, "iterations": 300, "relative": True, "tv": 0.1, "lambda_txt": 0.1}
_CHOICES = {"schedule": tuple(SCHEDULES)}
_LIMITS = {**LIMITS, "steps": (1, math.inf), "alpha": (1, 2)}
_SPACE = {
    "iterations": (150, 300),
    "steps": (1, 2, 4),
    "lr": (0.02, 0.05, 0.1, 0.2),
    "schedule": tuple(SCHEDULES),
    "tv": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "restarts": (1, 2),
}


@ATTACKS.register("dmb")
class DMB(Attack):
    """White-box, diffusion-model-based (Algorithm 1): noise searched through the sampler, each image alone.

    Equation 6: ``argmin_v ‖F1(D(v_n, e)) − z_mid‖² + λ_s TV(D(v_n, e))``, v from a standard normal draw; with a
    prompt, ``e = E(t)`` and the negentropy of equations 8 and 9 with ``lambda_txt`` and ``alpha``.
    """

    name = "dmb"
    summary = "white-box, diffusion-model-based (Algorithm 1): noise searched through the sampler, each image alone"
    text = True
    settings: ClassVar = {"fast": _FAST, "tuned": _TUNED, "paper": _PAPER}
    choices: ClassVar = _CHOICES
    limits: ClassVar = _LIMITS
    space: ClassVar = _SPACE

    def solve(
        self,
        problem: Problem,
        *,
        alpha: float = 1.0,
        lambda_txt: float = 10.0,
        checkpoint: bool = False,
        **settings: Any,
    ) -> Reconstruction:
        """Reconstruct a problem's frames: ``steps`` of the sampler, ``checkpoint`` as for :class:`Noise`."""
        return _through_sampler(
            problem,
            smoothing=0.0,
            shared=False,
            alpha=alpha,
            lambda_txt=lambda_txt,
            checkpoint=checkpoint,
            **settings,
        )


@ATTACKS.register("dmb-multi")
class DMBMulti(Attack):
    """White-box, several frames with temporal smoothing (Algorithm 2): noises searched through the sampler.

    Equation 10: the frames of a window together, with ``λ_c ‖v_k − v̄‖²``. The published algorithm draws the
    frames' noises independently (``paper``); from one shared draw (``shared``, in ``fast`` and ``tuned``) frames
    are coupled from the start; ``tuned-independent`` is tuned without that.

    Each setting has a control, ``…-single``: every frame alone (λ_c = 0) from the *same* noise, with the same number
    of model evaluations, so that what differs is the coupling.
    """

    name = "dmb-multi"
    summary = "white-box, several frames with temporal smoothing (Algorithm 2): noises searched through the sampler"
    windowed = True
    text = True
    settings: ClassVar = {
        "fast": {**_FAST, "smoothing": 5.0, "shared": True},
        "tuned": {**_TUNED, "smoothing": 0.01, "shared": True},
        "paper": {**_PAPER, "steps": 10, "smoothing": 5.0, "shared": False},
    }
    variants: ClassVar = {
        **{f"{name}-single": (name, {"smoothing": 0.0}) for name in settings},
        "tuned-independent": ("tuned", {"shared": False}),
    }
    choices: ClassVar = _CHOICES
    limits: ClassVar = _LIMITS
    space: ClassVar = {**_SPACE, "smoothing": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), "shared": (True, False)}

    def solve(
        self,
        problem: Problem,
        *,
        alpha: float = 1.0,
        lambda_txt: float = 10.0,
        checkpoint: bool = False,
        **settings: Any,
    ) -> Reconstruction:
        """Reconstruct a problem's frames; λ_c is ``smoothing``."""
        return _through_sampler(problem, alpha=alpha, lambda_txt=lambda_txt, checkpoint=checkpoint, **settings)
