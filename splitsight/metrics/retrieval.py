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
    rivals: Tensor | None = None,
    batch: int = 250,
) -> Match:
    """Rank the originals by similarity to each reconstruction.

    Args:
        reconstruction: ``(B, C, H, W)`` in [0, 1].
        gallery: ``(G, C, H, W)`` in [0, 1], the right ones and distractors.
        true_index: B positions of the right images in the gallery.
        features: maps images to features of any shape, batch first; several tensors are joined.
        rivals: ``(B, G)`` bool, the images that each right one is to be told from, as many for each; by default all
            others. A reconstruction's gallery is then these and the right one, also where a mean is taken.
        batch: images a call of ``features``.

    Raises:
        ValueError: an index outside the gallery, or not one a reconstruction; ``rivals`` of another shape, of unequal
            numbers, or holding the right image.
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

    size = len(gallery) if rivals is None else _size(rivals, truth, len(gallery))
    if len(truth) == 0:
        return Match(truth, size)
    base, queries = embed(gallery), embed(reconstruction)
    ranks = []
    mean, members = _centred(base)
    for i, (query, right) in enumerate(zip(queries, truth, strict=True)):
        if rivals is not None:
            mean, members = _centred(torch.cat([base[rivals[i]], base[right : right + 1]]))
        similarity = members @ normalize(query - mean, dim=0)
        mine = similarity[right if rivals is None else -1]
        # written so that a NaN reconstruction ranks last
        ranks.append(len(members) - int((similarity < mine).sum()))
    return Match(torch.tensor(ranks), size)


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Their mean, and their directions from it."""
    mean = features.mean(0)
    return mean, normalize(features - mean, dim=1)


def _size(rivals: Tensor, truth: Tensor, gallery: int) -> int:
    """Images that each original is found among."""
    if rivals.dtype != torch.bool or rivals.shape != (len(truth), gallery):
        raise ValueError(f"rivals must be bool of shape {(len(truth), gallery)}, not {tuple(rivals.shape)}")
    numbers = rivals.sum(1)
    if len(truth) == 0:
        return gallery
    if bool(rivals[torch.arange(len(truth)), truth].any()) or int(numbers.min()) != int(numbers.max()):
        raise ValueError("each right image needs as many rivals as any other, and none of them itself")
    return int(numbers[0]) + 1
