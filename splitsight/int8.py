"""Eight-bit tensors with one scale a channel, as features travel and weights are stored.

With ``c`` an index of the first dimension: ``scale_c = max |x_c| / 127``, ``q = round(x_c / scale_c)``,
``x̂_c = scale_c q``, so ``|x̂_c − x_c| ≤ scale_c / 2`` (up to the rounding of float32 itself).
"""

from __future__ import annotations

import numpy as np

__all__ = ["dequantize", "quantize"]


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite float32 ``(C, …)`` → int8 of the same shape, and ``(C,)`` float32 scales."""
    channels = values.reshape(len(values), -1).astype(np.float64)
    peak = np.abs(channels).max(axis=1)
    scale = (peak / 127).astype(np.float32)
    # where float32 runs out of digits (below 1e-38) rounding down would push q beyond 127
    tiny = scale < np.finfo(np.float32).tiny
    scale = np.where(tiny & (scale.astype(np.float64) * 127 < peak), np.nextafter(scale, np.float32(np.inf)), scale)
    # and at the other end rounding up would push 127 * scale beyond the largest float32
    with np.errstate(over="ignore"):
        scale = np.where(np.isfinite(scale * np.float32(127)), scale, np.nextafter(scale, np.float32(0)))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
    q = np.clip(np.rint(channels / divisor), -127, 127).astype(np.int8)
    return q.reshape(values.shape), scale


def dequantize(q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """What :func:`quantize` made, back as float32 ``(C, …)``.

    Raises:
        ValueError: it cannot have made that; one sentence.
    """
    if len(scales) != len(q):
        raise ValueError(f"an int8 tensor of {len(q)} channels came with {len(scales)} scales: one a channel is needed")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise ValueError("an int8 tensor came with a scale that is negative, NaN or infinite")
    if (q == -128).any():
        raise ValueError("an int8 tensor holds -128, which stands for nothing: values lie in -127 … 127")
    with np.errstate(over="ignore"):
        return q.astype(np.float32) * scales.reshape(-1, *[1] * (q.ndim - 1))
