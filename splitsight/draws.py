"""Random draws of the edge: from the system's entropy where it runs, from a seed an image where it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Independent numbers, drawn on the CPU so that a seed means the same anywhere.

    Args:
        seeds: one an image of each batch, 0 to 2³² − 1, whose numbers then depend on nothing else; ``None`` takes 128
            bits of the system's entropy, as an edge does: nobody who knows everything but that can repeat them.

    Raises:
        ValueError: a seed of more than 32 bits, of which torch's generator on the CPU ignores all others; a batch of
            another size than there are seeds (when drawing).
    """

    def __init__(self, seeds: Sequence[int] | None = None) -> None:
        if any(not 0 <= s < 2**32 for s in seeds or ()):
            raise ValueError(f"seeds must be from 0 to 2**32 - 1, not {seeds}")
        self._entropy = np.random.default_rng() if seeds is None else None
        self._generators = [torch.Generator().manual_seed(s) for s in seeds or ()]

    @classmethod
    def stream(cls, seed: int) -> Draws:
        """One stream of numbers from a seed, whatever the batches: much quicker than a seed an image."""
        made = cls()
        made._entropy = np.random.default_rng(seed)
        return made

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape ``(B, …)`` and on the device of ``like``; other ones at each call."""
        if self._entropy is not None:
            return torch.from_numpy(self._entropy.standard_normal(like.shape, np.float32)).to(like)
        return self._each(like, lambda shape, g: torch.randn(shape, generator=g))

    def laplace(self, like: Tensor) -> Tensor:
        """The same with the density ``½ exp(−|n|)``: the difference of two exponential variables."""
        if self._entropy is not None:
            a, b = (self._entropy.standard_exponential(like.shape, np.float32) for _ in range(2))
            return torch.from_numpy(a - b).to(like)
        return self._each(like, lambda shape, g: _exponential(shape, g) - _exponential(shape, g))

    def uniform(self, like: Tensor) -> Tensor:
        """The same, uniform in [0, 1)."""
        if self._entropy is not None:
            return torch.from_numpy(self._entropy.random(like.shape, np.float32)).to(like)
        return self._each(like, lambda shape, g: torch.rand(shape, generator=g))

    def _each(self, like: Tensor, draw: Callable[[torch.Size, torch.Generator], Tensor]) -> Tensor:
        if len(self._generators) != len(like):
            raise ValueError(f"{len(self._generators)} seeds were given for a batch of {len(like)} images")
        return torch.stack([draw(like.shape[1:], g) for g in self._generators]).to(like)


def _exponential(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).exponential_(generator=generator)
