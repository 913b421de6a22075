r"""Siamese fine-tuning: features of one class near each other, so that what tells its images apart is lost.

Osia et al., IEEE Internet of Things Journal 2020 (arXiv 1703.02952), with the contrastive loss of Hadsell, Chopra and
LeCun (CVPR 2006, equation 4) on all pairs of a batch, d the distance of their features:

    ½ mean over pairs of one class of d²  +  ½ mean over the other pairs of max(0, m − d)².

Distances are in units of the mean distance of two frames before training. The class is the undefended network's answer,
so no labels are needed. On the edge runs nothing but F1 with other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from splitsight.defenses import DEFENSES, Features, Protection
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["Siamese", "contrastive"]


def contrastive(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    """The contrastive loss of all pairs of two different frames.

    Args:
        distances: ``(N, N)``.
        same: ``(N, N)`` bool: of one class.
        margin: beyond which two classes are far enough.
    """
    pairs = torch.ones_like(same).triu(1)
    near, far = distances[pairs & same], distances[pairs & ~same]
    # a batch may have no pair of one kind
    return 0.5 * near.square().sum() / max(1, len(near)) + 0.5 * (margin - far).clamp(min=0).square().sum() / max(
        1, len(far)
    )


class _Settings(Settings):
    halves: Literal["both"] = "both"
    weight: float = Field(default=1.0, ge=0, description="of the contrastive loss")
    margin: float = Field(default=1.0, gt=0, description="m, in units of the undefended mean distance")


class _Contrast(Method):
    unit: Tensor

    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.register_buffer("unit", torch.ones(()))

    @torch.no_grad()
    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """The unit of distance."""
        self.unit.copy_(_distances(features).sum() / (len(features[0]) * (len(features[0]) - 1)))

    def penalty(self, batch: Batch) -> Penalty:
        """The contrastive loss of what is sent.

        Raises:
            UserError: the network gives no classes.
        """
        if not isinstance(batch.wanted, Tensor) or batch.wanted.ndim != 2:
            raise UserError("siamese training needs a network that gives classes: take another target or defence")
        classes, d = batch.wanted.argmax(1), _distances(batch.sent) / self.unit
        same = classes[:, None] == classes[None]
        loss = contrastive(d, same, self.settings.margin)
        return Penalty(self.settings.weight * loss, {"contrastive_loss": loss})


def _distances(features: Features) -> Tensor:
    rows = torch.cat([z.flatten(1) for z in features], 1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


@DEFENSES.register("siamese")
class Siamese(Learned):
    """F1 and F2 trained so that frames of one class have near features."""

    name = "siamese"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Contrast
