"""DO, direct optimisation: the image itself is the variable."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction
from adversary.attacks.descent import LIMITS, SCHEDULES, descend
from adversary.whitebox.variables import Pixels
from splitsight.devices import standard_normal

__all__ = ["DO"]

STARTS = ("grey", "noise")
_RESTART = 1_000_003


def _start(problem: Problem, kind: str, restart: int) -> Tensor:
    shape = (3, problem.prior.image_size, problem.prior.image_size)
    noise = standard_normal(shape, [seed + restart * _RESTART for seed in problem.seeds], problem.device)
    spread = {"noise": 0.25, "grey": 0.05 if restart else 0.0}[kind]
    return (0.5 + spread * noise).clamp(0, 1)


@ATTACKS.register("do")
class DO(Attack):
    """White-box, direct optimisation: ``argmin_x ‖F1(x) − z_mid‖² + λ_s TV(x)`` over the pixels.

    It starts from constant grey. The paper gives no start; it takes DO from He et al. (ACSAC 2019), whose
    algorithm starts from a constant image, and whatever the features do not fix stays as the start left it,
    so that grey costs least error there and noise would stay visible. ``start="noise"`` (0.5 ± 0.25) is among what
    tuning may choose; further restarts from grey are moved by ± 0.05, since they would all be the same.
    """

    name = "do"
    summary = "white-box, direct optimisation: the image itself, each alone"
    settings: ClassVar = {
        "tuned": {
            "iterations": 500,
            "lr": 0.05,
            "schedule": "cosine",
            "relative": True,
            "tv": 0.3,
            "start": "grey",
            "box": True,
            "restarts": 1,
            "audition": 0,
            "statistics": 0.0,
        },
        "paper": {
            "iterations": 1500,
            "lr": 0.1,
            "schedule": "constant",
            "relative": False,
            "tv": 1.0,
            "start": "grey",
            "box": False,
            "restarts": 1,
            "audition": 0,
            "statistics": 0.0,
        },
    }
    choices: ClassVar = {"schedule": tuple(SCHEDULES), "start": STARTS}
    limits: ClassVar = LIMITS
    space: ClassVar = {
        "iterations": (250, 500),
        "lr": (0.01, 0.02, 0.05, 0.1),
        "schedule": tuple(SCHEDULES),
        "tv": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "start": STARTS,
        "box": (True, False),
        "restarts": (1, 2),
        "statistics": (0.0, 0.001, 0.01, 0.1),
    }

    def solve(self, problem: Problem, *, start: str = "grey", box: bool = False, **settings: Any) -> Reconstruction:
        """Reconstruct a problem's frames; the other settings are those of :func:`descend`."""
        return descend(problem, lambda i: Pixels(_start(problem, start, i), box=box), **settings)
