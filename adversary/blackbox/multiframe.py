"""Several frames at once (equation 13): a 1 × 1 convolution over the K stacked features, then one F_u for each frame.

``[z'_1 … z'_K] = W ∗ [z_1 … z_K]`` with W over the K·C channels of each position (of tokens: of each token; of a
vector: its numbers), and ``x̂_k = D(F_u(z'_k))`` with one and the same F_u. :class:`FrameMixer` begins at the identity,
so that training starts where single frames are. Where K·C is more than :data:`FULL`, W is the identity plus a matrix of
low rank: a full one would be larger than all the rest.

:class:`FrameControl` is the comparison with as many parameters and no look at other frames: each frame's features go
through two 1 × 1 convolutions, ``z'_k = z_k + W₂ relu(W₁ z_k)``, whose hidden channels (K² C / 2) make up for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from splitsight.features import FeatureSpec

__all__ = ["FULL", "FrameControl", "FrameMixer"]

FULL = 2048
"""Stacked channels, at most, that are mixed by a full matrix."""
_RANK = 256
_FACTORS = 3_000_000
"""Parameters, at most, of the two factors of a larger one; never less than a rank of 16."""


class _LowRank(nn.Module):
    """``x + B A x + b``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rank = max(16, min(_RANK, _FACTORS // (2 * channels)))
        self.down, self.up = nn.Linear(channels, rank, bias=False), nn.Linear(rank, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


def _mixing(channels: int) -> nn.Module:
    """From K·C channels to as many; the identity to begin with."""
    if channels > FULL:
        return _LowRank(channels)
    layer = nn.Linear(channels, channels)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FrameMixer(nn.Module):
    """The convolution of equation 13.

    Args:
        features: of one frame.
        frames: K.
    """

    def __init__(self, features: Sequence[FeatureSpec], frames: int) -> None:
        super().__init__()
        self.features, self.frames = tuple(features), frames
        self.layers = nn.ModuleList(_mixing(frames * spec.channels) for spec in self.features)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of whole windows, each ``(B · K, …)`` with a window's frames side by side → the same shapes."""
        out = []
        for z, layer, spec in zip(features, self.layers, self.features, strict=True):
            frames = spec.channels_last(z.unflatten(0, (-1, self.frames))).movedim(1, -2)
            mixed = layer(frames.flatten(-2)).unflatten(-1, (self.frames, -1)).movedim(-2, 1)
            out.append(spec.from_channels_last(mixed).flatten(0, 1))
        return out


class FrameControl(nn.Module):
    """As many parameters, each frame by itself.

    Args:
        features: of one frame.
        frames: K of the mixer that it is compared with.
    """

    def __init__(self, features: Sequence[FeatureSpec], frames: int) -> None:
        super().__init__()
        self.features, self.frames = tuple(features), frames
        self.layers = nn.ModuleList()
        for spec in self.features:
            c = spec.channels
            with torch.device("meta"):
                mixer = sum(p.numel() for p in _mixing(frames * c).parameters())
            # c·h + h + h·c + c parameters, as many as the mixer's
            hidden = max(1, round((mixer - c) / (2 * c + 1)))
            up = nn.Linear(hidden, c)
            self.layers.append(nn.Sequential(nn.Linear(c, hidden), nn.ReLU(), up))
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, each ``(B · K, …)`` → the same shapes."""
        out = []
        for z, layer, spec in zip(features, self.layers, self.features, strict=True):
            last = spec.channels_last(z)
            out.append(spec.from_channels_last(last + layer(last)))
        return out
