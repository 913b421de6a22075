"""A prior on images larger than it was trained on: what its denoisers gain there, and whether their tiles show.

Latents larger than the denoiser's are denoised in overlapping tiles whose answers are averaged
(:meth:`adversary.priors.prior.Prior.tiled`). What that is worth, other ways say: tiles side by side, without
overlap; all of the latents at once, which a convolutional denoiser can do; and no denoiser at all, but the best factor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from adversary.priors.pixels import MEASURED, denoising_gain
from adversary.priors.prior import Prior, Text, load_prior
from scenarios.prior_quality import LEVELS
from splitsight.captions import caption, measure
from splitsight.data import draw_images, to_pixels, to_tensor, write_png
from splitsight.errors import UserError
from splitsight.metrics.image import psnr

__all__ = ["WAYS", "bench_denoising", "seams"]

_SHOWN = 0.5
"""The noise level of the picture."""
_ROWS = 4

_Denoise = Callable[[Prior, Tensor, float, Text], Tensor]


def _apart(prior: Prior, x: Tensor, t: float, text: Text) -> Tensor:
    """In tiles side by side."""
    rows = [
        torch.cat([prior.denoise(tile, t, text) for tile in row.split(prior.cells, -1)], -1)
        for row in x.split(prior.cells, -2)
    ]
    return torch.cat(rows, -2)


def _whole(prior: Prior, x: Tensor, t: float, text: Text) -> Tensor:
    """All at once."""
    untiled = copy.copy(prior)
    untiled.cells = max(x.shape[-2:])
    return untiled.denoise(x, t, text)


WAYS: dict[str, _Denoise] = {
    "tiles": lambda prior, x, t, text: prior.denoise(x, t, text),
    "tiles apart": _apart,
    "whole": _whole,
}
"""How latents larger than the denoiser's are denoised: as attacks do, and two others."""


def _shrunk(prior: Prior, x: Tensor, t: float) -> Tensor:
    """The answer of one who knows that latents have unit variance, and nothing else."""
    one, none = x.new_ones(()), x.new_zeros(())
    a, s = prior.noised(one, none, t), prior.noised(none, one, t)
    return a / (a.square() + s.square()) * x


def seams(error: Tensor, tile: int) -> float:
    """Steps of an error across the borders of tiles side by side, over its steps elsewhere, in dB.

    Args:
        error: ``(B, C, H, W)``.
        tile: rows and columns of a tile, less than H and W.

    Returns:
        Ratio of the mean squared steps; 0 where borders do not show.

    Raises:
        ValueError: there is only one tile.
    """
    if tile >= min(error.shape[-2:]):
        raise ValueError(f"{tuple(error.shape[-2:])} has no border between tiles of {tile}")
    across: list[Tensor] = []
    elsewhere: list[Tensor] = []
    for along in (-2, -1):
        steps = error.diff(dim=along).square().movedim(along, 0)
        border = torch.arange(1, len(steps) + 1) % tile == 0
        across.append(steps[border].flatten())
        elsewhere.append(steps[~border].flatten())
    return 10 * math.log10(float(torch.cat(across).mean() / torch.cat(elsewhere).mean()))


@torch.no_grad()
def bench_denoising(
    *,
    prior: str,
    images: Path,
    out: Path,
    size: int,
    count: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Noise on latents and on pixels of larger images, and what the prior's denoisers take away of it.

    Writes ``denoising-SIZE.png``: images, and what each way makes of their latents at half noise, decoded.

    Args:
        prior: name or folder.
        images: that it was not trained on, as :func:`splitsight.data.load_images` takes them; at least ``size``.
        out: folder for the picture.
        size: pixels a side, a multiple of what the autoencoder enlarges.
        count: images.
        seed: of their order, captions and noise on latents.
        device: where to compute; CPU by default.
        progress: called with images done and their number.

    Returns:
        ``size``, ``count``, ``digest``, ``autoencoder`` (PSNR in dB of images through it, without noise), ``latents``:
        ``{t: {way: {"psnr", "error", "seams"}}}`` with the mean squared error in latents, the ways being those of
        :data:`WAYS` and ``shrunk``, which needs no denoiser (:func:`_shrunk`); and ``pixels``: ``{σ: gain in dB}``,
        ``None`` where the prior has no denoiser of pixels.

    Raises:
        UserError: too few images; a size that the autoencoder has no latents for, or one not above the prior's own.
    """
    model = load_prior(prior).to(device or "cpu")
    times = model.image_size // model.cells
    if size <= model.image_size or size % times:
        raise UserError(
            f"'{prior}' makes images of {model.image_size} pixels: --size has to be a larger multiple of {times}, "
            f"not {size}"
        )
    drawn = draw_images(images, size, count, seed)
    if len(drawn) < count:
        raise UserError(f"{images} holds {len(drawn)} different images where {count} are needed: lower --count")
    rng = np.random.default_rng(seed)
    captions = [caption(None, measure(image), rng) for image in drawn.images]
    found = _Sums()
    shown: list[Tensor] = []
    for i in range(count):
        x = to_tensor(drawn.images[i : i + 1]).to(model.device)
        pictures = _latents(model, x, captions[i], seed + i, found)
        if i < _ROWS:
            shown += [p.cpu() for p in pictures]
        if progress is not None:
            progress(i + 1, count, "images")
    sheet = make_grid(torch.cat(shown), nrow=len(shown) // min(count, _ROWS), padding=4, pad_value=1.0)
    write_png(out / f"denoising-{size}.png", to_pixels(sheet[None])[0])
    denoiser = model.pixel_denoiser
    pixels = None if denoiser is None else {s: denoising_gain(denoiser, drawn.images, s) for s in MEASURED}
    return {"size": size, "count": count, "digest": model.digest, **found.result(), "pixels": pixels}


class _Sums:
    """What is known of each image so far."""

    def __init__(self) -> None:
        self.autoencoder: list[float] = []
        self.latents: dict[float, dict[str, dict[str, list[float]]]] = {t: {} for t in LEVELS}

    def add(self, t: float, way: str, **figures: float) -> None:
        for name, value in figures.items():
            self.latents[t].setdefault(way, {}).setdefault(name, []).append(value)

    def result(self) -> dict[str, Any]:
        latents = {
            t: {way: {name: float(np.mean(values)) for name, values in of.items()} for way, of in ways.items()}
            for t, ways in self.latents.items()
        }
        return {"autoencoder": float(np.mean(self.autoencoder)), "latents": latents}


def _latents(prior: Prior, x: Tensor, prompt: str, seed: int, found: _Sums) -> list[Tensor]:
    """Add one image's figures; the picture's row."""
    u = prior.encode(x)
    text = prior.embed_text([prompt])
    eps = torch.randn(u.shape, generator=torch.Generator().manual_seed(seed)).to(u)

    def decoded(latents: Tensor) -> Tensor:
        return prior.decode(latents).clamp(0, 1)

    found.autoencoder.append(float(psnr(decoded(u), x)))
    row = [x]
    for t in LEVELS:
        noisy = prior.noised(u, eps, t)
        answers = {"shrunk": _shrunk(prior, noisy, t), **{w: way(prior, noisy, t, text) for w, way in WAYS.items()}}
        images = {way: decoded(clean) for way, clean in answers.items()}
        for way, clean in answers.items():
            error = clean - u
            figures = {"psnr": float(psnr(images[way], x)), "error": float(error.square().mean())}
            found.add(t, way, **figures, seams=seams(error, prior.cells))
        if t == _SHOWN:
            row += images.values()
    return row
