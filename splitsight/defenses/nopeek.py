r"""NoPeek: halves whose features have little distance correlation with the image.

Vepakomma et al., arXiv 2008.09161: α DCOR(X, Z) beside the task's loss. With the distances a_kl = ‖x_k − x_l‖ within a
batch of n (Euclidean; *not* squared, which would be another, linear measure), centred in rows and columns to A, and
likewise b and B for z (Székely, Rizzo and Bakirov, Annals of Statistics 35(6), 2007, definitions 3 to 5):

    V²(x, z) = mean_kl A_kl B_kl,    R(x, z) = √( V²(x, z) / √( V²(x, x) V²(z, z) ) )  ∈ [0, 1].

In a batch that is small beside the number of dimensions this statistic is nearly all bias: of 64 images and the
features of 64 *other* images (ResNet-18, L8) it is 0.85, of images and their own features 0.88. So what is minimised by
default is the version without that bias (Székely and Rizzo, Journal of Multivariate Analysis 117, 2013, and Annals of
Statistics 42(6), 2014, section 3), with the centring Ã for k ≠ l and products over those pairs,

    Ã_kl = a_kl − Σ_j a_kj / (n − 2) − Σ_j a_jl / (n − 2) + Σ_ij a_ij / ((n − 1)(n − 2)),
    R*² = ⟨Ã, B̃⟩ / √( ⟨Ã, Ã⟩ ⟨B̃, B̃⟩ ),

which estimates R² and is 0 on average where x and z are independent: 0.34 and 0.00 in that example. On the edge runs
nothing but F1 with other weights.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings

__all__ = ["NoPeek", "corrected_distance_correlation", "distance_correlation"]

_LEAST = 1e-12


def _distances(rows: Tensor) -> Tensor:
    # by differences, since products lose the small distances to rounding
    rows = rows.flatten(1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _normalised(a: Tensor, b: Tensor) -> Tensor:
    # below the root, whose slope at 0 is infinite and would make the gradient NaN where all rows are equal
    scale = ((a * a).sum() * (b * b).sum()).clamp(min=_LEAST**3).sqrt()
    return (a * b).sum() / scale


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Distance correlation R of a sample of pairs, in [0, 1]; differentiable.

    Args:
        x: ``(N, …)``, one row an observation.
        z: ``(N, …)``.

    Returns:
        One number; 0 where one of them is constant.
    """

    def centred(rows: Tensor) -> Tensor:
        a = _distances(rows)
        return a - a.mean(0, keepdim=True) - a.mean(1, keepdim=True) + a.mean()

    # rounding may leave less than 0, and the slope of the root at 0 is infinite
    square = _normalised(centred(x), centred(z))
    return torch.where(square > _LEAST, square.clamp(min=_LEAST).sqrt(), 0.0)


def corrected_distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """R*², the squared distance correlation without the bias of a small sample, at most 1; differentiable.

    Args:
        x: ``(N, …)``, N ≥ 4.
        z: ``(N, …)``.

    Returns:
        One number, 0 on average of independent pairs and so below 0 at times; 0 where one of them is constant.
    """

    def centred(rows: Tensor) -> Tensor:
        a, n = _distances(rows), len(rows)
        a = a - (a.sum(0, keepdim=True) + a.sum(1, keepdim=True)) / (n - 2) + a.sum() / ((n - 1) * (n - 2))
        return a - a.diag().diag()

    return _normalised(centred(x), centred(z))


class _Settings(Settings):
    halves: Literal["both"] = "both"
    weight: float = Field(default=1.0, ge=0, description="of the distance correlation")
    corrected: bool = Field(default=True, description="minimise R*², or R as it was published")


class _Correlation(Method):
    def penalty(self, batch: Batch) -> Penalty:
        """Distance correlation of the images and all that is sent."""
        sent = torch.cat([z.flatten(1) for z in batch.sent], 1)
        measure = corrected_distance_correlation if self.settings.corrected else distance_correlation
        found = measure(batch.images, sent)
        name = f"{'corrected_' * self.settings.corrected}distance_correlation"
        return Penalty(self.settings.weight * found, {name: found})


@DEFENSES.register("nopeek")
class NoPeek(Learned):
    """F1 and F2 trained for little distance correlation between images and features."""

    name = "nopeek"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Correlation
