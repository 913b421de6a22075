"""Random draws of the edge: from the system's entropy where it runs, from a seed an image where it is measured."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Independent numbers, drawn on the CPU so that a seed means the same anywhere.

    Args:
        seeds: one an image of each batch, whose numbers then depend on nothing else; ``None`` takes the system's
            entropy, as an edge does: nobody who knows everything but that can repeat them.

    Raises:
        ValueError: a batch of another size than there are seeds (when drawing).
    """

    def __init__(self, seeds: Sequence[int] | None = None) -> None:
        self._apart = seeds is not None
        self._generators = [torch.Generator().manual_seed(s) for s in seeds or [secrets.randbits(63)]]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape ``(B, …)`` and on the device of ``like``; other ones at each call."""
        if not self._apart:
            return torch.randn(like.shape, generator=self._generators[0]).to(like)
        if len(self._generators) != len(like):
            raise ValueError(f"{len(self._generators)} seeds were given for a batch of {len(like)} images")
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators]).to(like)
