"""Fisher information of the images' own distribution, ``tr J_P/d`` with ``J_P = E ∇log p ∇log pᵀ``, between two limits.

Natural images lie near a surface of fewer dimensions, where ``tr J_P`` is infinite and van Trees' bound is 0: no number
of samples says otherwise. What can be known is the information of ``y = x + τ n``, images that count as equal within τ.
Three limits hold for it, whatever the distribution of x:

* above, ``1/τ²``: Fisher information only falls when something independent is added (Stam, Inf. Control 2, 1959);
* below, ``tr (Σ + τ²)⁻¹/d``, Σ the covariance of x: no distribution with that covariance has less than the Gaussian.
  Averaging Σ over shifts, and its spectrum over rings of one spatial frequency, only lowers it further (tr Σ⁻¹ is
  convex) and makes it known from few images: one 3 × 3 matrix of the channels a ring;
* below, ``(1 − m/τ²)/τ²``, m the mean squared error of *any* denoiser of y: by Tweedie's formula it is an equality
  for the posterior mean (Efron, JASA 106(496), 2011), and every other denoiser has a larger m.

Van Trees' bound with the upper limit is guaranteed, and never more than τ²; with the lower limit it is the most that
any such bound could promise. A Gaussian with independent numbers, or one of a spectrum that is the same in all
directions, attains the second limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splitsight.devices import standard_normal

__all__ = ["PriorInformation", "prior_information", "smoothed"]


@dataclass(frozen=True)
class PriorInformation:
    """``tr J_P/d`` of images with noise of deviation τ, in inverse squared input numbers.

    Attributes:
        low: no more can van Trees' bound promise than with this, up to the sampling error of the images given.
        high: with this the bound holds.
    """

    low: float
    high: float


def smoothed(images: Tensor, tau: float, seed: int = 0) -> Tensor:
    """``x + τ n``, n standard normal: the images that the bound speaks about, and whose dFIL belongs in it.

    Args:
        images: ``(N, C, H, W)`` in [0, 1]; the result is not cut to that.
        tau: deviation.
        seed: of the first image; the others have the following ones.
    """
    return images + tau * standard_normal(images.shape[1:], range(seed, seed + len(images)), images.device)


def prior_information(
    images: Tensor, tau: float, denoise: Callable[[Tensor], Tensor] | None = None, *, seed: int = 0
) -> PriorInformation:
    """Limits of the information in the distribution of such images, smoothed by τ.

    Args:
        images: ``(N, C, H, W)`` in [0, 1], N ≥ 2, drawn independently.
        tau: deviation of the noise within which images count as equal, > 0; 0.1 (20 dB) is about what attacks reach.
        denoise: images with such noise → without; raises the lower limit where it does better than a Wiener filter.
        seed: of the noise that the denoiser is given.

    Raises:
        ValueError: fewer than 2 images, or τ that is not positive.
    """
    if len(images) < 2 or not 0 < tau < float("inf"):
        raise ValueError(f"{len(images)} images and τ = {tau}: give at least 2 images and a positive number")
    low = _gaussian(images, tau)
    if denoise is not None:
        with torch.no_grad():
            error = float((denoise(smoothed(images, tau, seed)) - images).double().square().mean())
        low = max(low, (1 - error / tau**2) / tau**2)
    return PriorInformation(low, tau**-2)


def _gaussian(images: Tensor, tau: float) -> float:
    """``tr (Σ + τ²)⁻¹/d`` with Σ averaged over shifts and over frequencies of one modulus."""
    x = images.detach().double()
    channels, height, width = x.shape[1:]
    x = x - x.mean((0, 2, 3), keepdim=True)
    f = torch.fft.fft2(x, norm="ortho").permute(2, 3, 0, 1).flatten(0, 1)  # (frequencies, N, C)
    # real: a ring holds both signs of each frequency
    power = torch.einsum("fni,fnj->fij", f, f.conj()).real / len(x)
    rows, columns = torch.fft.fftfreq(height, 1 / height), torch.fft.fftfreq(width, 1 / width)
    rings = torch.hypot(rows[:, None], columns).round().long().flatten().to(x.device)
    counts = torch.bincount(rings)
    ring_power = torch.zeros(len(counts), channels, channels, dtype=x.dtype, device=x.device)
    ring_power.index_add_(0, rings, power)
    present = counts > 0
    covariance = ring_power[present] / counts[present, None, None]
    inverse = torch.linalg.inv(covariance + tau**2 * torch.eye(channels, dtype=x.dtype, device=x.device))
    traces = inverse.diagonal(dim1=1, dim2=2).sum(1)
    return float((counts[present] * traces).sum()) / (channels * height * width)
