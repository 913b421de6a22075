"""How good a prior is, by figures that do not ask an attack: samples, and held-out images denoised.

Distances between samples and held-out images are the Fréchet distance (Heusel et al., 2017, arXiv 1706.08500) and the
kernel distance (Bińkowski et al., 2018, arXiv 1801.01401, polynomial kernel of degree 3, unbiased) by torchmetrics, in
the penultimate features of a *named* evaluator, which no attack and no training has seen. They are not Inception's, and
compare with figures in the same features alone. Two rows say what to compare them with: other held-out images (the
least that the number of samples allows) and held-out images through the autoencoder (the least for its latents).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.utils import make_grid

from adversary.priors.evaluate import samples
from adversary.priors.prior import Prior, load_prior
from splitsight import evaluators
from splitsight.captions import caption, measure
from splitsight.data import ImageSet, class_names, draw_images, to_pixels, to_tensor, write_png
from splitsight.errors import UserError
from splitsight.evaluators import Evaluator
from splitsight.names import safe_names

__all__ = ["LEVELS", "Distances", "bench_prior", "denoising_errors"]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels t at which latents are denoised."""

_BATCH = 50
_SHOWN = 64


class _Given(nn.Module):
    """Stands for the network in torchmetrics' metrics: features are computed once for both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class Distances:
    """Fréchet and kernel distance of images to real ones.

    Args:
        evaluator: whose penultimate features are compared.
        real: images ``(N, 3, H, W)`` in [0, 1], N ≥ 2.
        seed: of the kernel distance's subsets.
    """

    def __init__(self, evaluator: Evaluator, real: Tensor, seed: int = 0) -> None:
        self.evaluator, self.seed = evaluator, seed
        self.real = evaluator.features(real)

    def of(self, images: Tensor) -> dict[str, float]:
        """``frechet``, ``kernel`` and the deviation of the latter over 50 subsets, ``kernel_std``.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1], N ≥ 2.
        """
        features = self.evaluator.features(images)
        width = features.shape[1]
        frechet = FrechetInceptionDistance(feature=_Given(width))
        size = min(1000, len(features), len(self.real)) // 2
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features")
            kernel = KernelInceptionDistance(feature=_Given(width), subsets=50, subset_size=size)
        for metric in (frechet, kernel):
            metric.update(self.real, real=True)
            metric.update(features, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            mean, std = kernel.compute()
        return {"frechet": float(frechet.compute()), "kernel": float(mean), "kernel_std": float(std)}


@torch.no_grad()
def denoising_errors(prior: Prior, images: Tensor, prompts: Sequence[str], *, seed: int = 0) -> dict[float, float]:
    """Mean squared error of held-out latents after noise and one denoising, by noise level.

    The same images and seed give the same noise for every prior of one autoencoder.

    Args:
        prior: whose denoiser it is.
        images: ``(N, 3, H, W)`` in [0, 1], of the prior's size.
        prompts: one an image.
        seed: of the noise.
    """
    errors: dict[float, list[Tensor]] = {t: [] for t in LEVELS}
    generator = torch.Generator().manual_seed(seed)
    for i in range(0, len(images), _BATCH):
        u = prior.encode(images[i : i + _BATCH].to(prior.device))
        text = prior.embed_text([*prompts[i : i + _BATCH]])
        eps = torch.randn(u.shape, generator=generator).to(u.device)
        for t in LEVELS:
            found = prior.denoise(prior.noised(u, eps, t), t, text)
            errors[t].append((found - u).square().mean((1, 2, 3)))
    return {t: float(torch.cat(parts).mean()) for t, parts in errors.items()}


def bench_prior(
    *,
    priors: Sequence[str],
    images: Path,
    out: Path,
    evaluator: str = "efficientnet-lite0",
    steps: Sequence[int] = (4, 8, 30),
    count: int = 2000,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure priors on the same images, prompts and noise; write ``samples-PRIOR-STEPS.png``, 64 samples each.

    Args:
        priors: names or folders; the first one's size is that of the images.
        images: that no prior was trained on, as :func:`splitsight.data.load_images` takes them; class names beside
            them, where there are any, go into the prompts.
        out: folder for the pictures.
        evaluator: name or folder; whose features are compared.
        steps: numbers of sampling steps.
        count: samples, ≥ 4; as many images are compared with them, and as many others say what the least is.
        seed: of the images' order, the captions and the noise.
        device: where to compute; CPU by default.
        progress: called with samples done, their total and what they are.

    Returns:
        ``evaluator``, ``count``, ``priors``: a list of ``{"prior", "digest", "parameters", "denoising": {t: error},
        "autoencoder": distances, "samples": {steps: distances}}``, and ``other_images``: distances; see
        :class:`Distances`.

    Raises:
        UserError: too few images; a prior of another size; there is no such prior or evaluator.
    """
    loaded = [load_prior(name).to(device or "cpu") for name in priors]
    sides = {prior.image_size for prior in loaded}
    if len(sides) > 1:
        raise UserError(
            f"these priors make images of {', '.join(map(str, sorted(sides)))} pixels: give those of one size"
        )
    drawn = draw_images(images, sides.pop(), 2 * count, seed)
    if len(drawn) < 2 * count:
        raise UserError(f"{images} holds {len(drawn)} different images where {2 * count} are needed: lower --count")
    judge = evaluators.load(evaluator)
    pixels = to_tensor(drawn.images)
    real, others = pixels[:count], pixels[count:]
    distances = Distances(judge, real, seed)
    prompts = _prompts(drawn, count, seed)
    total, made = len(loaded) * len(steps) * count, 0

    def done(more: int) -> None:
        nonlocal made
        made += more
        if progress is not None:
            progress(made, total, "samples")

    rows = []
    for name, prior, sheet in zip(priors, loaded, safe_names(Path(name).name for name in priors), strict=True):
        row: dict[str, Any] = {
            "prior": name,
            "digest": prior.generator_digest,
            "parameters": sum(p.numel() for p in prior.denoiser.parameters()),
            "denoising": denoising_errors(prior, real[:1000], prompts[:1000], seed=seed),
            "autoencoder": distances.of(_decoded(prior, others)),
            "samples": {},
        }
        for number in steps:
            images_of = torch.cat([*samples(prior, prompts, number, count, seed, done)])
            row["samples"][number] = distances.of(images_of)
            picture = make_grid(images_of[:_SHOWN], nrow=8, padding=2, pad_value=1.0)
            write_png(out / f"samples-{sheet}-{number}.png", to_pixels(picture[None])[0])
        rows.append(row)
    return {"evaluator": judge.name, "count": count, "other_images": distances.of(others), "priors": rows}


@torch.no_grad()
def _decoded(prior: Prior, images: Tensor) -> Tensor:
    parts = (prior.decode(prior.encode(part.to(prior.device))).clamp(0, 1).cpu() for part in images.split(_BATCH))
    return torch.cat([*parts])


def _prompts(drawn: ImageSet, count: int, seed: int) -> list[str]:
    """Captions of the first ``count`` images, as a prior's training has them."""
    source = drawn.stored_labels.source
    names = [] if source is None else class_names(source) or []
    known = {number: [name.lower() for name in synonyms] for number, synonyms in enumerate(names)}
    numbers = drawn.labels.tolist() if known else [-1] * len(drawn)
    rng = np.random.default_rng(seed)
    pairs = zip(numbers[:count], drawn.images[:count], strict=True)
    return [caption(known.get(number), measure(image), rng) for number, image in pairs]
