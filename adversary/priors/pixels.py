"""A second diffusion model of the prior's folder: of pixels, at low noise, at any size.

Variance-exploding noise (Song et al., arXiv 2011.13456) on images in [0, 1]: ``x_σ = x + σ ε``; the network predicts
``ε`` (ε-prediction), so ``E[x | x_σ] = x_σ − σ ε̂``. Latents of a good autoencoder are nearly white: at low noise no
denoiser of latents knows anything that the latents do not say. Pixels are not white.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from splitsight.data import to_tensor
from splitsight.errors import UserError

__all__ = ["MEASURED", "SIGMAS", "PixelDenoiser", "build_pixel_denoiser", "denoising_gain", "pixel_deviation"]

SIGMAS = (0.01, 0.3)
"""Noise levels that it is trained for, in units of images in [0, 1]."""

MEASURED = (0.02, 0.06, 0.12, 0.25)
"""Those at which its gain is measured."""


def build_pixel_denoiser(
    widths: tuple[int, ...] = (48, 64, 96), layers: int = 1, factor: int = 2
) -> diffusers.UNet2DModel:
    """A small convolutional U-Net on ``factor × factor`` blocks of pixels (pixel-unshuffle), without attention."""
    return diffusers.UNet2DModel(
        in_channels=3 * factor**2,
        out_channels=3 * factor**2,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        add_attention=False,
        norm_num_groups=math.gcd(32, *widths),
    )


class PixelDenoiser(nn.Module):
    """``E[x | x_σ]`` for images of any size; differentiable with respect to them.

    Args:
        network: takes blocks of pixels in [−1, 1] and the time ``1000 σ``, gives the noise in units of ``σ``.
    """

    def __init__(self, network: diffusers.UNet2DModel) -> None:
        super().__init__()
        self.network = network
        self.factor = round((network.config["in_channels"] / 3) ** 0.5)
        self.multiple = self.factor * 2 ** (len(network.config["block_out_channels"]) - 1)

    @classmethod
    def from_folder(cls, folder: Path) -> PixelDenoiser:
        """Load what :meth:`save` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        try:
            return cls(diffusers.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).float().eval())
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"the denoiser of pixels at {folder} cannot be loaded: restore it or retrain it") from error

    def save(self, folder: Path) -> None:
        """Write a diffusers folder; weights as float16 safetensors."""
        copy.deepcopy(self.network).half().save_pretrained(folder)
        # diffusers keeps the folder that a network was loaded from, which is nobody else's business
        file = folder / "config.json"
        config = {name: value for name, value in json.loads(file.read_text()).items() if name != "_name_or_path"}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def noise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """``ε̂``: the noise, of about unit variance, in images at noise level ``sigma``.

        Args:
            x: noisy images ``(B, 3, H, W)``, nominally in [0, 1]; any size of at least 8 pixels.
            sigma: one level, or ``(B,)`` of them.
        """
        h, w = x.shape[-2:]
        right, below = -w % self.multiple, -h % self.multiple
        padded = functional.pad(2 * x - 1, (0, right, 0, below), mode="replicate")
        t = _levels(sigma, x) * 1000
        blocks = self.network(functional.pixel_unshuffle(padded, self.factor), t, return_dict=False)[0]
        return functional.pixel_shuffle(blocks, self.factor)[..., :h, :w]

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoised images; arguments as for :meth:`noise`."""
        return x - _levels(sigma, x).view(-1, 1, 1, 1) * self.noise(x, sigma)


def _levels(sigma: Tensor | float, x: Tensor) -> Tensor:
    """One level an image, ``(B,)``, where the images are."""
    return sigma.to(x).expand(len(x)) if isinstance(sigma, Tensor) else torch.full((len(x),), sigma).to(x)


@torch.no_grad()
def denoising_gain(denoiser: nn.Module, images: np.ndarray, sigma: float) -> float:
    """By how many dB a denoiser lessens the mean squared error of noisy images; noise is fixed.

    Args:
        denoiser: takes noisy images and a noise level.
        images: ``(N, H, W, 3)`` uint8.
        sigma: noise level, in units of images in [0, 1].
    """
    generator = torch.Generator().manual_seed(1)
    device = next(denoiser.parameters()).device
    before = after = 0.0
    for i in range(0, len(images), 50):
        x = to_tensor(images[i : i + 50])
        noise = sigma * torch.randn(x.shape, generator=generator)
        before += float(noise.square().sum())
        after += float((denoiser((x + noise).to(device), sigma) - x.to(device)).square().sum())
    return 10 * math.log10(before / after)


def pixel_deviation(images: Tensor) -> Tensor:
    """Standard deviation of white noise in images ``(K, 3, H, W)``, by the median of diagonal differences: ``(K,)``."""
    fine = images[..., 0::2, 0::2][..., : images.shape[-2] // 2, : images.shape[-1] // 2]
    height, width = fine.shape[-2:]
    corner = [images[..., i::2, j::2][..., :height, :width] for i in (0, 1) for j in (0, 1)]
    diagonal = (corner[0] - corner[1] - corner[2] + corner[3]) / 2
    return diagonal.flatten(1).abs().median(1).values / 0.6745
