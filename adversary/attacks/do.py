"""DO, direct optimisation: the image itself is the variable."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, option
from adversary.attacks.descent import PAPER, Descent, descend, draw
from adversary.whitebox.variables import Pixels

__all__ = ["DO"]


def _start(problem: Problem, kind: str, restart: int) -> Tensor:
    noise = draw(problem, (3, problem.image_size, problem.image_size), restart)
    spread = {"noise": 0.25, "grey": 0.05 if restart else 0.0}[kind]
    return (0.5 + spread * noise).clamp(0, 1)


@ATTACKS.register("do")
class DO(Attack):
    """White-box, direct optimisation: the image itself, each alone.

    ``argmin_x ‖F1(x) − z_mid‖² + λ_s TV(x)`` over the pixels. It starts from constant grey. The paper gives no start;
    it takes DO from He et al. (ACSAC 2019), whose algorithm starts from a constant image, and whatever the features do
    not fix stays as the start left it, so that grey costs least error there and noise would stay visible.
    ``start="noise"`` (0.5 ± 0.25) is among what tuning may choose; further restarts from grey are moved by ± 0.05,
    since they would all be the same.
    """

    class Settings(Descent):
        """Adam's, the start, and what pixels alone can do."""

        iterations: int = option(500, "steps of each start", ge=1, tune=(250, 500))
        lr: float = option(0.05, "learning rate of Adam", ge=0, tune=(0.01, 0.02, 0.05, 0.1))
        start: Literal["grey", "noise"] = option("grey", "what the search starts from", tune=("grey", "noise"))
        box: bool = option(True, "keep every pixel in [0, 1]", tune=(True, False))
        statistics: float = option(
            0.0, "weight of the statistics of F1's batch norms (DeepInversion)", ge=0, tune=(0.0, 0.001, 0.01, 0.1)
        )

    name = "do"
    presets: ClassVar = {"tuned": {}, "paper": {**PAPER, "box": False}}
    needs = frozenset({"pipeline"})

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames, at ``problem.image_size``; nothing is carried on."""
        self.check(problem)
        s = self.settings
        return descend(
            problem,
            lambda i: Pixels(_start(problem, s.start, i), box=s.box),
            s,
            callback,
            statistics=s.statistics,
        )
