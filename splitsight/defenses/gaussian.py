"""Gaussian noise on every number: ``z ← z + σ n``, n standard normal.

Behind a ``clip`` of ‖z‖₂ ≤ C it is the Gaussian mechanism with sensitivity 2C, since any two frames are neighbours
(:mod:`splitsight.accounting`). ``epsilon`` and ``delta`` take the least σ for that (the analytic Gaussian mechanism,
Balle and Wang, ICML 2018): 1.2 C at ε = 8, δ = 1e-5. ``sigma`` states it, and ε follows.

Without a bound on ‖z‖ in front of it, or with ``ratio`` (a part of the frame's own spread, which tells about the
frame), no noise guarantees anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from splitsight.accounting import DELTA, Mechanism, gaussian_multiplier
from splitsight.defenses import DEFENSES, Cost, Defense, Features, Law, Norms, Parameters, Protection, Scale
from splitsight.defenses._noise import needed, promise, spread, spread_in_noise
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
    epsilon: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="ε of a frame, behind a clip; takes the least sigma for it"
    )
    delta: float = Field(default=DELTA, gt=0, lt=1, description="δ of a frame, behind a clip")

    @model_validator(mode="after")
    def _one(self) -> _Parameters:
        if sum([bool(self.sigma), bool(self.ratio), self.epsilon is not None]) != 1:
            raise ValueError("give either sigma or ratio or epsilon, more than 0")
        return self


class _Noise(Protection):
    law: Law | None = "gaussian"

    def __init__(self, sigma: float, ratio: float) -> None:
        super().__init__()
        self.sigma, self.ratio = sigma, ratio

    def _scale(self, z: Tensor) -> Tensor | float:
        return self.sigma or self.ratio * spread(z)

    def forward(self, features: Features, draws: Draws) -> Features:
        return tuple(z + self._scale(z) * draws.normal(z) for z in features)

    def deviations(self, features: Features) -> list[Scale]:
        return [self.sigma or spread_in_noise(z, self.ratio) for z in features]


@DEFENSES.register("gaussian")
class Gaussian(Defense[_Parameters]):
    """Gaussian noise on every number; behind a clip differentially private, without one nothing is guaranteed."""

    name = "gaussian"
    Parameters: ClassVar[type[Parameters]] = _Parameters
    _norm: float | None = None

    def placed(self, before: Norms) -> Gaussian:
        """With the bound that it is calibrated to, where ε is asked for or follows."""
        placed = Gaussian(self.parameters)
        if not self.parameters.ratio:
            asked = self.parameters.epsilon is not None
            placed._norm = needed(self, before, 2) if asked else before.bound(2)
        return placed

    @property
    def sigma(self) -> float:
        """σ in the features' unit; 0 where it is a part of each frame's own spread."""
        p = self.parameters
        if p.epsilon is None:
            return p.sigma
        norm = needed(self, Norms(), 2) if self._norm is None else self._norm
        return gaussian_multiplier(p.epsilon, p.delta) * 2 * norm

    @property
    def mechanism(self) -> Mechanism | None:
        """Behind a clip."""
        return (
            None if self._norm is None else Mechanism("gaussian", self.sigma / (2 * self._norm), self.parameters.delta)
        )

    def guarantee(self) -> str | None:
        """(ε, δ) of a frame, behind a clip."""
        return (
            None if self._norm is None else promise(self.mechanism, f"‖z‖₂ ≤ {self._norm:g}", f"σ = {self.sigma:.4g}")
        )

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return _Noise(self.sigma, self.parameters.ratio), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
