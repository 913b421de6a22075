"""Features of any layout on the way into a network, and out of one.

A network works on maps ``(B, C, h, w)``. :func:`entry` brings a tapped tensor there, :func:`leave` brings a map back:

* a map, or tokens that are a square, lie where they are (a class token is added everywhere, or read from the mean);
* tokens that are no square are mixed into, and out of, 4 × 4 cells by one matrix over the positions, behind one over
  the channels;
* a vector becomes 4 × 4 cells by a dense layer; one of many numbers by two of low rank, so that no layer has much more
  than :data:`_DENSE` parameters.

:class:`Standardised` gives each channel zero mean and unit variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.features import FeatureSpec

__all__ = ["CELLS", "Standardised", "dense", "entry", "leave", "resized", "side_of"]

CELLS = 4
"""Side of the grid that features without one are spread over, or read from."""
_DENSE = 1_500_000
"""Parameters of a dense layer, at most, before it is factorised."""
_LEAST_RANK = 16


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(B, C, h, w)`` → ``(B, C, *size)``, bilinear; averages where it shrinks."""
    if maps.shape[-2:] == tuple(size):
        return maps
    shrinks = maps.shape[-2] > size[-2] or maps.shape[-1] > size[-1]
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def dense(numbers: int, out: int) -> nn.Module:
    """A linear layer ``(…, numbers)`` → ``(…, out)``, of low rank where a full one would be too large."""
    if numbers * out <= _DENSE:
        return nn.Linear(numbers, out)
    rank = max(_LEAST_RANK, _DENSE // (numbers + out))
    return nn.Sequential(nn.Linear(numbers, rank), nn.Linear(rank, out))


def side_of(spec: FeatureSpec) -> int:
    """Longer side of the grid that a tensor has on its way in and out: its own, or that of the cells."""
    return CELLS if spec.grid is None else max(spec.grid)


class _Grid(nn.Module):
    """A tensor with a grid ``(B, *shape)`` → ``(B, width, h, w)``."""

    def __init__(self, spec: FeatureSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.project = nn.Conv2d(spec.channels, width, 1)
        self.summary = nn.Linear(spec.channels, width) if spec.class_token else None

    def forward(self, z: Tensor) -> Tensor:
        grid = self.project(self.spec.as_map(z))
        return grid if self.summary is None else grid + self.summary(z[:, 0])[:, :, None, None]


class _Sequence(nn.Module):
    """Tokens ``(B, N, D)`` of no square → ``(B, width, 4, 4)``: each projected, then mixed into cells."""

    def __init__(self, spec: FeatureSpec, width: int) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(spec.channels, width), dense(spec.positions, CELLS**2)

    def forward(self, z: Tensor) -> Tensor:
        return self.mix(self.project(z).movedim(1, 2)).unflatten(2, (CELLS, CELLS))


def entry(spec: FeatureSpec, width: int) -> nn.Module:
    """One tapped tensor ``(B, *shape)`` → ``(B, width, h, w)``, on its own grid or on 4 × 4 cells."""
    if spec.grid is not None:
        return _Grid(spec, width)
    if spec.layout == "tokens":
        return _Sequence(spec, width)
    return nn.Sequential(nn.Flatten(), dense(spec.numel, width * CELLS**2), nn.Unflatten(1, (width, CELLS, CELLS)))


class _ToGrid(nn.Module):
    """``(B, C, h, w)`` → a tensor with a grid."""

    def __init__(self, channels: int, spec: FeatureSpec) -> None:
        super().__init__()
        assert spec.grid is not None
        self.spec, self.size = spec, spec.grid
        self.read = nn.Conv2d(channels, spec.channels, 1)
        self.summary = nn.Linear(channels, spec.channels) if spec.class_token else None

    def forward(self, x: Tensor) -> Tensor:
        positions = self.read(resized(x, self.size)).movedim(1, -1)
        if self.spec.layout == "tokens":
            positions = positions.flatten(1, 2)
        if self.summary is not None:
            positions = torch.cat([self.summary(x.mean((2, 3)))[:, None], positions], 1)
        return self.spec.from_channels_last(positions)


class _ToSequence(nn.Module):
    """``(B, C, h, w)`` → tokens ``(B, N, D)`` of no square."""

    def __init__(self, channels: int, spec: FeatureSpec) -> None:
        super().__init__()
        self.cells = nn.AdaptiveAvgPool2d(CELLS)
        self.mix, self.read = dense(CELLS**2, spec.positions), nn.Linear(channels, spec.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.mix(self.cells(x).flatten(2)).movedim(1, 2))


def leave(channels: int, spec: FeatureSpec) -> nn.Module:
    """``(B, channels, h, w)`` → a tensor ``(B, *shape)``: the inverse of :func:`entry`."""
    if spec.grid is not None:
        return _ToGrid(channels, spec)
    if spec.layout == "tokens":
        return _ToSequence(channels, spec)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(CELLS),
        nn.Flatten(),
        dense(channels * CELLS**2, spec.numel),
        nn.Unflatten(1, spec.shape),
    )


class Standardised(nn.Module):
    """Features with zero mean and unit variance a channel, over the pairs that :meth:`measure` saw.

    Args:
        features: the tensors that cross the split.
    """

    def __init__(self, features: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.features = tuple(features)
        for i, spec in enumerate(self.features):
            self.register_buffer(f"mean{i}", torch.zeros(spec.channels))
            self.register_buffer(f"scale{i}", torch.ones(spec.channels))

    def measure(self, features: Sequence[np.ndarray]) -> None:
        """Set both from ``(N, …)`` float32 arrays, one a tensor."""
        for i, (array, spec) in enumerate(zip(features, self.features, strict=True)):
            if spec.channel_axis is None:
                array = array.reshape(len(array), -1)
            channel = 1 if spec.channel_axis is None else 1 + spec.channel_axis
            axes = tuple(axis for axis in range(array.ndim) if axis != channel)
            mean, std = array.mean(axes, dtype=np.float64), array.std(axes, dtype=np.float64)
            # a channel that never moves says nothing, and must not be blown up if it does so later
            floor = max(1e-3 * float(std.mean()), 1e-6)
            self.get_buffer(f"mean{i}").copy_(torch.from_numpy(mean))
            self.get_buffer(f"scale{i}").copy_(torch.from_numpy(1 / np.maximum(std, floor)))

    def _moments(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of one tensor, ready to broadcast."""
        spec = self.features[index]
        return spec.per_channel(self.get_buffer(f"mean{index}")), spec.per_channel(self.get_buffer(f"scale{index}"))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, each ``(B, …)`` → the same shapes."""
        moments = [self._moments(i) for i in range(len(self.features))]
        return [(z - mean) * scale for z, (mean, scale) in zip(features, moments, strict=True)]

    def restored(self, standard: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of :meth:`forward`."""
        moments = [self._moments(i) for i in range(len(self.features))]
        return [z / scale + mean for z, (mean, scale) in zip(standard, moments, strict=True)]
