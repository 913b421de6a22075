"""What denoisers are trained on: small labelled images, and crops of larger photographs at many scales."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from adversary.priors.captions import caption, measure, read_class_names
from splitsight.artifacts import home
from splitsight.data import decode_image
from splitsight.errors import UserError
from splitsight.training_data import TrainingSet

__all__ = ["Draw", "Photographs", "Pictures"]

Names = list[str] | None
"""Synonyms of a picture's class; ``None`` where it is unknown."""


class Photographs:
    """Photographs of any size in memory, from Parquet in Hugging Face image format; every tenth is held out.

    Args:
        files: Parquet files; beside each, a table ``*classes.tsv`` names its labels (−1: unknown).

    Attributes:
        names: of each photograph's class.
        classes: synonyms of all classes of all tables.
        train: indices of the photographs to train on.
        held: indices of those put aside.

    Raises:
        UserError: a file is missing or of another format, there are fewer than ten photographs, or labels have no
            table.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.images: list[np.ndarray] = []
        self.names: list[Names] = []
        self.classes: list[list[str]] = []
        for file in files:
            if not file.is_file():
                raise UserError(f"no such file of photographs: {file}")
            table = pq.read_table(file)
            if "image" not in table.column_names:
                raise UserError(f"{file} is not in Hugging Face image format: it has no column 'image'")
            labels = table.column("label").to_pylist() if "label" in table.column_names else [-1] * len(table)
            tables = sorted(file.parent.glob("*classes.tsv"))
            if max(labels, default=-1) >= 0 and len(tables) != 1:
                raise UserError(f"{file} has labels: exactly one table *classes.tsv beside it must name them")
            classes = read_class_names(tables[0]) if tables else []
            self.classes += classes
            for i, (cell, label) in enumerate(zip(table.column("image").to_pylist(), labels, strict=True)):
                self.images.append(decode_image(cell["bytes"], f"row {i} of {file}"))
                self.names.append(classes[label] if label >= 0 else None)
        if len(self.images) < 10:
            raise UserError(f"{len(self.images)} photographs are too few: every tenth is held out, so give at least 10")
        index = np.arange(len(self.images))
        self.train, self.held = index[index % 10 != 9], index[index % 10 == 9]

    def crop(self, index: int, size: int, rng: np.random.Generator) -> np.ndarray:
        """A random square of one photograph, ``(size, size, 3)`` uint8, mirrored half of the time.

        Its side in the photograph is log-uniform between ``0.7 · size`` (slightly enlarged) and the shorter side.
        """
        image = self.images[index]
        h, w = image.shape[:2]
        most = min(h, w)
        least = min(0.7 * size, most)
        side = min(most, max(1, round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))))
        top, left = rng.integers(h - side + 1), rng.integers(w - side + 1)
        how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        crop = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=how)
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)

    def crops(
        self, chosen: np.ndarray, count: int, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[Names]]:
        """``count`` crops of photographs drawn from ``chosen``, ``(count, size, size, 3)``, and their class names."""
        drawn = chosen[rng.integers(len(chosen), size=count)]
        images = [self.crop(int(i), size, rng) for i in drawn]
        return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8), [self.names[i] for i in drawn]


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
            (:func:`adversary.priors.captions.read_class_names`).
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
            self._words = _measured(self.images)
        return [caption(self._name(int(self._labels[i])), int(self._words[i]), rng) for i in index]

    def held_captions(self, count: int, rng: np.random.Generator) -> list[str]:
        """A caption of each of the first ``count`` held-out images."""
        pairs = zip(self._held_labels[:count], self.held[:count], strict=True)
        return [caption(self._name(y), measure(x), rng) for y, x in pairs]


def _measured(images: np.ndarray) -> np.ndarray:
    folder = home() / "latents"
    folder.mkdir(exist_ok=True)
    file = folder / f"words-{hashlib.sha256(images[::500].tobytes()).hexdigest()[:16]}-{len(images)}.npy"
    if not file.is_file():
        np.save(file, np.array([measure(image) for image in images], np.int64))
    return np.load(file)
