"""Larger photographs, and crops of them at many scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from splitsight.captions import read_class_names
from splitsight.data import decode_image
from splitsight.errors import UserError

__all__ = ["Names", "Photographs"]

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
