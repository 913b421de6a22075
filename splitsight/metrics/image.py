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

from splitsight.metrics.metric import Metric, register

__all__ = ["PSNR_CAP", "PSNR_EQ14_CAP", "image_quality", "psnr", "psnr_eq14", "ssim"]

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


def psnr(reconstruction: Tensor, original: Tensor) -> Tensor:
    """``(B,)`` float64 on the CPU, dB, at most :data:`PSNR_CAP`; NaN where an input is NaN.

    Args:
        reconstruction: ``(B, C, H, W)``, float in [0, 1] (clamped) or uint8.
        original: likewise, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _pair(reconstruction, original)
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.float64)
    # in the functions, since it loads the libraries of all its metrics, of text and of sound, too: a second and more
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return found.double().clamp(max=PSNR_CAP).reshape(-1).cpu()


def psnr_eq14(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Equation 14; see the module for definition and cap, :func:`psnr` for arguments, form and errors."""
    x, y = _pair(reconstruction, original)
    difference = (x - y).abs().mean((1, 2, 3), dtype=torch.float64)
    return (-10 * difference.log()).clamp(max=PSNR_EQ14_CAP).cpu()


def ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """Structural similarity in [−1, 1], for H, W ≥ 11; see :func:`psnr` for arguments, form and errors."""
    x, y = _pair(reconstruction, original)
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.float64)
    from torchmetrics.functional.image import structural_similarity_index_measure

    # the mean is taken here because releases of torchmetrics differ in whether theirs includes the border
    full = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)[1]
    return full.mean((1, 2, 3), dtype=torch.float64).reshape(-1).cpu()


def image_quality(reconstruction: Tensor, original: Tensor) -> dict[str, Tensor]:
    """:func:`psnr`, :func:`psnr_eq14` and :func:`ssim` by name, with their arguments and errors."""
    return {fn.__name__: fn(reconstruction, original) for fn in (psnr, psnr_eq14, ssim)}


register(
    Metric(
        name="psnr",
        title="PSNR",
        unit="dB",
        fn=lambda batch: psnr(batch.reconstruction, batch.original),
        bounds=(0.0, PSNR_CAP),
        place=10,
    )
)
register(
    Metric(
        name="psnr_eq14",
        title="PSNR eq. 14",
        fn=lambda batch: psnr_eq14(batch.reconstruction, batch.original),
        bounds=(0.0, PSNR_EQ14_CAP),
        plotted=False,
        place=11,
    )
)
register(
    Metric(
        name="ssim",
        title="SSIM",
        fn=lambda batch: ssim(batch.reconstruction, batch.original),
        digits=3,
        bounds=(-1.0, 1.0),
        place=12,
    )
)
