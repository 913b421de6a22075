"""Training the denoiser of pixels (see :mod:`adversary.priors.pixels`)."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from adversary.priors._pictures import Pictures
from adversary.priors._settings import Count, Settings
from adversary.priors.pixels import MEASURED, SIGMAS, PixelDenoiser, build_pixel_denoiser, denoising_gain
from splitsight.data import to_tensor
from splitsight.training import Budget, Run, Stateful, ema, flattened

if TYPE_CHECKING:
    from adversary.fits import Fits

__all__ = ["fit_gain", "train_pixels"]

_FITS = 0.5
"""Part of a batch that is live fits, where there are any; the rest keeps what is known of white noise."""
_FEATURES = 1.0
"""Weight of the relative squared error of a denoised fit's features beside that of its noise. With none, what is
recognised in a fit is lost; with 3, half of the gain in pixels is."""


@torch.no_grad()
def fit_gain(denoiser: nn.Module, fits: Fits) -> float:
    """By how many dB a denoiser lessens the mean squared error of live fits."""
    device = next(denoiser.parameters()).device
    before = after = 0.0
    for i in range(0, len(fits), 50):
        some = fits.part(np.arange(i, min(i + 50, len(fits))))
        x, fit = to_tensor(some.originals), to_tensor(some.fits)
        before += float((fit - x).square().sum())
        found = denoiser(fit.to(device), torch.from_numpy(some.levels))
        after += float((found - x.to(device)).square().sum())
    return 10 * math.log10(before / after)


def _levels(count: int, generator: torch.Generator) -> Tensor:
    low, high = (math.log(s) for s in SIGMAS)
    return (low + (high - low) * torch.rand(count, generator=generator)).exp()


def _loss(model: PixelDenoiser, x: Tensor, noisy: Tensor, sigma: Tensor, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Mean squared error of the noise, in units of σ, and the denoised images ``(B, 3, H, W)``."""
    device = next(model.parameters()).device
    x, noisy, scale = x.to(device), noisy.to(device), sigma.reshape(-1, 1, 1, 1).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        predicted = model.noise(noisy, sigma.to(device))
    predicted = predicted.float()
    return (predicted - (noisy - x) / scale).square().mean(), noisy - scale * predicted


def train_pixels(
    pictures: Pictures,
    out: Path,
    budget: Budget,
    settings: Settings,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    start: PixelDenoiser | None = None,
    fits: Fits | None = None,
) -> tuple[PixelDenoiser, dict[str, float | int | bool]]:
    """Train, resuming from ``out``: mean squared error of ``ε̂``, noise levels log-uniform over :data:`SIGMAS`.

    Three in ten of the small images are flattened to look like video (see :func:`splitsight.training.flattened`).

    Args:
        pictures: to train on, and held out.
        out: folder of the run.
        budget: when to stop.
        settings: widths, learning rate (2e-3 by default, 8e-4 from ``start``), precision.
        seed: of weights and draws.
        device: where to train; CPU by default.
        start: an earlier denoiser to go on from.
        fits: what live fits leave of images: half of a batch, at the preview's measured error as σ, with an error of
            features beside that of pixels; every tenth is held out.

    Returns:
        The averaged model, and figures: gains in dB on held-out images (``gain_0.06``) and crops of photographs
        (``photos_gain_0.06``), ``fit_gain`` where there are fits, ``images_seen``, ``minutes``, ``finished``.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(seed)
    if start is None:
        network = build_pixel_denoiser(settings.widths) if settings.widths else build_pixel_denoiser()
        nn.init.zeros_(network.conv_out.weight)
        assert network.conv_out.bias is not None
        nn.init.zeros_(network.conv_out.bias)
        model = PixelDenoiser(network).to(device)
    else:
        model = copy.deepcopy(start).to(device).train().requires_grad_()
    peak = settings.lr or (2e-3 if start is None else 8e-4)
    learnt, held_fits = (None, None) if fits is None else fits.parts()
    if learnt is not None:
        for pipeline in (learnt.middle, learnt.deepest):
            pipeline.to(device).requires_grad_(False)
    fitted = 0 if learnt is None else round(_FITS * settings.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    average, seen = ema(model, settings.average), Count()
    averaged = cast("PixelDenoiser", average.module)
    held_out = {"": pictures.held[:200]}
    if pictures.photos is not None:
        held_out["photos_"] = pictures.held_crops(50, 2 * pictures.size, np.random.default_rng(seed)).crops

    def evaluate(denoiser: nn.Module) -> dict[str, float]:
        gains = {
            f"{name}gain_{sigma:g}": denoising_gain(denoiser, images, sigma)
            for name, images in held_out.items()
            for sigma in MEASURED
        }
        return gains if held_fits is None else {"fit_gain": fit_gain(denoiser, held_fits), **gains}

    parts: dict[str, Stateful] = {"model": model, "average": average, "optimizer": optimizer, "seen": seen}
    total, count = 0.0, 0
    with Run(out, budget, parts, title="train pixels") as run:
        rng = np.random.default_rng((seed, run.step))
        generator = torch.Generator().manual_seed(seed + run.step)
        evaluated = logged = run.seconds
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(fraction, peak)
            draw = pictures.draw(settings.batch - fitted, rng)
            small = flattened(pictures.images[draw.index], 0.3, generator)
            mirrored = rng.integers(2, size=len(small)) == 1
            small[mirrored] = small[mirrored][:, :, ::-1]
            x = to_tensor(np.concatenate([small, draw.crops]) if len(small) else draw.crops)
            sigma = _levels(len(x), generator)
            eps = torch.randn(x.shape, generator=generator)
            loss, _ = _loss(model, x, x + sigma.reshape(-1, 1, 1, 1) * eps, sigma, settings.bfloat16)
            if learnt is not None:
                originals, images, levels, deep = learnt.draw(fitted, rng)
                of_fits, denoised = _loss(model, originals, images, levels, settings.bfloat16)
                loss = (len(x) * loss + fitted * of_fits) / (len(x) + fitted)
                loss = loss + _FEATURES * learnt.feature_error(denoised, originals.to(device), deep)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
            seen.images += len(x) + fitted
            total, count = total + float(loss.detach()), count + 1
            if run.seconds - logged >= settings.evaluate_every / 10:
                gains = {}
                if run.seconds - evaluated >= settings.evaluate_every:
                    gains = evaluate(averaged.eval())
                    evaluated = run.seconds
                run.log(loss=total / count, images=seen.images, fraction=fraction, **gains)
                logged, total, count = run.seconds, 0.0, 0
    best = averaged.eval()
    gains = evaluate(best)
    run.log(images=seen.images, fraction=run.fraction(), **gains)
    return best, {
        "parameters": sum(p.numel() for p in best.parameters()),
        **gains,
        "images_seen": seen.images,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
