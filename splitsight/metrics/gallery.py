"""Finding the right frame among many: each reconstruction ranked against its own original and distractors.

The distractors are drawn once for a run, by its seed, from a gallery that the user gives, without repeats; an exact
copy of an original is no distractor for that original. Whether a reconstruction finds its original among them says
what PSNR does not: whether it can be told *which* image this was.

Frames of one clip are nearly equal, so that no figure should depend on telling them apart: the distractors come
from the gallery alone, never from the other frames of the run. Nearly equal images *within* a gallery are not looked
for: a gallery should be of other origin than the attacked images, or hold each scene once.

What "similar" means is a :class:`Space`. :data:`SPACES` holds those that can be asked for by name; an entry is made
from the attacked target. Features of the attacked network favour attacks that fit its features, so that space bears
the network's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.data import draw_images, to_pixels, to_tensor
from splitsight.errors import UserError, unknown_name
from splitsight.metrics.intervals import proportion_interval
from splitsight.metrics.retrieval import matched, pixels
from splitsight.targets import Target

__all__ = ["SPACES", "Gallery", "Lineup", "Space", "space_of"]


@dataclass(frozen=True)
class Space:
    """Where images are compared.

    Attributes:
        name: as summaries carry it; says which network it is, if it is one.
        features: ``(B, 3, H, W)`` in [0, 1] → features, batch first.
    """

    name: str
    features: Callable[[Tensor], Tensor]


def _pixels(target: Target) -> Space:
    return Space("pixels-16x16", pixels)


def _penultimate(target: Target) -> Space:
    """What the attacked network's last linear layer is given."""
    last = [m for m in target.model.modules() if isinstance(m, nn.Linear)]
    if not last:
        raise UserError(
            f"{target.name} has no linear layer, so no penultimate features: choose --gallery-features pixels"
        )

    def features(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = last[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        try:
            target.model(target.preprocess(images.to(target.device)))
        finally:
            hook.remove()
        return seen[-1].to(images.device)

    return Space(f"{target.name}-penultimate", features)


SPACES: dict[str, Callable[[Target], Space]] = {"pixels": _pixels, "target": _penultimate}
"""Feature spaces by the name under which they are asked for."""


def space_of(features: str, target: Target) -> Space:
    """A space by name.

    Raises:
        UserError: no such features.
    """
    if features not in SPACES:
        raise unknown_name("features to compare images in", features, list(SPACES))
    return SPACES[features](target)


@dataclass(frozen=True)
class Lineup:
    """Originals among their distractors; see :meth:`Gallery.against`."""

    images: Tensor
    rivals: Tensor
    space: Space

    def ranks(self, reconstructions: Tensor) -> list[int]:
        """The place of each original by similarity to its reconstruction, 1 for found first.

        Args:
            reconstructions: ``(B, 3, H, W)`` in [0, 1], in the order of the originals.
        """
        right = range(len(self.images) - len(self.rivals), len(self.images))
        return matched(
            reconstructions, self.images, list(right), self.space.features, rivals=self.rivals
        ).ranks.tolist()


@dataclass(frozen=True)
class Gallery:
    """Distractors.

    Attributes:
        images: ``(N, H, W, 3)`` uint8 RGB, no two equal; ``size`` of them, or one less.
        size: images that an original is found among, itself included.
        space: where they are compared.
        source: for messages.
    """

    images: np.ndarray
    size: int
    space: Space
    source: Path

    @classmethod
    def draw(cls, source: Path, target: Target, *, size: int, features: str, seed: int, spare: bool = False) -> Gallery:
        """Draw distractors.

        Args:
            source: folder of PNG/JPEG, or Parquet in Hugging Face image format.
            target: the attacked network; says the size of images.
            size: images that an original is found among, itself included; ≥ 2.
            features: a name out of :data:`SPACES`.
            seed: of the draw.
            spare: ask for one image more, for originals that are not known yet and may be among them.

        Raises:
            UserError: unknown features, nothing readable there, or too few different images.
        """
        space = space_of(features, target)
        if size < 2:
            raise UserError(f"--gallery-size must be at least 2, not {size}")
        gallery = cls(draw_images(source, target.input_size, size, seed).images, size, space, source)
        if len(gallery.images) < size - (not spare):
            raise gallery._too_small(len(gallery.images), spare)
        return gallery

    def _too_small(self, found: int, spare: bool) -> UserError:
        needed = self.size if spare else self.size - 1
        most = found if spare else found + 1
        return UserError(
            f"{self.source} holds {found} different images where a gallery of {self.size} needs {needed}: give "
            + (f"a larger one, or --gallery-size {most}" if most >= 2 else "a larger one")
        )

    def against(self, originals: Tensor) -> Lineup:
        """Line originals up with their distractors.

        Args:
            originals: ``(B, 3, H, W)`` in [0, 1].

        Raises:
            UserError: an original is itself among too few distractors.
        """
        place = {image.tobytes(): i for i, image in enumerate(self.images)}
        rivals = torch.zeros(len(originals), len(self.images) + len(originals), dtype=torch.bool)
        for row, original in zip(rivals, to_pixels(originals), strict=True):
            own = place.get(original.tobytes())
            if own is None:
                row[: self.size - 1] = True
            elif len(self.images) < self.size:
                raise self._too_small(len(self.images) - 1, False)
            else:  # the image to spare takes its place
                row[: self.size] = True
                row[own] = False
        return Lineup(torch.cat([to_tensor(self.images), originals]), rivals, self.space)

    def summary(self, ranks: list[int]) -> dict[str, Any]:
        """A method's ``match`` in ``summary.json``: how often the original was found first, or among the first five."""
        return {
            "gallery": self.size,
            "features": self.space.name,
            **{f"top{k}": proportion_interval([rank <= k for rank in ranks]) for k in (1, 5)},
        }
