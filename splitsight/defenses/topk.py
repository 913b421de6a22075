"""Top-k: of each tensor only the part of its numbers with the largest magnitudes is sent, zero in place of the rest.

Sparse activations as in Stich et al. (Sparsified SGD, NeurIPS 2018), on features. What is kept is kept exactly and
its places are visible, so an attacker matches it there alone (as DRAG, arXiv 2509.11724, does under pruning): see
``support``. The numbers that are not sent are known to be small, too.

The server needs nothing; zeros compress, so what is saved shows with ``--compression zstd``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Norms, Parameters, Protection
from splitsight.features import FeatureSpec

__all__ = ["TopK"]


class _Parameters(Parameters):
    keep: float = Field(gt=0, le=1, description="part of each tensor's numbers that is sent, more than 0 and at most 1")


class _Largest(Protection):
    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    @torch.no_grad()
    def _mask(self, z: Tensor) -> Tensor:
        size = z.flatten(1).abs()
        count = max(1, math.ceil(self.keep * size.shape[1]))
        return torch.zeros_like(size).scatter_(1, size.topk(count, dim=1).indices, 1).bool().view_as(z)

    def expected(self, features: Features) -> Features:
        return tuple(z * self._mask(z) for z in features)

    def expected_on(self, features: Features, support: Features) -> Features:
        return tuple(z * mask for z, mask in zip(features, support, strict=True))

    def support(self, tapped: Features) -> Features:
        """The largest numbers that came: exactly those that were sent, or behind noise the likeliest."""
        return tuple(self._mask(z) & (z != 0) for z in tapped)


@DEFENSES.register("topk")
class TopK(Defense[_Parameters]):
    """Sends only the largest numbers of each tensor, zeros in place of the rest."""

    name = "topk"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Selection on the edge, nothing on the server."""
        return _Largest(self.parameters.keep), None

    def norms(self, before: Norms) -> Norms:
        """As before: zeros enlarge no norm."""
        return before

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A magnitude, a comparison and a multiplication a number; finding the k-th largest is not counted."""
        return Cost(flops=3 * sum(spec.numel for spec in specs))
