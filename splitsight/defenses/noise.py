"""Plain noise on every number, as several papers publish it under the name of local differential privacy. No guarantee.

``z ← z + σ n``, n standard normal or a Laplace variable of unit variance, with σ in the features' unit or as a part of
each frame's own spread. Without a bound on ‖z‖ no σ hides the difference between any two frames, and a spread taken
from the frame tells about the frame. This defence therefore states nothing, behind a clip neither: ``gaussian`` and
``laplace`` do, behind one. What it withstands is for an attack to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Law, Parameters, Protection, Scale
from splitsight.defenses._noise import spread, spread_in_noise
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Noise"]


class _Parameters(Parameters):
    sigma: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="standard deviation, in the features' unit"
    )
    ratio: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="standard deviation as a part of each frame's own, over all numbers of a tensor",
    )
    law: Law = Field(default="gaussian", description="distribution: gaussian or laplace")

    @model_validator(mode="after")
    def _one(self) -> _Parameters:
        if bool(self.sigma) == bool(self.ratio):
            raise ValueError("give either sigma or ratio, more than 0")
        return self


class _Noise(Protection):
    def __init__(self, sigma: float, ratio: float, law: Law) -> None:
        super().__init__()
        self.sigma, self.ratio, self.law = sigma, ratio, law

    def _drawn(self, z: Tensor, draws: Draws) -> Tensor:
        return draws.normal(z) if self.law == "gaussian" else draws.laplace(z) / math.sqrt(2)

    def forward(self, features: Features, draws: Draws) -> Features:
        return tuple(z + (self.sigma or self.ratio * spread(z)) * self._drawn(z, draws) for z in features)

    def deviations(self, features: Features) -> list[Scale]:
        return [self.sigma or spread_in_noise(z, self.ratio) for z in features]


@DEFENSES.register("noise")
class Noise(Defense[_Parameters]):
    """Plain noise on every number, as published under the name of local differential privacy: no guarantee."""

    name = "noise"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        p = self.parameters
        return _Noise(p.sigma, p.ratio, p.law), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
