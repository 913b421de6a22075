"""Training the prior's autoencoder: images in [0, 1] ↔ 8 × 16 × 16 latents of about unit variance.

A deep-compression autoencoder (DC-AE, arXiv 2410.10733) whose only layers at full resolution are the
pixel (un)shuffles: an attack differentiates the decoder at every step, so its cost decides how far a live
window gets. The latent is regularised as in a VAE with a fixed variance: noise of σ = 0.1 is added while
the channel variance is held near one, which keeps the decoder smooth where an optimiser will walk.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from splitsight.training import Budget, Run, ema, one_cycle, random_crops
from splitsight.training_data import TrainingSet

__all__ = ["build_autoencoder", "reconstruction_quality", "train_autoencoder"]


def build_autoencoder(latent_channels: int = 8, width: int = 48) -> AutoencoderDC:
    """The small autoencoder: 4-fold downsampling, ``width`` channels at half and twice that at quarter resolution."""
    return AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=(width, width, 2 * width),
        decoder_block_out_channels=(width, width, 2 * width),
        encoder_layers_per_block=(0, 1, 2),
        decoder_layers_per_block=(0, 2, 2),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    )


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _loss(x: Tensor, y: Tensor) -> Tensor:
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(x), _gradients(y), strict=True))
    return (x - y).abs().mean() + 4 * (x - y).square().mean() + 0.5 * edges


@torch.no_grad()
def reconstruction_quality(vae: AutoencoderDC, images: np.ndarray, batch: int = 50) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of encode–decode over ``(N, H, W, 3)`` uint8 images."""
    device = next(vae.parameters()).device
    psnr, ssim = [], []
    for i in range(0, len(images), batch):
        x = (
            torch.from_numpy(np.ascontiguousarray(images[i : i + batch]))
            .permute(0, 3, 1, 2)
            .float()
            .div(255)
            .to(device)
        )
        y = vae.decode(vae.encode(2 * x - 1, return_dict=False)[0], return_dict=False)[0].add(1).div(2).clamp(0, 1)
        psnr.append(-10 * (x - y).square().mean((1, 2, 3)).clamp_min(1e-10).log10())
        ssim.append(structural_similarity_index_measure(y, x, data_range=1.0, reduction="none"))
    return {"psnr": float(torch.cat(psnr).mean()), "ssim": float(torch.cat(ssim).mean())}


def train_autoencoder(
    data: TrainingSet,
    out: Path,
    budget: Budget,
    *,
    latent_channels: int = 8,
    width: int = 48,
    size: int = 64,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[AutoencoderDC, dict[str, float | int | bool]]:
    """Train, resuming from ``out``; a part of ``data`` is held out.

    Returns:
        The averaged model with ``scaling_factor`` set so that scaled latents have unit variance, and
        figures: ``psnr``, ``ssim`` on held-out images, ``images_seen``, ``minutes``, ``finished``.
    """
    device = device or torch.device("cpu")
    images, held = data.images(size)
    torch.manual_seed(seed)
    vae = build_autoencoder(latent_channels, width)
    # diffusers wraps Module.to in a way that hides its signature
    cast("nn.Module", vae).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = ema(vae, 0.999)
    averaged = cast("AutoencoderDC", average.module)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    with Run(out, budget, {"vae": vae, "average": average, "optimizer": optimizer}, title="train autoencoder") as run:
        generator.manual_seed(seed + run.step)
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(fraction, lr)
            index = torch.randint(len(images), (batch,), generator=generator).sort().values.numpy()
            x = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float().div(255).to(device)
            # crops down to half size: video frames are sharper at the pixel than these small photographs
            x = random_crops(x, size, (0.6, 1.0), generator).mul(2).sub(1).contiguous(memory_format=torch.channels_last)
            z = vae.encode(x, return_dict=False)[0]
            spread = z.square().mean((0, 2, 3))
            noisy = z + 0.1 * torch.randn(z.shape, generator=generator).to(device)
            loss = (
                _loss(vae.decode(noisy, return_dict=False)[0], x)
                + 0.05 * (spread - 1).square().mean()
                + 0.01 * z.mean((0, 2, 3)).square().mean()
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(vae)
            total += float(loss.detach())
            if run.step % 250 == 249:
                extra = {}
                if run.step % 1000 == 999:
                    extra = {f"val_{k}": v for k, v in reconstruction_quality(averaged, held[:300]).items()}
                run.log(loss=total / 250, fraction=fraction, spread=float(spread.mean().detach()), **extra)
                total = 0.0
    vae = averaged.eval()
    with torch.no_grad():
        sample = torch.from_numpy(images[:: max(1, len(images) // 500)]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        vae.register_to_config(scaling_factor=float(1 / vae.encode(sample.to(device), return_dict=False)[0].std()))
    figures = reconstruction_quality(vae, held)
    run.log(**{f"val_{k}": v for k, v in figures.items()}, scaling_factor=vae.config["scaling_factor"])
    return vae, {
        **figures,
        "images_seen": run.step * batch,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
