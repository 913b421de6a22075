"""Channel dropout: of each tensor a part of the channels, drawn anew for each frame, is zero; the rest is scaled up.

``z_c ← z_c · m_c · C / (C − k)`` with k of C channels dropped, all choices equally likely (SpatialDropout, Tompson et
al., CVPR 2015, at inference), so that the mean over draws is z. The mask of a frame is visible in it, and an attacker
matches the channels that came; over the frames of a static scene every channel comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Parameters, Protection, Scale
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Dropout"]


class _Parameters(Parameters):
    p: float = Field(gt=0, lt=1, description="part of the channels that is dropped, between 0 and 1")


class _Dropped(Protection):
    def __init__(self, p: float, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.kept = [max(1, spec.channels - round(p * spec.channels)) for spec in specs]

    def _scales(self) -> list[float]:
        return [spec.channels / kept for spec, kept in zip(self.specs, self.kept, strict=True)]

    def _largest(self, scores: Tensor, i: int) -> Tensor:
        """``(B, C)`` → what broadcasts against the tensor, true for the channels with the largest scores."""
        chosen = torch.zeros_like(scores).scatter_(1, scores.topk(self.kept[i], dim=1).indices, 1).bool()
        return torch.stack([self.specs[i].per_channel(row) for row in chosen])

    def forward(self, features: Features, draws: Draws) -> Features:
        drawn = [draws.uniform(z.new_empty(len(z), s.channels)) for z, s in zip(features, self.specs, strict=True)]
        scales = self._scales()
        return tuple(z * (self._largest(drawn[i], i) * scales[i]) for i, z in enumerate(features))

    def expected_on(self, features: Features, support: Features) -> Features:
        return tuple(z * mask * s for z, mask, s in zip(features, support, self._scales(), strict=True))

    def support(self, tapped: Features) -> Features:
        """The channels that came: those with the largest energy. One that is zero in itself is left out: it agrees."""
        found = []
        for i, (z, spec) in enumerate(zip(tapped, self.specs, strict=True)):
            energy = spec.channels_last(z).square().reshape(len(z), -1, spec.channels).sum(1)
            mask = self._largest(energy, i) & torch.stack([spec.per_channel(row) for row in energy > 0])
            found.append(mask.expand_as(z))
        return tuple(found)

    def carried(self, deviations: Sequence[Scale]) -> list[Scale]:
        return [d * s for d, s in zip(deviations, self._scales(), strict=True)]


@DEFENSES.register("dropout")
class Dropout(Defense[_Parameters]):
    """Drops channels at random, others for each frame; the rest is scaled up to keep the mean."""

    name = "dropout"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """A mask on the edge, nothing on the server."""
        return _Dropped(self.parameters.p, specs), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication a number."""
        return Cost(flops=sum(spec.numel for spec in specs))
