"""What denoisers are trained on: small labelled images, and crops of larger photographs at many scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitsight.captions import caption, measure, measured, read_class_names
from splitsight.errors import UserError
from splitsight.photographs import Names, Photographs
from splitsight.training_data import TrainingSet

__all__ = ["Draw", "Pictures"]


@dataclass(frozen=True)
class Draw:
    """One step's pictures: some of the shards' by index, and crops of photographs."""

    index: np.ndarray
    crops: np.ndarray
    names: list[Names]

    def __len__(self) -> int:
        return len(self.index) + len(self.crops)

    def crop_captions(self, rng: np.random.Generator) -> list[str]:
        """A caption of each crop."""
        return [caption(name, measure(crop), rng) for crop, name in zip(self.crops, self.names, strict=True)]


class Pictures:
    """Small images, of which a part is held out, and optionally larger photographs.

    Args:
        data: small images; captions name their classes where it has labels and a table of class names
            (:func:`splitsight.captions.read_class_names`).
        photos: Parquet files for :class:`Photographs`; may be empty.
        size: pixels.

    Attributes:
        images: ``(N, size, size, 3)`` uint8, to train on.
        held: likewise, never trained on.
        photos: ``None`` where no files were given.
        large: pixels of the larger crops: ``1.75 · size``, as a multiple of 16.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(self, data: TrainingSet, photos: Sequence[Path], size: int) -> None:
        self.size, self.large = size, 16 * round(7 * size / 64)
        self.data = data
        self.images, self.held = data.images(size)
        self._labels, self._held_labels = data.labels(size)
        self._classes = read_class_names(data.classes) if data.classes else []
        self.photos = Photographs(photos) if photos else None
        self._words: np.ndarray | None = None

    @property
    def vocabulary(self) -> list[list[str]]:
        """Synonyms of all classes, for a tokenizer."""
        return self._classes + (self.photos.classes if self.photos else [])

    def _name(self, label: int) -> Names:
        return self._classes[label] if 0 <= label < len(self._classes) else None

    def draw(self, count: int, rng: np.random.Generator) -> Draw:
        """One step's pictures.

        With photographs, a fifth are crops of them, and every sixteenth step takes larger crops alone, fewer by the
        ratio of areas, so that the network is used to other sizes than one.
        """
        nothing = np.zeros(0, np.int64)
        if self.photos is None:
            return Draw(
                rng.integers(len(self.images), size=count), np.zeros((0, self.size, self.size, 3), np.uint8), []
            )
        if rng.random() < 1 / 16:
            fewer = max(1, count * self.size**2 // self.large**2)
            return Draw(nothing, *self.photos.crops(self.photos.train, fewer, self.large, rng))
        index = rng.integers(len(self.images), size=count - count // 5)
        return Draw(index, *self.photos.crops(self.photos.train, count // 5, self.size, rng))

    def held_crops(self, count: int, size: int, rng: np.random.Generator) -> Draw:
        """Crops of held-out photographs.

        Raises:
            UserError: there are none.
        """
        if self.photos is None:
            raise UserError("no photographs were given: give --photos")
        return Draw(np.zeros(0, np.int64), *self.photos.crops(self.photos.held, count, size, rng))

    def captions(self, index: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A caption of each of the images to train on that are meant."""
        if self._words is None:
            self._words = measured(self.images)
        return [caption(self._name(int(self._labels[i])), int(self._words[i]), rng) for i in index]

    def held_captions(self, count: int, rng: np.random.Generator) -> list[str]:
        """A caption of each of the first ``count`` held-out images."""
        pairs = zip(self._held_labels[:count], self.held[:count], strict=True)
        return [caption(self._name(y), measure(x), rng) for y, x in pairs]
