r"""Adversarial training against an inverter: F1 learns features that an attacker in training cannot invert.

ResSFL (Li et al., CVPR 2022, section 4.1, attacker-aware training) in turns: the inverter f_A learns to reconstruct,
min ‖f_A(F1(x)) − x‖²; the halves learn the task with the hinge

    λ max(0, SSIM(f_A(F1(x)), x) − t)    or    λ max(0, t − ‖f_A(F1(x)) − x‖²),

which asks for no more than a similarity below (or an error above) t: without it F1 would go on destroying features when
the inverter has long failed. On the edge runs nothing but F1 with other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from splitsight.defenses import DEFENSES
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.defenses.training.inverter import Inverter, image_similarity, inversion_loss
from splitsight.features import FeatureSpec

__all__ = ["Adversarial"]


class _Settings(Settings):
    halves: Literal["both"] = "both"
    weight: float = Field(default=10.0, ge=0, description="λ")
    score: Literal["ssim", "mse"] = "ssim"
    threshold: float = Field(default=0.2, ge=0, le=1, description="t: SSIM, or squared error on [0, 1]")
    width: int = Field(default=64, ge=8, description="channels of the inverter")


class _Attacked(Method):
    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.opponent: Inverter = Inverter(specs, size, settings.width)

    def penalty(self, batch: Batch) -> Penalty:
        """The hinge on what the inverter makes of what is sent."""
        images = self.opponent(batch.sent)
        similarity, error = image_similarity(images, batch.images), mse_loss(images, batch.images)
        excess = (
            similarity - self.settings.threshold if self.settings.score == "ssim" else self.settings.threshold - error
        )
        loss = self.settings.weight * excess.clamp(min=0)
        return Penalty(loss, {"inverter_ssim": similarity, "inverter_mse": error})

    def against(self, batch: Batch) -> Tensor:
        """The inverter's squared error."""
        return inversion_loss(self.opponent, batch.sent, batch.images)


@DEFENSES.register("adversarial")
class Adversarial(Learned):
    """F1 and F2 trained against an inverter that is trained in turn with them."""

    name = "adversarial"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Attacked
