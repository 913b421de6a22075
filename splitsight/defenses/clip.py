"""Clipping: the features of a frame, all tensors together, are scaled down to a norm of at most C.

``z ← z · min(1, C / ‖z‖_p)`` with p = 2, or p = 1 for Laplace noise; z is the concatenation of all tensors that cross
(Abadi et al., Deep Learning with Differential Privacy, 2016, for gradients). By itself it protects nothing, as the
direction is sent in full. It bounds what noise behind it has to hide: two frames differ by at most 2C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Norms, Parameters, Protection
from splitsight.features import FeatureSpec

__all__ = ["Clip", "joint_norm"]

_MARGIN = 1 - 2**-20
"""Keeps the norm that is computed in another order, in single precision, below the bound too."""


def joint_norm(features: Features, order: int = 2) -> Tensor:
    """``(B,)``: ‖z‖_p of each frame over all its tensors, in double precision."""
    return torch.cat([z.flatten(1).double() for z in features], 1).norm(order, dim=1)


class _Parameters(Parameters):
    norm: float = Field(gt=0, allow_inf_nan=False, description="C, the largest norm of a frame, in the features' unit")
    order: int = Field(default=2, ge=1, le=2, description="of the norm: 2, or 1 for Laplace noise behind it")


class _Clip(Protection):
    def __init__(self, norm: float, order: int) -> None:
        super().__init__()
        self.norm, self.order = norm, order

    def expected(self, features: Features) -> Features:
        factor = (self.norm * _MARGIN / joint_norm(features, self.order).clamp_min(1e-30)).clamp_max(1)
        return tuple(z * factor.to(z.dtype).view(-1, *[1] * (z.ndim - 1)) for z in features)


@DEFENSES.register("clip")
class Clip(Defense[_Parameters]):
    """Scales each frame's features down to a norm of at most C; what noise needs to guarantee anything."""

    name = "clip"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Scaling on the edge, nothing on the server."""
        return _Clip(self.parameters.norm, self.parameters.order), None

    def norms(self, before: Norms) -> Norms:
        """C, and whatever bound there was: scaling down keeps each."""
        bounds = dict(before.bounds)
        order = self.parameters.order
        bounds[order] = min(self.parameters.norm, bounds.get(order, self.parameters.norm))
        return Norms(bounds, before.why)

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A square, a sum and a multiplication a number."""
        return Cost(flops=3 * sum(spec.numel for spec in specs))
