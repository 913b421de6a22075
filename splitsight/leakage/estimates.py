"""A measure estimated for each image by random probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitsight.errors import UserError
from splitsight.metrics.intervals import UNBOUNDED, mean_interval

__all__ = ["Deviations", "Estimates", "averaged", "check_finite", "deviations_of", "generators", "signs"]

Deviations = float | Sequence[float] | np.ndarray
"""Standard deviation of the noise: one for all tensors, one a tensor ``(T,)``, or one an image and tensor ``(N,
T)``."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """One number an image, each a mean over probes.

    Attributes:
        values: ``(N,)`` float64.
        errors: ``(N,)``, standard error of each value through the choice of probes; 0 where it was computed exactly.
    """

    values: np.ndarray
    errors: np.ndarray

    def interval(self, bounds: tuple[float, float] = UNBOUNDED) -> dict[str, float | None]:
        """``{"mean", "low", "high"}`` over images; the spread through probes is contained in that between images."""
        return mean_interval(self.values, bounds)


def averaged(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples ``(N, P)`` → values and standard errors, ``(N,)`` each."""
    return samples.mean(1), samples.std(1, ddof=1) / np.sqrt(samples.shape[1])


def deviations_of(sigma: Deviations, images: int, tensors: int) -> np.ndarray | None:
    """``(N, T)``; ``None`` where a tensor crosses without noise.

    Raises:
        ValueError: negative or not finite, or of another number of tensors or images.
    """
    given = np.asarray(sigma, np.float64)
    if not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"deviations of noise must be finite and not negative, not {sigma}")
    if given.shape not in ((), (tensors,), (images, tensors)):
        raise ValueError(
            f"deviations of the shape {given.shape} were given for {images} images with {tensors} tensors each: give "
            f"one number, one a tensor, or ({images}, {tensors})"
        )
    return np.broadcast_to(given, (images, tensors)) if given.all() else None


def generators(seed: int, first: int, count: int) -> list[torch.Generator]:
    """One an image, so that its probes depend on the seed and its place alone, not on how images are batched."""
    states = [np.random.SeedSequence((seed, first + i)).generate_state(1, np.uint64)[0] for i in range(count)]
    return [torch.Generator().manual_seed(int(state)) for state in states]


def signs(draws: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Rademacher numbers, −1 and 1, of the shape ``(B, …)`` and on the device of ``like``; drawn on the CPU."""
    drawn = [torch.randint(0, 2, like.shape[1:], generator=g) for g in draws]
    return torch.stack(drawn).to(like).mul_(2).sub_(1)


def check_finite(numbers: np.ndarray, first: int) -> None:
    """Refuse rows, one an image, that are not finite.

    Args:
        numbers: ``(B, …)``.
        first: place of the first of these images among all.

    Raises:
        UserError: names the image.
    """
    wrong = np.flatnonzero(~np.isfinite(numbers).reshape(len(numbers), -1).all(1))
    if len(wrong):
        raise UserError(
            f"the derivative of F1 is not finite at image {first + int(wrong[0])}, counted from 0: check the image and "
            "the network's weights"
        )
