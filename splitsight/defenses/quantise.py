"""Quantisation: each tensor of a frame takes one of ``2^b`` evenly spaced values between its least and its largest.

``z ← lo + Δ · round((z − lo) / Δ)`` with ``Δ = (hi − lo) / (2^b − 1)``, affine as by Jacob et al. (CVPR 2018), with a
scale for each tensor and frame. The gradient passes straight through (Bengio et al., arXiv 1308.3432). Few values
compress well: what is saved shows with ``--compression zstd``, which finds them again; without it, nothing is.
Rounding may enlarge the norm, so quantise behind noise, not between a clip and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Parameters, Protection
from splitsight.features import FeatureSpec

__all__ = ["Quantise"]


class _Parameters(Parameters):
    bits: int = Field(ge=1, le=16, description="of each number, 1 to 16")


class _Rounded(Protection):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.steps = 2**bits - 1

    @torch.no_grad()
    def _rounded(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        low, high = (v.view(-1, *[1] * (z.ndim - 1)) for v in (flat.amin(1), flat.amax(1)))
        step = ((high - low) / self.steps).clamp_min(torch.finfo(z.dtype).tiny)
        return low + step * ((z - low) / step).round()

    def expected(self, features: Features) -> Features:
        return tuple(z + (self._rounded(z) - z).detach() for z in features)


@DEFENSES.register("quantise")
class Quantise(Defense[_Parameters]):
    """Rounds each tensor to a few evenly spaced values, which compress well."""

    name = "quantise"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Rounding on the edge, nothing on the server: it gets the values, not their indices."""
        return _Rounded(self.parameters.bits), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """Least, largest, and four operations a number."""
        return Cost(flops=6 * sum(spec.numel for spec in specs))
