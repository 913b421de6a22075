"""What a model is trained on: pictures for training, and a part of them held out that gives the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from splitsight.data import IMAGE_SUFFIXES, Labels, cached_images, image_hash, read_classes
from splitsight.errors import UserError
from splitsight.names import files_of, printable

__all__ = ["TrainingSet", "held_out"]

_MOST_HELD_OUT = 2000


def held_out(images: np.ndarray) -> np.ndarray:
    """Which of some images to hold out: a tenth, at least one and at most 2,000.

    Those whose pixels have the smallest SHA-256: the choice looks random, depends neither on names nor on order, and
    equal images are always on the same side.

    Args:
        images: ``(N, H, W, 3)`` uint8.

    Returns:
        ``(N,)`` bool.

    Raises:
        ValueError: there are not two different images.
    """
    hashes = np.asarray([image_hash(image) for image in images])
    different, counts = np.unique(hashes, return_counts=True)
    if len(different) < 2:
        raise ValueError(f"{len(images)} images, of which {len(different)} differ, cannot be divided")
    wanted = min(_MOST_HELD_OUT, max(1, len(images) // 10))
    # as many different ones as fit; always one, and never all
    take = min(max(1, int(np.searchsorted(counts.cumsum(), wanted, side="right"))), len(different) - 1)
    return hashes < different[take]


@dataclass(frozen=True)
class TrainingSet:
    """Pictures to train on and pictures held out; which is which depends on the data alone.

    Attributes:
        source: what was given.
        shards: Parquet files of a folder, of which the last is held out; otherwise ``source`` alone, of whose images
            :func:`held_out` chooses.
        classes: table of class names; ``None`` where there is none.
    """

    source: Path
    shards: tuple[Path, ...]
    classes: Path | None

    @classmethod
    def open(cls, data: Path, *, labelled: bool = False) -> Self:
        """See what is there; no image is decoded.

        Args:
            data: folder of Parquet shards, one Parquet file, or folder of PNG/JPEG.
            labelled: refuse what has no labels with a table of class names, ``classes.tsv`` beside the Parquet files.

        Raises:
            UserError: nothing there, or no labels.
        """
        if not data.exists():
            raise UserError(f"no such file or folder: {printable(data)}")
        folder = data if data.is_dir() else data.parent
        shards = files_of(data, {".parquet"}) if data.is_dir() else [data]
        pictures = data.is_dir() and not shards
        if pictures and not files_of(data, IMAGE_SUFFIXES):
            raise UserError(
                f"{printable(data)} holds nothing to train on: give a folder of Parquet files or of PNG/JPEG files, or "
                "one Parquet file"
            )
        table = folder / "classes.tsv"
        if labelled and pictures:
            raise UserError(
                f"{printable(data)} holds pictures without labels: a classifier needs Parquet files with a column "
                "'label', and classes.tsv beside them"
            )
        if labelled and not table.is_file():
            raise UserError(f"{printable(table)} is missing: it lists label, WordNet id and names, tab-separated")
        return cls(data, tuple(shards or [data]), table if table.is_file() and not pictures else None)

    def images(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """For training and held out, each ``(N, size, size, 3)`` uint8.

        Raises:
            UserError: not readable, or fewer than two different images.
        """
        if len(self.shards) > 1:
            return cached_images(self.shards[:-1], size), cached_images(self.shards[-1:], size)
        whole = cached_images(self.shards, size)
        held = self._held(whole)
        return whole[~held], whole[held]

    def labels(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers of :meth:`images` of the same size, each ``(N,)`` int64, −1 where unknown.

        Raises:
            UserError: labels are names that the table of classes lacks, or numbers beyond it.
        """
        names = None if self.classes is None else read_classes(self.classes)
        found = [Labels(*self._rows(shard)).numbers(names) for shard in self.shards]
        for shard, labels in zip(self.shards, found, strict=True):
            if names is not None and labels.max(initial=-1) >= len(names):
                raise UserError(
                    f"{printable(shard)} has the label {labels.max()} and {printable(self.classes or '')} lists "
                    f"{len(names)} classes: give the table that belongs to the data"
                )
        if len(found) > 1:
            return np.concatenate(found[:-1]), found[-1]
        held = self._held(cached_images(self.shards, size))
        return found[0][~held], found[0][held]

    def classified(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`labels` where each image must have one.

        Raises:
            UserError: an image has no label.
        """
        labels = self.labels(size)
        if missing := sum(int((part < 0).sum()) for part in labels):
            raise UserError(
                f"{missing} images of {printable(self.source)} have no label: a classifier needs a class number or "
                "name in the column 'label' of each row"
            )
        return labels

    def _held(self, images: np.ndarray) -> np.ndarray:
        try:
            return held_out(images)
        except ValueError as error:
            raise UserError(
                f"{printable(self.source)} holds {len(images)} images and no two different ones: training needs at "
                "least two, one of which is held out"
            ) from error

    @staticmethod
    def _rows(shard: Path) -> tuple[Path | None, range]:
        if shard.is_dir():
            return None, range(len(files_of(shard, IMAGE_SUFFIXES)))
        try:
            with shard.open("rb") as file:
                return shard, range(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{printable(shard)} is not a readable Parquet file: restore or remove it") from error

    @property
    def description(self) -> str:
        """For a card: what it was trained on, and what was held out."""
        name = printable(self.source.name)
        if len(self.shards) > 1:
            last = printable(self.shards[-1].name)
            return f"{len(self.shards) - 1} shards of {name}; the last shard ({last}) was held out and gave the figures"
        return f"{name}, of which a tenth (at most {_MOST_HELD_OUT:,} images) was held out and gave the figures"
