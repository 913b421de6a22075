"""Eight-bit tensors with one scale a channel, or one in all, as features travel and weights are stored.

With ``c`` an index of the chosen dimension: ``scale_c = max |x_c| / 127``, ``q = round(x_c / scale_c)``,
``x̂_c = scale_c q``, so ``|x̂_c − x_c| ≤ scale_c / 2`` (up to the rounding of float32 itself).
"""

from __future__ import annotations

import numpy as np

__all__ = ["dequantize", "quantize"]


def _apart(values: np.ndarray, axis: int | None) -> np.ndarray:
    """``(scales, …)``: what shares a scale in one row."""
    return values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _spread(scales: np.ndarray, ndim: int, axis: int | None) -> np.ndarray:
    """Scales, ready to broadcast."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


def quantize(values: np.ndarray, axis: int | None = 0) -> tuple[np.ndarray, np.ndarray]:
    """Finite float32 → int8 of the same shape, and float32 scales.

    Args:
        values: any shape of at least one dimension.
        axis: the dimension whose entries have a scale each; ``None`` for one scale in all.

    Returns:
        int8 values, and as many scales as ``axis`` has entries.
    """
    rows = _apart(values, axis).astype(np.float64)
    peak = np.abs(rows).max(axis=1)
    scale = (peak / 127).astype(np.float32)
    # where float32 runs out of digits (below 1e-38) rounding down would push q beyond 127
    tiny = scale < np.finfo(np.float32).tiny
    scale = np.where(tiny & (scale.astype(np.float64) * 127 < peak), np.nextafter(scale, np.float32(np.inf)), scale)
    # and at the other end rounding up would push 127 * scale beyond the largest float32
    with np.errstate(over="ignore"):
        scale = np.where(np.isfinite(scale * np.float32(127)), scale, np.nextafter(scale, np.float32(0)))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    q = np.clip(np.rint(values / _spread(divisor, values.ndim, axis)), -127, 127).astype(np.int8)
    return q, scale


def dequantize(q: np.ndarray, scales: np.ndarray, axis: int | None = 0) -> np.ndarray:
    """What :func:`quantize` made, back as float32 of the same shape.

    Raises:
        ValueError: it cannot have made that; one sentence.
    """
    wanted = 1 if axis is None else q.shape[axis]
    if len(scales) != wanted:
        raise ValueError(f"an int8 tensor of {wanted} channels came with {len(scales)} scales: one a channel is needed")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise ValueError("an int8 tensor came with a scale that is negative, NaN or infinite")
    if (q == -128).any():
        raise ValueError("an int8 tensor holds -128, which stands for nothing: values lie in -127 … 127")
    with np.errstate(over="ignore"):
        return q.astype(np.float32) * _spread(scales, q.ndim, axis)
