"""F_u, the network that inverts features: ``x̂ = D(F_u(z))`` (equation 11 of "Unlocking Visual Secrets").

As published: resize the features, then blocks of (transposed) convolution, batch norm and ReLU in the shape of a U,
and a normalised output. The same network is aimed at three things, which is the comparison the paper makes:

* ``pixels`` (net-do): the image itself, by a sigmoid in [0, 1];
* ``latent`` (net-db): what the prior's decoder takes, by batch norm of a learnt mean and scale a channel;
* ``noise`` (net-dmb): what the prior's sampler takes, ``v_n = (v − mean v) / std v`` for each image.

**Equal size.** Features are resized to a quarter of the image's resolution, where the U begins. Two blocks of 4 × 4
convolutions lead from there to the output, with a stride that fits its resolution: transposed by 2 towards pixels, 1
to a latent at a quarter, 2 down to a coarser latent. Weights do not depend on strides, so the three differ in the
output's channels alone (3 or the latent's), well under 2 %.

**Any feature.** A map is projected where it is and then resized (which a 1 × 1 projection commutes with); a sequence of
tokens is laid out as the square it came from, its class token added everywhere; a sequence that is no square, and one
embedding vector, become 4 × 4 cells by a dense layer. Several tensors are added up. Before all that each channel is
standardised by what the training pairs showed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from adversary.whitebox.variables import normalised

__all__ = ["FeatureUNet", "Standardised", "entry"]

_CELLS = 4
"""Side of the grid that features without one are spread over."""
OUTPUTS = ("pixels", "latent", "noise")


class Standardised(nn.Module):
    """Features with zero mean and unit variance a channel, over the pairs that :meth:`measure` saw.

    The channel is the first dimension of a map and the last one of tokens or a vector.

    Args:
        shapes: of the features, without batch dimension.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = [tuple(s) for s in shapes]
        for i, shape in enumerate(self.shapes):
            channels = shape[0] if len(shape) == 3 else shape[-1]
            self.register_buffer(f"mean{i}", torch.zeros(channels))
            self.register_buffer(f"scale{i}", torch.ones(channels))

    def measure(self, features: Sequence[np.ndarray]) -> None:
        """Set both from ``(N, …)`` float32 arrays, one a tensor."""
        for i, (array, shape) in enumerate(zip(features, self.shapes, strict=True)):
            axes = (0, 2, 3) if len(shape) == 3 else tuple(range(array.ndim - 1))
            mean, std = array.mean(axes, dtype=np.float64), array.std(axes, dtype=np.float64)
            # a channel that never moves says nothing, and must not be blown up if it does so later
            floor = max(1e-3 * float(std.mean()), 1e-6)
            self.get_buffer(f"mean{i}").copy_(torch.from_numpy(mean))
            self.get_buffer(f"scale{i}").copy_(torch.from_numpy(1 / np.maximum(std, floor)))

    def _moments(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of one tensor, ready to broadcast."""
        mean, scale = self.get_buffer(f"mean{index}"), self.get_buffer(f"scale{index}")
        return (mean[:, None, None], scale[:, None, None]) if len(self.shapes[index]) == 3 else (mean, scale)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, each ``(B, …)`` → the same shapes."""
        moments = [self._moments(i) for i in range(len(self.shapes))]
        return [(z - mean) * scale for z, (mean, scale) in zip(features, moments, strict=True)]

    def restored(self, standard: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of :meth:`forward`."""
        moments = [self._moments(i) for i in range(len(self.shapes))]
        return [z / scale + mean for z, (mean, scale) in zip(standard, moments, strict=True)]


class _Tokens(nn.Module):
    """Tokens ``(B, N, D)`` → ``(B, width, side, side)``; N is a square, or one more with the class token first."""

    def __init__(self, tokens: int, channels: int, width: int) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        self.classed = self.side**2 != tokens
        self.tokens = nn.Linear(channels, width)
        self.summary = nn.Linear(channels, width) if self.classed else None

    def forward(self, z: Tensor) -> Tensor:
        grid = self.tokens(z[:, 1:] if self.classed else z).movedim(1, 2).unflatten(2, (self.side, self.side))
        return grid if self.summary is None else grid + self.summary(z[:, 0])[:, :, None, None]


class _Sequence(nn.Module):
    """Tokens ``(B, N, D)`` of no square → ``(B, width, 4, 4)``: each projected, then mixed into cells."""

    def __init__(self, tokens: int, channels: int, width: int) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(channels, width), nn.Linear(tokens, _CELLS**2)

    def forward(self, z: Tensor) -> Tensor:
        return self.mix(self.project(z).movedim(1, 2)).unflatten(2, (_CELLS, _CELLS))


def entry(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """One tapped tensor → ``(B, width, side, side)`` on its own grid, and that grid's side.

    Args:
        shape: ``(C, H, W)``, ``(N, D)``, or anything else, which is taken as one vector.
        width: channels.
    """
    if len(shape) == 3:
        return nn.Conv2d(shape[0], width, 1), max(shape[1:])
    if len(shape) == 2:
        side = math.isqrt(shape[0])
        if side > 1 and shape[0] - side**2 in (0, 1):
            return _Tokens(*shape, width), side
        return _Sequence(*shape, width), _CELLS
    numbers = math.prod(shape)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(numbers, width * _CELLS**2), nn.Unflatten(1, (width, _CELLS, _CELLS)))
    return dense, _CELLS


def _block(channels: int, out: int, kernel: int = 3, stride: float = 1) -> nn.Sequential:
    """(De)conv + BN + ReLU; a stride of ½ doubles the resolution, by a transposed convolution."""
    layers: list[nn.Module] = []
    if stride < 1:
        layers.append(nn.ConvTranspose2d(channels, out, kernel, 2, (kernel - 2) // 2, bias=False))
    elif stride > 1:
        layers.append(nn.Conv2d(channels, out, kernel, 2, (kernel - 1) // 2, bias=False))
    else:
        before, after = (kernel - 1) // 2, kernel // 2
        layers += [nn.ZeroPad2d((before, after) * 2), nn.Conv2d(channels, out, kernel, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(out), nn.ReLU())


def _strides(grid: int, side: int) -> tuple[float, float]:
    """Of the two blocks that lead from the grid to an output of ``side``, as near as powers of two come."""
    for ratio, strides in ((4, (0.5, 0.5)), (2, (0.5, 1)), (1, (1, 1)), (0.5, (1, 2))):
        if side >= ratio * grid:
            return strides
    return (2, 2)


class FeatureUNet(nn.Module):
    """F_u for one split point.

    Args:
        features: shapes of the tensors that cross the split, without batch dimension.
        output: what it is aimed at: ``pixels``, ``latent`` or ``noise``.
        shape: ``(C, h, w)`` of that.
        image: side of the image, in pixels; fixes the grid of the U.
        width: channels at the top of the U; twice and four times as many below.
    """

    def __init__(
        self, features: Sequence[tuple[int, ...]], output: str, shape: tuple[int, int, int], image: int, width: int = 48
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"unknown output '{output}'")
        self.output, self.shape = output, tuple(shape)
        # a multiple of four, which is halved twice
        self.grid = 4 * math.ceil(image / 16)
        w = width
        self.standard = Standardised(features)
        self.entries = nn.ModuleList(entry(tuple(s), w)[0] for s in features)
        self.enter = nn.Sequential(nn.BatchNorm2d(w), nn.ReLU())
        self.top = nn.Sequential(_block(w, w), _block(w, w))
        self.middle = nn.Sequential(_block(w, 2 * w, 3, 2), _block(2 * w, 2 * w), _block(2 * w, 2 * w))
        self.bottom = nn.Sequential(_block(2 * w, 4 * w, 3, 2), _block(4 * w, 4 * w), _block(4 * w, 4 * w))
        self.rise = _block(4 * w, 2 * w, 4, 0.5)
        self.middle_up = nn.Sequential(_block(4 * w, 2 * w), _block(2 * w, 2 * w))
        self.rise_again = _block(2 * w, w, 4, 0.5)
        self.top_up = nn.Sequential(_block(2 * w, w), _block(w, w))
        first, second = _strides(self.grid, shape[1])
        self.leave = nn.Sequential(_block(w, w, 4, first), _block(w, w // 2, 4, second))
        self.last = nn.Sequential(nn.Conv2d(w // 2, shape[0], 3, padding=1), nn.BatchNorm2d(shape[0]))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each ``(B, …)`` → ``(B, C, h, w)``, normalised as the output asks."""
        entered = [
            _resized(e(z), (self.grid, self.grid)) for e, z in zip(self.entries, self.standard(features), strict=True)
        ]
        top = self.top(self.enter(torch.stack(entered).sum(0)))
        middle = self.middle(top)
        h = self.rise(self.bottom(middle))
        h = self.middle_up(torch.cat([h, middle], 1))
        h = self.top_up(torch.cat([self.rise_again(h), top], 1))
        v = _resized(self.last(self.leave(h)), self.shape[1:])
        if self.output == "pixels":
            return v.sigmoid()
        return normalised(v) if self.output == "noise" else v


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """``(B, C, h, w)`` → ``(B, C, *size)``, bilinear, averaged where it shrinks."""
    if maps.shape[-2:] == tuple(size):
        return maps
    shrinks = maps.shape[-1] > size[-1]
    return nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)
