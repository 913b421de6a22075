"""Query pairs in batches: which pairs a step takes, which ones are put aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adversary.blackbox.queries import Pairs
from adversary.priors.prior import Prior, Text
from splitsight.data import to_tensor

__all__ = ["Batch", "Batches", "Captions", "held_out"]


@dataclass(frozen=True)
class Batch:
    """Pairs of one step.

    Attributes:
        index: which ones, ``(B,)``.
        x: their images ``(B, 3, S, S)`` in [0, 1].
        z: their features.
        text: their captions, for a network with text.
        epoch: how often each pair was seen before this step.
    """

    index: Tensor
    x: Tensor
    z: list[Tensor]
    text: Text | None = None
    epoch: float = 0.0


class Captions:
    """Each picture's caption, embedded once."""

    def __init__(self, prior: Prior, captions: list[str]) -> None:
        different = sorted(set(captions))
        parts = [prior.embed_text(different[i : i + 64]) for i in range(0, len(different), 64)]
        self.states, self.mask = torch.cat([p.states for p in parts]), torch.cat([p.mask for p in parts])
        place = {caption: i for i, caption in enumerate(different)}
        self.rows = torch.tensor([place[c] for c in captions])

    def text(self, index: Tensor) -> Text:
        """Captions of some pictures."""
        rows = self.rows[index].to(self.states.device)
        return Text(self.states[rows], self.mask[rows])


class Batches:
    """Pairs on a device, shuffled anew each epoch, the same for the same step whether resumed or not.

    Args:
        pairs: windows of ``frames`` side by side.
        frames: K.
        batch: pairs of a step, at most; whole windows, at least one.
        seed: of the shuffling.
        device: of the batches.
        captions: of the same pairs.
    """

    def __init__(
        self,
        pairs: Pairs,
        frames: int,
        batch: int,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        captions: Captions | None = None,
    ) -> None:
        self.pairs, self.frames, self.seed, self.captions = pairs, frames, seed, captions
        self.device = device or torch.device("cpu")
        self.groups = len(pairs) // frames
        self.windows = max(1, min(batch // frames, self.groups))
        self.per_epoch = max(1, self.groups // self.windows)

    @property
    def size(self) -> int:
        """Pairs of a step."""
        return self.windows * self.frames

    def at(self, step: int) -> Batch:
        """Of a step of the training."""
        epoch, at = divmod(step, self.per_epoch)
        order = torch.randperm(self.groups, generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch))
        chosen = order[at * self.windows : (at + 1) * self.windows]
        index = (chosen[:, None] * self.frames + torch.arange(self.frames)).flatten()
        return self._take(index, step / self.per_epoch)

    def in_order(self) -> Iterator[Batch]:
        """All pairs of whole windows, once; one batch at a time is in memory."""
        return (self._take(index) for index in torch.arange(self.groups * self.frames).split(self.size))

    def _take(self, index: Tensor, epoch: float = 0.0) -> Batch:
        rows = index.numpy()
        x = to_tensor(self.pairs.images[rows]).to(self.device)
        z = [torch.from_numpy(f[rows]).to(self.device) for f in self.pairs.features]
        return Batch(index, x, z, None if self.captions is None else self.captions.text(index), epoch)


def held_out(train: Pairs, most: int = 400, frames: int = 1) -> tuple[Pairs, Pairs]:
    """Pairs to learn from, and the last tenth of them to measure on: at least 4, at most ``most``, whole windows."""
    count = max(frames, min(most, max(4, len(train) // 10)) // frames * frames)
    return train[: len(train) - count], train[len(train) - count :]
