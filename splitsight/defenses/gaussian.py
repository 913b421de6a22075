"""Independent Gaussian noise on every number, as published by several papers under the name of local privacy.

``z ← z + σ n``, n standard normal. Without a bound on ``‖z‖`` in front of it no noise guarantees anything.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Parameters, Protection
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Gaussian"]


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

    @model_validator(mode="after")
    def _one(self) -> _Parameters:
        if bool(self.sigma) == bool(self.ratio):
            raise ValueError("give either sigma or ratio, more than 0")
        return self


class _Noise(Protection):
    def __init__(self, parameters: _Parameters) -> None:
        super().__init__()
        self.strength = parameters

    def _scale(self, z: Tensor) -> Tensor | float:
        if self.strength.sigma:
            return self.strength.sigma
        return self.strength.ratio * z.flatten(1).std(1).view(-1, *[1] * (z.ndim - 1))

    def forward(self, features: tuple[Tensor, ...], draws: Draws) -> tuple[Tensor, ...]:
        return tuple(z + self._scale(z) * draws.normal(z) for z in features)

    def deviations(self, features: tuple[Tensor, ...]) -> list[float]:
        if self.strength.sigma:
            return [self.strength.sigma] * len(features)
        # of what was tapped: the noise is already in its spread
        part = self.strength.ratio / (1 + self.strength.ratio**2) ** 0.5
        return [part * float(z.flatten(1).std(1).mean()) for z in features]


@DEFENSES.register("gaussian")
class Gaussian(Defense[_Parameters]):
    """Gaussian noise of one strength on every number; guarantees nothing by itself."""

    name = "gaussian"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: tuple[FeatureSpec, ...]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return _Noise(self.parameters), None

    def cost(self, specs: tuple[FeatureSpec, ...]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
