"""Composed pictures: objects of small labelled images, pasted at random places and sizes on photographs.

A detector needs boxes, and where none are at hand they follow from how a picture was made ("cut, paste and learn",
Dwibedi et al., arXiv 1708.01642). An object here is the middle of a small image, which its thing mostly fills, blended
into the photograph over a soft edge; its box is the pasted rectangle. These are compositions, not photographs of
scenes: a detector that finds them need not find things that were there when the shutter opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from splitsight.photographs import Photographs

__all__ = ["Composer", "Composition"]

_MOST = 3
_SIDES = (0.25, 0.7)
_ASPECTS = (0.75, 4 / 3)
_MIDDLE = 0.85
_EDGE = 0.1
_OVERLAP = 0.15
_TRIES = 20


@dataclass(frozen=True)
class Composition:
    """One picture and what is on it.

    Attributes:
        image: ``(S, S, 3)`` uint8.
        boxes: ``(N, 4)`` float32, left, top, right, bottom as parts of the sides, in [0, 1].
        labels: ``(N,)`` int64.
        sources: ``(N,)`` numbers of the objects' images.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    sources: np.ndarray


class Composer:
    """Makes pictures of one to three objects.

    Args:
        objects: ``(N, H, H, 3)`` uint8, one thing each.
        labels: ``(N,)`` their classes; images with −1 are left out.
        photographs: for the backgrounds.
        chosen: which of them.
        size: side of a picture in pixels.

    Raises:
        ValueError: no object has a class, or there is no photograph.
    """

    def __init__(
        self,
        objects: np.ndarray,
        labels: np.ndarray,
        photographs: Photographs,
        chosen: Sequence[int] | np.ndarray,
        size: int = 64,
    ) -> None:
        self._objects, self._labels, self.size = objects, labels, size
        self._photographs, self._chosen = photographs, np.asarray(chosen)
        # classes are drawn first, so that each is as frequent as the others
        self._of = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        if not self._of or not len(self._chosen):
            raise ValueError("a composition needs objects with a class, and photographs")

    def __call__(self, rng: np.random.Generator) -> Composition:
        """Draw one picture; the same state of ``rng`` gives the same."""
        image = self._photographs.crop(int(rng.choice(self._chosen)), self.size, rng).astype(np.float32)
        boxes: list[np.ndarray] = []
        sources: list[int] = []
        for _ in range(int(rng.integers(1, _MOST + 1))):
            for _ in range(_TRIES):
                box = self._place(rng)
                if all(_shared(box, other) <= _OVERLAP for other in boxes):
                    source = int(rng.choice(self._of[rng.integers(len(self._of))]))
                    _paste(image, self._objects[source], box, bool(rng.random() < 0.5))
                    boxes.append(box)
                    sources.append(source)
                    break
        found = np.asarray(sources)
        return Composition(
            image.round().astype(np.uint8),
            np.stack(boxes).astype(np.float32) / self.size,
            self._labels[found].astype(np.int64),
            found,
        )

    def _place(self, rng: np.random.Generator) -> np.ndarray:
        side = np.exp(rng.uniform(*np.log(_SIDES))) * self.size
        aspect = np.exp(rng.uniform(*np.log(_ASPECTS)))
        width, height = (max(2, min(self.size, round(side * a))) for a in (aspect**0.5, aspect**-0.5))
        left, top = rng.integers(self.size - width + 1), rng.integers(self.size - height + 1)
        return np.array([left, top, left + width, top + height])


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """The smaller box's part that the other covers."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    return float(np.prod(sides.clip(0))) / min(areas)


def _paste(image: np.ndarray, thing: np.ndarray, box: np.ndarray, mirrored: bool) -> None:
    """Blend the middle of a small image into a box of ``image``, in place."""
    left, top, right, bottom = box
    width, height = int(right - left), int(bottom - top)
    side = round(len(thing) * _MIDDLE)
    rim = (len(thing) - side) // 2
    middle = np.ascontiguousarray(thing[rim : rim + side, rim : rim + side][:, :: -1 if mirrored else 1])
    scaled = cv2.resize(middle, (width, height), interpolation=cv2.INTER_AREA if side > width else cv2.INTER_CUBIC)
    cover = np.minimum.outer(_ramp(height), _ramp(width))[..., None]
    region = image[top:bottom, left:right]
    region += cover * (scaled - region)


def _ramp(length: int) -> np.ndarray:
    """Cover of a row of pixels: rises to one over the outer parts of its length, and is never zero."""
    at = (np.arange(length) + 0.5) / length
    return (np.minimum(at, 1 - at) / _EDGE).clip(0, 1).astype(np.float32)
