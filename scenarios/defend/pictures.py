"""The images of an evaluation: those that are attacked, those that they are told from, and those of the attackers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from splitsight.artifacts import home
from splitsight.data import draw_images, encode_png, write_png
from splitsight.files import write_parquet
from splitsight.targets import Target
from splitsight.training_data import TrainingSet
from splitsight.video import default_video, open_source

__all__ = ["LEAST", "Pictures", "default_frames", "draw"]

LEAST = 512
"""Pictures that networks can be trained on, at least."""
_FPS = 10.0


@dataclass(frozen=True)
class Pictures:
    """Images, no two of them equal.

    Attributes:
        path: where they are from.
        images: ``(N, S, S, 3)`` uint8: first those that are attacked, then the others that they are told from.
        labels: ``(N,)`` int64, −1 where unknown.
        others: ``(M, S, S, 3)`` uint8, neither attacked nor told from: what a defence is calibrated on and an attacker
            learns from. Where the source has no more, those of ``images`` that are not attacked.
        train: what networks are trained on: a Parquet file of ``others``, where they are enough, or what was given;
            ``None`` where they are too few.
    """

    path: Path
    images: np.ndarray
    labels: np.ndarray
    others: np.ndarray
    train: Path | None


def default_frames(size: int) -> Path:
    """A folder in the cache with frames of the default clip, of ``size`` pixels.

    Raises:
        UserError: the clip is missing.
    """
    folder = home() / "decoded" / f"clip-{default_video().stem}-{size}"
    done = folder / "complete"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with open_source(default_video(), fps=_FPS, size=size) as source:
            for i, frame in enumerate(source):
                write_png(folder / f"frame-{i:03d}.png", frame.image)
        done.touch()
    return folder


def draw(
    path: Path, target: Target, *, attacked: int, told: int, others: int, seed: int, train: Path | None = None
) -> Pictures:
    """Draw them, in the order in which scenarios do.

    Args:
        path: Parquet file or folder.
        target: says size and classes.
        attacked: images that are attacked, at most.
        told: images that they are told from, themselves included, at most.
        others: further ones, at most.
        seed: of the draw.
        train: pictures of the attackers' own, which the further ones are taken from; those of ``path`` by default.

    Raises:
        UserError: nothing readable there.
    """
    whole = max(attacked, told)
    drawn = draw_images(path, target.input_size, whole if train else whole + others, seed)
    labels = drawn.stored_labels.known(target.synonyms)
    if train is not None:
        theirs = TrainingSet.open(train).images(target.input_size)[0]
        chosen = np.random.default_rng(seed).permutation(len(theirs))[:others]
        return Pictures(path, drawn.images, labels, theirs[np.sort(chosen)], train)
    rest = drawn.images[whole:]
    train = _filed(rest, labels[whole:]) if len(rest) >= LEAST else None
    spare = rest if len(rest) else drawn.images[min(attacked, len(drawn) // 2) : whole]
    return Pictures(path, drawn.images[:whole], labels[:whole], spare, train)


def _filed(images: np.ndarray, labels: np.ndarray) -> Path:
    key = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:24]
    path = home() / "decoded" / f"attackers-{key}.parquet"
    if not path.is_file():
        rows = [{"bytes": encode_png(image), "path": f"{i}.png"} for i, image in enumerate(images)]
        write_parquet(path, pa.table({"image": rows, "label": labels.tolist()}))
    return path
