"""The parts of net-best: a residual network to the prior's latent, and a student that stands in for F1.

* :class:`LatentNetwork` is the preview's architecture (:mod:`adversary.blackbox.inversion`) behind features that are
  standardised by the training pairs.
* :class:`Student` learns the other direction from the same pairs: images → features, differentiable. What is known of
  F1 by its answers alone becomes a head that every white-box attack can be turned loose on. How wrong it is, is
  measured on pairs that it has not seen (covariance R of :mod:`adversary.gaussian`, which takes the place of the
  decoder's own error there), so that a fit trusts each channel as far as the student knows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.blackbox.unet import Standardised

__all__ = ["LatentNetwork", "Student"]

_WIDTHS = (32, 48, 64, 80, 96, 96)
"""Channels of the student's levels, finest (half the image's resolution) first."""
_DEPTHS = (1, 2, 2, 1, 1, 1)
"""Residual blocks of each level: most where the pairs have most positions to learn from."""
_CELLS = 4
"""Side of the grid from which features without one are read."""


class LatentNetwork(InversionNetwork):
    """Standardised features → scaled latents, with room for its measured errors.

    Args:
        features: shapes of the tensors that cross the split, without batch dimension.
        latent: ``(C, h, w)`` of the prior.
        width: channels at the latent's resolution; twice as many at half of it.
        student: whether there is room for what a student of F1 is wrong about, beside the network's own errors.
    """

    def __init__(
        self,
        features: Sequence[tuple[int, ...]],
        latent: tuple[int, int, int],
        width: int = 48,
        *,
        student: bool = True,
    ) -> None:
        super().__init__(list(features), latent, width)
        self.standard = Standardised(features)
        self.expect_errors(features=student)

    def without_student(self) -> None:
        """Leave out what only a fit through a student looks at; at L16 it is as large as the network."""
        assert self.errors is not None
        latent = self.errors.latent
        self.expect_errors(features=False).to(latent.device).latent.copy_(latent)

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


class _Map(nn.Module):
    """A level's map → ``(B, C, h, w)``."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = shape[1:]
        self.read = nn.Conv2d(channels, shape[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        return self.read(x)


class _Tokens(nn.Module):
    """A level's map → ``(B, N, D)``: the square that the tokens came from, the class token read from all of it."""

    def __init__(self, channels: int, tokens: int, width: int) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        self.grid = _Map(channels, (width, self.side, self.side))
        self.summary = nn.Linear(channels, width) if self.side**2 != tokens else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.grid(x).flatten(2).movedim(1, 2)
        if self.summary is None:
            return tokens
        return torch.cat([self.summary(x.mean((2, 3)))[:, None], tokens], 1)


class _Numbers(nn.Module):
    """A level's map → ``(B, *shape)``, by a dense layer on 4 × 4 cells."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.read = nn.Sequential(
            nn.AdaptiveAvgPool2d(_CELLS),
            nn.Flatten(),
            nn.Linear(channels * _CELLS**2, math.prod(shape)),
            nn.Unflatten(1, shape),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)


def _square(shape: tuple[int, ...]) -> bool:
    """Whether tokens are a square, or one more with the class token first."""
    return len(shape) == 2 and math.isqrt(shape[0]) > 1 and shape[0] - math.isqrt(shape[0]) ** 2 in (0, 1)


class Student(nn.Module):
    """Images → features of any shape, learnt from query pairs: what an attacker without F1 has for F1.

    A residual network that halves the resolution until it is the features'. Each tensor is read at the level of its
    own resolution and scaled to what the pairs showed; one that was never negative in them is never negative here.

    Args:
        features: shapes of the tensors that cross the split, without batch dimension.
        image: side of the images, in pixels.
    """

    def __init__(self, features: Sequence[tuple[int, ...]], image: int) -> None:
        super().__init__()
        self.shapes = [tuple(s) for s in features]
        self.standard = Standardised(features)
        self.register_buffer("rectified", torch.zeros(len(self.shapes), dtype=torch.bool))
        sides = [self._side(shape) for shape in self.shapes]
        grids = [math.ceil(image / 2 ** (i + 1)) for i in range(len(_WIDTHS))]
        self.read_at = [next((i for i, g in enumerate(grids) if g <= side), len(grids) - 1) for side in sides]
        self.levels = nn.ModuleList()
        channels = _WIDTHS[0]
        self.enter = nn.Sequential(nn.Conv2d(3, channels, 5, 2, 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        for i in range(max(self.read_at) + 1):
            blocks = [_Residual(channels, _WIDTHS[i], 1 if i == 0 else 2)]
            blocks += [_Residual(_WIDTHS[i], _WIDTHS[i]) for _ in range(_DEPTHS[i] - 1)]
            self.levels.append(nn.Sequential(*blocks))
            channels = _WIDTHS[i]
        self.exits = nn.ModuleList(
            self._exit(_WIDTHS[level], shape) for level, shape in zip(self.read_at, self.shapes, strict=True)
        )

    @staticmethod
    def _side(shape: tuple[int, ...]) -> int:
        if len(shape) == 3:
            return max(shape[1:])
        return math.isqrt(shape[0]) if _square(shape) else _CELLS

    @staticmethod
    def _exit(channels: int, shape: tuple[int, ...]) -> nn.Module:
        if len(shape) == 3:
            return _Map(channels, shape)
        return _Tokens(channels, *shape) if _square(shape) else _Numbers(channels, shape)

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
