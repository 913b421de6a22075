"""The parts of net-best: a residual network to the prior's latent, and a surrogate of F1.

* :class:`LatentNetwork` is the preview's architecture (:mod:`adversary.blackbox.inversion`) behind features that are
  standardised by the training pairs.
* :class:`Surrogate` learns the other direction from the same pairs: images → features, differentiable, so that any
  white-box attack can be run on it instead of F1. Its error is measured on pairs that it has not seen (covariance R of
  :mod:`adversary.gaussian`, in the place of the decoder's own error), so that a fit weights each channel by how well
  the surrogate knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.blackbox.layouts import Standardised, leave, side_of
from splitsight.features import FeatureSpec

__all__ = ["LatentNetwork", "Surrogate"]

_WIDTHS = (32, 48, 64, 80, 96, 96)
"""Channels of the surrogate's levels, finest (half the image's resolution) first."""
_DEPTHS = (1, 2, 2, 1, 1, 1)
"""Residual blocks of each level: most where the pairs have most positions to learn from."""


class LatentNetwork(InversionNetwork):
    """Standardised features → scaled latents, with room for its measured errors.

    Args:
        features: the tensors that cross the split.
        latent: ``(C, h, w)`` of the prior.
        width: channels at the latent's resolution; twice as many at half of it.
        surrogate: whether there is room for the errors of a surrogate of F1, beside the network's own.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        latent: tuple[int, int, int],
        width: int = 48,
        *,
        surrogate: bool = True,
    ) -> None:
        super().__init__(list(features), latent, width)
        self.standard = Standardised(features)
        self.expect_errors(features=surrogate)

    def without_surrogate(self) -> None:
        """Leave out what only a fit through a surrogate reads; at L16 it is as large as the network."""
        assert self.errors is not None
        latent = self.errors.get_buffer("latent")
        self.expect_errors(features=False).to(latent.device).get_buffer("latent").copy_(latent)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each ``(B, …)``, as they were tapped → latents ``(B, C, h, w)``."""
        return super().forward(tuple(self.standard(features)))


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip = nn.Identity()
        if stride > 1 or channels != out:
            self.skip = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(channels, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.body(x))


class Surrogate(nn.Module):
    """Images → features of any layout, learnt from query pairs: what an attacker without F1 uses in its place.

    A residual network that halves the resolution until it is the features'. Each tensor is read at the level of its
    own resolution and scaled to what the pairs showed; one that was never negative in them is never negative here.

    Args:
        features: the tensors that cross the split.
        image: side of the images, in pixels.
    """

    rectified: Tensor

    def __init__(self, features: Sequence[FeatureSpec], image: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.standard = Standardised(features)
        self.register_buffer("rectified", torch.zeros(len(self.features), dtype=torch.bool))
        sides = [side_of(spec) for spec in self.features]
        grids = [math.ceil(image / 2 ** (i + 1)) for i in range(len(_WIDTHS))]
        # each tensor at the level whose grid is nearest to its own, the finer one of two
        self.read_at = [min(range(len(grids)), key=lambda i: abs(math.log(grids[i] / side))) for side in sides]
        self.levels = nn.ModuleList()
        channels = _WIDTHS[0]
        self.enter = nn.Sequential(nn.Conv2d(3, channels, 5, 2, 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        for i in range(max(self.read_at) + 1):
            blocks = [_Residual(channels, _WIDTHS[i], 1 if i == 0 else 2)]
            blocks += [_Residual(_WIDTHS[i], _WIDTHS[i]) for _ in range(_DEPTHS[i] - 1)]
            self.levels.append(nn.Sequential(*blocks))
            channels = _WIDTHS[i]
        self.exits = nn.ModuleList(
            leave(_WIDTHS[level], spec) for level, spec in zip(self.read_at, self.features, strict=True)
        )

    def measure(self, features: Sequence[np.ndarray]) -> None:
        """Take scale and sign of the features from ``(N, …)`` float32 arrays, one a tensor."""
        self.standard.measure(features)
        self.rectified.copy_(torch.tensor([bool((z >= 0).all()) for z in features]))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` in [0, 1] → features, each ``(B, …)``, in their own units."""
        h = self.enter(4 * images - 2)
        levels = []
        for level in self.levels:
            h = level(h)
            levels.append(h)
        read = [e(levels[at]) for e, at in zip(self.exits, self.read_at, strict=True)]
        found = self.standard.restored(read)
        return tuple(z.relu() if r else z for z, r in zip(found, self.rectified.tolist(), strict=True))
