"""Noise on tapped features: how strong it is, and what several frames tell through it.

A defence, or quantisation, may have added independent noise of standard deviation σ to every number. Where F1 ends in
a rectifier nothing that it makes is below zero, and whatever is below zero in the tapped features is noise: numbers
that were zero become negative half of the time, with ``E[n² | n < 0] = σ²``. (Small positive numbers may become
negative too, by less, so that σ is estimated a little low.)

What several frames of a window have in common is told more than once. With the window's mean z̄ and, at each
position, the mean square d of a frame's distance from it over the channels, noise alone would give
``d₀ = σ² (K − 1) / K``, and

    z_k  ←  z̄ + max(0, 1 − d₀ / d) (z_k − z̄)

is the mean of all frames where they differ by no more than noise, and the frame itself where the scene moved: the
shrinkage of James and Stein (1961), applied to each position. Without noise nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from splitsight.defenses import Scale
from splitsight.features import FeatureSpec

__all__ = ["deviations", "seen_through", "shrunk"]


def _some(noise: Scale) -> bool:
    return bool(torch.as_tensor(noise).any())


@torch.no_grad()
def deviations(features: Sequence[Tensor], pipeline: nn.Module | None, images: Callable[[], Tensor]) -> list[Scale]:
    """The standard deviation of the noise on each tapped tensor, as far as the tensors show it.

    Args:
        features: the tapped ones, each ``(K, …)``.
        pipeline: F1, images in [0, 1] → tuple of features; ``None`` where it is not known.
        images: makes ``(B, 3, H, W)``, any natural ones, when asked: whether F1 makes numbers below zero is seen on
            them. Not asked where no tapped number is.

    Returns:
        One a tensor; 0 where there is no noise, or where negative numbers say nothing about it.
    """
    if pipeline is None or all(z.min() >= 0 for z in features):
        return [0.0] * len(features)
    found: list[Scale] = []
    for z, clean in zip(features, pipeline(images()), strict=True):
        below = z[z < 0]
        known = len(below) > 0 and float(clean.min()) >= 0
        found.append(float(below.square().mean().sqrt()) if known else 0.0)
    return found


def shrunk(
    features: Sequence[Tensor], specs: Sequence[FeatureSpec], noise: Sequence[Scale]
) -> tuple[list[Tensor], list[Scale]]:
    """Frames moved towards their mean as far as noise accounts for their difference.

    Args:
        features: each ``(K, …)``. Maps and tokens are compared position by position, vectors as a whole.
        specs: what they are.
        noise: σ, one a tensor, or what broadcasts against it.

    Returns:
        The same shapes, and σ of what noise remains, root mean square over positions.
    """
    moved: list[Tensor] = []
    left: list[Scale] = []
    for z, spec, sigma in zip(features, specs, noise, strict=True):
        frames = len(z)
        if not _some(sigma) or frames < 2:
            moved.append(z)
            left.append(sigma)
            continue
        mean = z.mean(0, keepdim=True)
        squares = spec.channels_last((z - mean).square())
        distance = squares.mean(-1, keepdim=True)
        variances = torch.as_tensor(sigma).to(z).square().expand_as(z)
        alone = spec.channels_last(variances).mean(-1, keepdim=True).mean(0) * (frames - 1) / frames
        kept = (1 - alone / distance.clamp_min(1e-12)).clamp_min(0)
        moved.append(mean + spec.from_channels_last(kept.expand_as(squares)) * (z - mean))
        left.append(sigma * (1 / frames + (1 - 1 / frames) * float(kept.square().mean())) ** 0.5)
    return moved, left


def seen_through(
    features: Sequence[Tensor],
    specs: Sequence[FeatureSpec],
    pipeline: nn.Module | None,
    images: Callable[[], Tensor],
    *,
    known: Sequence[Scale] | None = None,
    together: bool = True,
) -> tuple[list[Tensor], list[Scale], bool]:
    """What an attack on a window goes by: its features as far as its frames together show them through noise.

    Args:
        features: the tapped ones, each ``(K, …)``.
        specs: what they are.
        pipeline: as for :func:`deviations`.
        images: likewise.
        known: standard deviation of the noise on each tensor; ``None`` estimates it.
        together: whether frames are coupled; if not, the features stay as they are.

    Returns:
        Features, σ of the noise that is left on each, and whether the features were changed.
    """
    noise = list(deviations(features, pipeline, images) if known is None else known)
    if not (together and any(map(_some, noise)) and len(features[0]) > 1):
        return list(features), noise, False
    return *shrunk(features, specs, noise), True
