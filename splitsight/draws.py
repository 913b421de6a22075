"""Random draws of the edge: from the system's entropy where it runs, from a seed an image where it is measured."""

from __future__ import annotations

from collections.abc import Sequence

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

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape ``(B, …)`` and on the device of ``like``; other ones at each call."""
        if self._entropy is not None:
            return torch.from_numpy(self._entropy.standard_normal(like.shape, np.float32)).to(like)
        if len(self._generators) != len(like):
            raise ValueError(f"{len(self._generators)} seeds were given for a batch of {len(like)} images")
        return torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators]).to(like)
