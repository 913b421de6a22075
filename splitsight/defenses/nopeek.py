r"""NoPeek: halves whose features have little distance correlation with the image.

Vepakomma et al., arXiv 2008.09161: α DCOR(X, Z) beside the task's loss. With the distances a_kl = ‖x_k − x_l‖ within a
batch (Euclidean; *not* squared, which would be another, linear measure), centred in rows and columns to A, and likewise
b and B for z (Székely, Rizzo and Bakirov, Annals of Statistics 35(6), 2007, definitions 3 to 5):

    V²(x, z) = mean_kl A_kl B_kl,    R(x, z) = √( V²(x, z) / √( V²(x, x) V²(z, z) ) )  ∈ [0, 1].

On the edge runs nothing but F1 with other weights.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings

__all__ = ["NoPeek", "distance_correlation"]


def _centred(rows: Tensor) -> Tensor:
    # by differences, since products lose the small distances to rounding
    a = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return a - a.mean(0, keepdim=True) - a.mean(1, keepdim=True) + a.mean()


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Distance correlation of a sample of pairs, in [0, 1]; differentiable.

    Args:
        x: ``(N, …)``, one row an observation.
        z: ``(N, …)``.

    Returns:
        One number; 0 where one of them is constant.
    """
    a, b = _centred(x.flatten(1)), _centred(z.flatten(1))
    scale = ((a * a).mean() * (b * b).mean()).sqrt()
    # the root has no gradient at 0, and rounding may leave less than 0
    return ((a * b).mean() / scale.clamp(min=1e-20)).clamp(min=1e-12).sqrt() * (scale > 0)


class _Settings(Settings):
    halves: Literal["both"] = "both"
    weight: float = Field(default=1.0, ge=0, description="of the distance correlation")


class _Correlation(Method):
    def penalty(self, batch: Batch) -> Penalty:
        """Distance correlation of the images and all that is sent."""
        found = distance_correlation(batch.images, torch.cat([z.flatten(1) for z in batch.sent], 1))
        return Penalty(self.settings.weight * found, {"distance_correlation": found})


@DEFENSES.register("nopeek")
class NoPeek(Learned):
    """F1 and F2 trained for little distance correlation between images and features."""

    name = "nopeek"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Correlation
