"""Does a reconstruction identify its original? Its rank among a gallery, in a given feature space.

Distances are cosine distances between flattened features, each centred by the gallery's mean, so that what all
images share does not count. Ties are counted against the reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

__all__ = ["Match", "matched", "pixels"]


@dataclass(frozen=True)
class Match:
    """Where the right image was found.

    Attributes:
        ranks: ``(B,)`` int64, 1 for found first.
        gallery: images in the gallery; a guess has top-1 ``1 / gallery``.
    """

    ranks: Tensor
    gallery: int

    @property
    def top1(self) -> float:
        """Part found first, in [0, 1]."""
        return self.top(1)

    @property
    def top5(self) -> float:
        """Part found among the first five, in [0, 1]."""
        return self.top(5)

    def top(self, k: int) -> float:
        """Part found among the first ``k``, in [0, 1]; NaN without reconstructions."""
        return float((self.ranks <= k).double().mean())


def pixels(images: Tensor) -> Tensor:
    """A feature space without a network: the image averaged to 16 × 16, ``(B, C·256)``."""
    return interpolate(images.float(), size=(16, 16), mode="area").flatten(1)


@torch.no_grad()
def matched(
    reconstruction: Tensor,
    gallery: Tensor,
    true_index: Sequence[int] | Tensor,
    features: Callable[[Tensor], Tensor | tuple[Tensor, ...]] = pixels,
    *,
    batch: int = 250,
) -> Match:
    """Rank the originals by similarity to each reconstruction.

    Args:
        reconstruction: ``(B, C, H, W)`` in [0, 1].
        gallery: ``(G, C, H, W)`` in [0, 1], the right ones and distractors.
        true_index: B positions of the right images in the gallery.
        features: maps images to features of any shape, batch first; several tensors are joined.
        batch: images a call of ``features``.

    Raises:
        ValueError: an index outside the gallery, or not one a reconstruction.
    """
    truth = torch.as_tensor(true_index, dtype=torch.int64)
    if truth.shape != (len(reconstruction),):
        raise ValueError(f"{len(reconstruction)} reconstructions need as many indices, not {tuple(truth.shape)}")
    if len(truth) and not (int(truth.min()) >= 0 and int(truth.max()) < len(gallery)):
        raise ValueError(f"an index lies outside the gallery of {len(gallery)} images")

    def embed(images: Tensor) -> Tensor:
        rows = []
        for part in images.split(batch):
            out = features(part)
            tensors = out if isinstance(out, tuple) else (out,)
            rows.append(torch.cat([t.float().flatten(1) for t in tensors], 1))
        return torch.cat(rows)

    if len(truth) == 0:
        return Match(truth, len(gallery))
    base = embed(gallery)
    mean = base.mean(0)
    base = normalize(base - mean, dim=1)
    queries = normalize(embed(reconstruction) - mean, dim=1)
    ranks = []
    for query, right in zip(queries, truth, strict=True):
        similarity = base @ query
        mine = similarity[right]
        # written so that a NaN reconstruction ranks last
        ranks.append(len(base) - int((similarity < mine).sum()))
    return Match(torch.tensor(ranks), len(gallery))
