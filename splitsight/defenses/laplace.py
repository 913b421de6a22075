"""Laplace noise on every number: ``z ← z + b n``, n with density ``½ exp(−|n|)``.

Behind a ``clip:norm=C,order=1`` of ‖z‖₁ ≤ C it is the Laplace mechanism (Dwork et al., TCC 2006) with sensitivity 2C,
since any two frames are neighbours (:mod:`splitsight.accounting`): ε = 2C/b, with δ = 0. The standard deviation is
``√2 b``. As ‖z‖₁ grows with the number of entries and ‖z‖₂ with its root, Gaussian noise is smaller for features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator

from splitsight.accounting import Mechanism, laplace_multiplier
from splitsight.defenses import DEFENSES, Cost, Defense, Features, Law, Norms, Parameters, Protection, Scale
from splitsight.defenses._noise import needed, promise
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Laplace"]


class _Parameters(Parameters):
    scale: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="b, in the features' unit")
    epsilon: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="ε of a frame, behind a clip of order 1; takes the b for it",
    )

    @model_validator(mode="after")
    def _one(self) -> _Parameters:
        if bool(self.scale) == (self.epsilon is not None):
            raise ValueError("give either scale or epsilon, more than 0")
        return self


class _Noise(Protection):
    law: Law | None = "laplace"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, features: Features, draws: Draws) -> Features:
        return tuple(z + self.scale * draws.laplace(z) for z in features)

    def deviations(self, features: Features) -> list[Scale]:
        return [math.sqrt(2) * self.scale] * len(features)


@DEFENSES.register("laplace")
class Laplace(Defense[_Parameters]):
    """Laplace noise on every number; behind a clip of order 1 differentially private with δ = 0."""

    name = "laplace"
    Parameters: ClassVar[type[Parameters]] = _Parameters
    _norm: float | None = None

    def placed(self, before: Norms) -> Laplace:
        """With the bound that it is calibrated to, where ε is asked for or follows."""
        placed = Laplace(self.parameters)
        placed._norm = before.bound(1) if self.parameters.epsilon is None else needed(self, before, 1)
        return placed

    @property
    def scale(self) -> float:
        """b in the features' unit."""
        p = self.parameters
        if p.epsilon is None:
            return p.scale
        norm = needed(self, Norms(), 1) if self._norm is None else self._norm
        return laplace_multiplier(p.epsilon) * 2 * norm

    @property
    def mechanism(self) -> Mechanism | None:
        """Behind a clip."""
        return None if self._norm is None else Mechanism("laplace", self.scale / (2 * self._norm))

    def guarantee(self) -> str | None:
        """ε of a frame, behind a clip."""
        return (
            None if self._norm is None else promise(self.mechanism, f"‖z‖₁ ≤ {self._norm:g}", f"b = {self.scale:.4g}")
        )

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return _Noise(self.scale), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
