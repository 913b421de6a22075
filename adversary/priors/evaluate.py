"""How well a prior samples: Fréchet distance in the features of a named network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from adversary.priors.prior import Prior
from splitsight.targets import Target

__all__ = ["PooledFeatures", "frechet_distance", "samples"]

_BATCH = 50


class PooledFeatures(nn.Module):
    """Globally pooled features of a target at its deepest split point: uint8 images → ``(B, C)``."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        point = target.points()[-1]
        self.head = target.head(point)
        self.num_features = target.feature_specs(point)[0].shape[0]
        self.name = f"{target.name} {point}, pooled, digest {target.digest[:12]}"

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` uint8."""
        return self.head(images.float() / 255)[0].flatten(2).mean(2)


@torch.no_grad()
def samples(
    prior: Prior,
    prompts: Sequence[str] | None,
    steps: int,
    count: int,
    seed: int = 0,
    done: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Batches ``(≤ 50, 3, H, W)`` of a prior's images, in [0, 1], on the CPU.

    Args:
        prior: the generator.
        prompts: one a sample, repeated as needed; ``None`` for the empty prompt.
        steps: sampling steps.
        count: samples in all.
        seed: of the noise.
        done: called with the number of samples that were made, as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for i in range(0, count, _BATCH):
        size = min(_BATCH, count - i)
        text = prior.embed_text([prompts[(i + k) % len(prompts)] for k in range(size)]) if prompts else None
        noise = torch.randn(size, *prior.latent_shape, generator=generator)
        yield prior.generate(noise.to(prior.device), text, steps).clamp(0, 1).cpu()
        if done is not None:
            done(size)


@torch.no_grad()
def frechet_distance(
    prior: Prior,
    target: Target,
    images: np.ndarray,
    *,
    prompts: list[str] | None = None,
    steps: int = 8,
    count: int = 2000,
    seed: int = 0,
    done: Callable[[int], None] | None = None,
) -> tuple[float, str]:
    """Fréchet distance between samples and real images in a *named* network's features; not an Inception FID.

    Args:
        prior: the generator.
        target: its deepest split point gives the features.
        images: real, held-out, ``(N, H, W, 3)`` uint8.
        prompts: one a sample, repeated as needed; the empty prompt where not given.
        steps: sampling steps.
        count: samples, and real images at most.
        seed: of the noise.
        done: called with the number of samples that were made, as they are.

    Returns:
        The distance (lower is better), and the name of the feature network.
    """
    network = PooledFeatures(target)
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, prior.image_size, prior.image_size))
    real = torch.from_numpy(np.ascontiguousarray(images[:count])).permute(0, 3, 1, 2)
    for i in range(0, len(real), 100):
        metric.update(real[i : i + 100], real=True)
    for x in samples(prior, prompts, steps, count, seed, done):
        metric.update((x * 255).round().byte(), real=False)
    return float(metric.compute()), network.name
