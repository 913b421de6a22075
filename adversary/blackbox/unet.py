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

**Any feature.** Each tensor is projected where it is (:mod:`adversary.blackbox.layouts`) and then resized, which a
1 × 1 projection commutes with; several tensors are added up. Before all that each channel is standardised by what the
training pairs showed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adversary.blackbox.layouts import Standardised, entry, resized
from adversary.whitebox.variables import normalised
from splitsight.features import FeatureSpec

__all__ = ["OUTPUTS", "FeatureUNet"]

OUTPUTS = ("pixels", "latent", "noise")


def _block(channels: int, out: int, kernel: int = 3, stride: float = 1) -> nn.Sequential:
    """(De)conv + BN + ReLU; a stride of ½ doubles the resolution, by a transposed convolution."""
    layers: list[nn.Module] = []
    if stride < 1:
        layers.append(nn.ConvTranspose2d(channels, out, kernel, 2, (kernel - 2) // 2, bias=False))
    elif stride > 1:
        layers.append(nn.Conv2d(channels, out, kernel, 2, (kernel - 1) // 2, bias=False))
    else:
        before, after = (kernel - 1) // 2, kernel // 2
        layers += [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(channels, out, kernel, bias=False)]
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
        features: the tensors that cross the split.
        output: what it is aimed at: ``pixels``, ``latent`` or ``noise``.
        shape: ``(C, h, w)`` of that.
        image: side of the image that is answered with, in pixels; fixes the grid of the U.
        width: channels at the top of the U; twice and four times as many below.
    """

    def __init__(
        self, features: Sequence[FeatureSpec], output: str, shape: tuple[int, int, int], image: int, width: int = 48
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"unknown output '{output}'")
        self.output, self.shape = output, tuple(shape)
        # a multiple of four, which is halved twice
        self.grid = 4 * math.ceil(image / 16)
        w = width
        self.standard = Standardised(features)
        self.entries = nn.ModuleList(entry(spec, w) for spec in features)
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
            resized(e(z), (self.grid, self.grid)) for e, z in zip(self.entries, self.standard(features), strict=True)
        ]
        top = self.top(self.enter(torch.stack(entered).sum(0)))
        middle = self.middle(top)
        h = self.rise(self.bottom(middle))
        h = self.middle_up(torch.cat([h, middle], 1))
        h = self.top_up(torch.cat([self.rise_again(h), top], 1))
        v = resized(self.last(self.leave(h)), self.shape[1:])
        if self.output == "pixels":
            return v.sigmoid()
        return normalised(v) if self.output == "noise" else v
