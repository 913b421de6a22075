"""How far a reconstruction's error repeats with the stride of F1: the grid that a fit of features leaves on flat walls.

An attack that follows the features sees an image through positions that are ``stride`` pixels apart, and what it gets
wrong it gets wrong alike at each of them. In the spectrum of the error (Hann window, mean over channels) that is power
at the multiples of 1/stride, above that of their neighbours; the error of a blur, or noise, has no such lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splitsight.metrics.metric import Batch, Metric, register

__all__ = ["can_be_measured", "grid_lines"]

_APART = 2
"""Bins between a line and its neighbours: a Hann window spreads a line over the next bin on each side."""


def grid_lines(reconstruction: Tensor, original: Tensor, stride: int) -> Tensor:
    """Power of the error at the multiples of 1/stride over that of frequencies two bins beside them, in dB.

    Args:
        reconstruction: ``(B, C, H, W)`` in [0, 1].
        original: likewise. Zeros, to measure an image instead of an error.
        stride: pixels, ≥ 2; of which the sides are at least four, and a multiple.

    Returns:
        ``(B,)`` float64 on the CPU: 0 where the error has no grid, in the mean over images; NaN where it has none of
        these frequencies at all (no error).

    Raises:
        ValueError: another stride, or the shapes differ.
    """
    if reconstruction.shape != original.shape or original.ndim != 4:
        raise ValueError(f"{tuple(reconstruction.shape)} and {tuple(original.shape)} must be one shape (B, C, H, W)")
    height, width = original.shape[-2:]
    if not can_be_measured(original.shape[-2:], stride):
        raise ValueError(f"lines {stride} pixels apart cannot be told from their neighbours on {height} × {width}")
    error = (reconstruction - original).double().cpu()
    error = error - error.mean((-2, -1), keepdim=True)
    rows, columns = (torch.hann_window(n, dtype=torch.float64) for n in (height, width))
    power = torch.fft.fft2(error * rows[:, None] * columns).abs().square().mean(1)
    lines = torch.zeros(height, width, dtype=torch.float64)
    lines[:: height // stride, :: width // stride] = 1
    lines[0, 0] = 0
    beside = sum(
        (lines.roll(shift, (0, 1)) for shift in _ring(_APART)),
        start=torch.zeros(height, width, dtype=torch.float64),
    )
    beside[lines.bool()] = 0
    beside[0, 0] = 0
    found = (power * lines).sum((1, 2)) / lines.sum() / ((power * beside).sum((1, 2)) / beside.sum())
    return 10 * found.log10()


def can_be_measured(size: Sequence[int], stride: int) -> bool:
    """Whether :func:`grid_lines` takes images of this size, rows and columns."""
    return stride >= 2 and all(side % stride == 0 and side // stride >= 2 * _APART for side in size)


def _ring(distance: int) -> list[tuple[int, int]]:
    """The eight places a distance away along rows, columns and diagonals."""
    steps = (-distance, 0, distance)
    return [(row, column) for row in steps for column in steps if row or column]


def _measured(batch: Batch) -> Tensor | None:
    stride = batch.stride or 0
    if not can_be_measured(batch.original.shape[-2:], stride):
        return None
    return grid_lines(batch.reconstruction, batch.original, stride)


register(
    Metric(
        name="grid_lines",
        title="grid lines",
        unit="dB",
        fn=_measured,
        needs=frozenset({"reconstruction", "original", "stride"}),
        better="lower",
        plotted=False,
        place=13,
    )
)
