"""What a denoiser is trained on beside small images: crops of larger photographs, at many scales."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from adversary.priors.captions import read_class_names
from splitsight.data import decode_image
from splitsight.errors import UserError

__all__ = ["Photographs"]


class Photographs:
    """Photographs of any size in memory, from Parquet in Hugging Face image format; every tenth is held out.

    Args:
        files: Parquet files; beside each, a table ``*classes.tsv`` names its labels (−1: unknown).

    Attributes:
        names: synonyms of each photograph's class; ``None`` where unknown.
        train: indices of the photographs to train on.
        held: indices of those put aside.

    Raises:
        UserError: a file is missing or of another format, or its labels have no table.
    """

    def __init__(self, files: list[Path]) -> None:
        self.images: list[np.ndarray] = []
        self.names: list[list[str] | None] = []
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
                raise UserError(f"{file} has labels: one table *classes.tsv beside it must name them")
            classes = read_class_names(tables[0]) if tables else []
            self.classes += classes
            for i, (cell, label) in enumerate(zip(table.column("image").to_pylist(), labels, strict=True)):
                self.images.append(decode_image(cell["bytes"], f"row {i} of {file}"))
                self.names.append(classes[label] if label is not None and label >= 0 else None)
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
        crop = image[top : top + side, left : left + side]
        how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        crop = cv2.resize(crop, (size, size), interpolation=how)
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)

    def crops(
        self, chosen: np.ndarray, count: int, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[list[str] | None]]:
        """``count`` crops of photographs drawn from ``chosen``, ``(count, size, size, 3)``, and their class names."""
        drawn = chosen[rng.integers(len(chosen), size=count)]
        return np.stack([self.crop(int(i), size, rng) for i in drawn]), [self.names[i] for i in drawn]
