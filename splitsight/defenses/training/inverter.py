"""The attacker in training: a small network from what crosses to the image, as in He et al. (ACSAC 2019).

It is an opponent to train against, no measure of leakage: what a defence withstands is measured by attacks that it has
not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from splitsight.defenses import Features
from splitsight.features import FeatureSpec

__all__ = ["Inverter", "image_similarity", "inversion_loss"]

_LEAST_SIDE = 4
_LEAST_WIDTH = 16


class Inverter(nn.Module):
    """What crosses → the image.

    Every tensor becomes a map of ``width`` channels on the largest grid there is (numbers without a grid: on 4 × 4);
    their sum is doubled in size until it has the image's.

    Args:
        specs: what crosses.
        size: side of the image, in pixels.
        width: channels at the grid's size; halved at each doubling down to 16.
    """

    def __init__(self, specs: Sequence[FeatureSpec], size: int, width: int = 64) -> None:
        super().__init__()
        self.specs, self.size = tuple(specs), size
        self.grid = max((spec.grid for spec in specs if spec.grid), default=(_LEAST_SIDE, _LEAST_SIDE))
        entries: list[nn.Module] = []
        for spec in specs:
            if spec.grid:
                entries.append(nn.Sequential(nn.BatchNorm2d(spec.channels), nn.Conv2d(spec.channels, width, 1)))
            else:
                linear = nn.Linear(spec.numel, width * _LEAST_SIDE**2)
                shaped = nn.Unflatten(1, (width, _LEAST_SIDE, _LEAST_SIDE))
                entries.append(nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(spec.numel), linear, shaped))
        self.entries = nn.ModuleList(entries)
        steps: list[nn.Module] = []
        side, now = max(self.grid), width
        while side < size:
            after = max(_LEAST_WIDTH, now // 2)
            steps += [
                nn.Conv2d(now, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.Upsample(scale_factor=2),
            ]
            side, now = 2 * side, after
        self.steps = nn.Sequential(*steps, nn.Conv2d(now, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, features: Features) -> Tensor:
        """Each ``(B, *shape)`` → ``(B, 3, size, size)`` in [0, 1]."""
        total: Tensor | None = None
        for entry, spec, z in zip(self.entries, self.specs, features, strict=True):
            part = entry(spec.as_map(z) if spec.grid else z)
            if part.shape[-2:] != self.grid:
                part = interpolate(part, self.grid, mode="bilinear")
            total = part if total is None else total + part
        assert total is not None
        images = self.steps(total)
        if images.shape[-2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return images


def image_similarity(images: Tensor, originals: Tensor) -> Tensor:
    """Mean structural similarity of a batch, differentiable, at most 1; both ``(B, 3, H, W)`` in [0, 1]."""
    # it loads the libraries of all its metrics, of text and of sound, too
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(images, originals, data_range=1.0)
    assert isinstance(found, Tensor)
    return found


def inversion_loss(inverter: nn.Module, sent: Features, images: Tensor) -> Tensor:
    """What the opponent minimises: its mean squared error; nothing flows back into what was sent."""
    return mse_loss(inverter(tuple(z.detach() for z in sent)), images)
