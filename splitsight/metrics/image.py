"""Image quality of reconstructions, one figure an image.

* ``psnr``: 10 · log₁₀(1 / mean (I − Î)²) on [0, 1], in dB.
* ``psnr_eq14``: 10 · ln(255 / mean |I − Î|) on the 0–255 scale: the definition of the paper "Unlocking Visual
  Secrets" (equation 14; its tables fit the natural logarithm), reported beside the standard one and comparable
  with nothing else.
* ``ssim``: structural similarity (Wang et al., 2004), Gaussian window of σ = 1.5 (11 × 11), in [−1, 1], averaged
  over the whole image with reflected borders. (Some implementations leave out the outer five pixels, which
  at 64 × 64 is 29 % of the image and moves the figure by some hundredths.)

Both PSNRs grow without bound as the difference vanishes, so both are capped, and identical images count as the cap:
:data:`PSNR_CAP` = 100 dB (root mean square difference 10⁻⁵) and :data:`PSNR_EQ14_CAP` = 10 · ln 10⁸ ≈ 184.2 (mean
difference 10⁻⁸). 8-bit images up to 150,000 values that differ at all stay below the caps, and means stay finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

__all__ = ["PSNR_CAP", "PSNR_EQ14_CAP", "image_quality", "psnr_eq14"]

PSNR_CAP = 100.0
"""dB; ``psnr`` of identical images (a root mean square difference of 10⁻⁵ on [0, 1])."""

PSNR_EQ14_CAP = 10 * math.log(1e8)
"""``psnr_eq14`` of identical images (a mean difference of 10⁻⁸ on [0, 1])."""


def _unit(images: Tensor) -> Tensor:
    """uint8, or float in [0, 1] → float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.detach().float().clamp(0, 1)


def _pair(reconstruction: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    if reconstruction.shape != original.shape or original.ndim != 4:
        raise ValueError(
            f"reconstruction {tuple(reconstruction.shape)} and original {tuple(original.shape)} "
            "must have the same shape (B, C, H, W)"
        )
    return _unit(reconstruction), _unit(original)


def psnr_eq14(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Equation 14, ``(B,)``; see the module for definition and cap.

    Args:
        reconstruction: ``(B, C, H, W)``, float in [0, 1] (clamped) or uint8.
        original: likewise, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _pair(reconstruction, original)
    difference = (x - y).abs().mean((1, 2, 3), dtype=torch.float64)
    return (-10 * difference.log()).clamp(max=PSNR_EQ14_CAP)


def image_quality(reconstruction: Tensor, original: Tensor) -> dict[str, Tensor]:
    """``psnr`` (dB), ``psnr_eq14`` and ``ssim``, each ``(B,)`` float64 on the CPU; NaN where an input is NaN.

    Args:
        reconstruction: ``(B, C, H, W)``, float in [0, 1] (clamped) or uint8; H, W ≥ 11.
        original: likewise, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _pair(reconstruction, original)
    if len(x) == 0:
        empty = torch.zeros(0, dtype=torch.float64)
        return {"psnr": empty, "psnr_eq14": empty.clone(), "ssim": empty.clone()}
    psnr = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3)).double()
    # the mean is taken here because releases of torchmetrics differ in whether theirs includes the border
    full = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)[1]
    ssim = full.mean((1, 2, 3), dtype=torch.float64)
    return {
        "psnr": psnr.clamp(max=PSNR_CAP).reshape(-1).cpu(),
        "psnr_eq14": psnr_eq14(x, y).cpu(),
        "ssim": ssim.reshape(-1).cpu(),
    }
