"""Images to measure attacks on, with a :class:`~scenarios.workbench.Workbench` that plays the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adversary.attacks import Attack, Problem
from scenarios.workbench import Workbench, edge_seeds
from splitsight.data import load_images, to_tensor
from splitsight.metrics import Batch, image_metrics, measure
from splitsight.metrics.gallery import Space, space_of
from splitsight.metrics.retrieval import matched

__all__ = ["Stills", "score"]


class Stills:
    """Originals, read once.

    Args:
        models: what attacks them.
        images: folder of PNG/JPEG, one such file, or Parquet in Hugging Face image format.
        limit: at most this many are read.
        tail: the last ones instead of the first, such as those that a training shard ends with.

    Attributes:
        names: one an image.
        originals: ``(N, 3, H, W)`` in [0, 1], on the CPU.

    Raises:
        UserError: nothing readable there.
    """

    def __init__(self, models: Workbench, images: Path, limit: int | None = None, *, tail: bool = False) -> None:
        found = load_images(images, models.target.input_size, limit, tail=tail)
        self.models = models
        self.names, self.originals = found.names, to_tensor(found.images)
        self._embedded: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.names)

    def problem(
        self, attack: Attack, split: str, index: Sequence[int], *, seed: int = 0, defense: str = "identity"
    ) -> Problem:
        """What an attacker gets to know of some images.

        Args:
            attack: says what it needs.
            split: cut of the target.
            index: positions of the images, which follow one another.
            seed: of the edge's and the attack's draws.
            defense: what the edge does to the features.

        Raises:
            UserError: no such split or defence, or something that the attack needs is not there.
        """
        pipeline = self.models.pipeline(split, defense)
        features = self.models.observe(pipeline, self.originals[list(index)], edge_seeds(seed, index))
        return self.models.problem(attack, pipeline.description(), features, seed=seed, first=index[0])

    @torch.no_grad()
    def ranks(self, images: Tensor, index: Sequence[int], features: str) -> list[int]:
        """The place of each original among all of these by similarity to its reconstruction, 1 for found first.

        Args:
            images: reconstructions ``(B, 3, H, W)`` in [0, 1], of any size.
            index: of their originals.
            features: a name out of :data:`splitsight.metrics.gallery.SPACES`.

        Raises:
            UserError: no such features.
        """
        space = space_of(features, self.models.target)
        if features not in self._embedded:
            self._embedded[features] = _embed(space, self.originals)
        seen = _embed(space, self.models.fitted(images))
        return matched(seen, self._embedded[features], index, lambda rows: rows).ranks.tolist()

    def score(self, images: Tensor, index: Sequence[int]) -> list[dict[str, float]]:
        """Quality of each reconstruction ``(B, 3, H, W)``, of any size; see :func:`score`."""
        return score(self.models.fitted(images), self.originals[list(index)])


def _embed(space: Space, images: Tensor) -> Tensor:
    return torch.cat([space.features(part).flatten(1) for part in images.split(250)])


def score(images: Tensor, originals: Tensor) -> list[dict[str, float]]:
    """Quality of each reconstruction as it would be written to disk, with eight bits a channel; NaN where unknown.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1], on the CPU.
        originals: likewise.
    """
    stored = (images.clamp(0, 1) * 255).round() / 255
    table = measure(image_metrics(), Batch(reconstruction=stored, original=originals))
    return [
        {name: math.nan if values[i] is None else float(values[i]) for name, values in table.items()}
        for i in range(len(images))
    ]
