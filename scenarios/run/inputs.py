"""What a scenario attacks: images or windows of frames, their labels, and the galleries they are looked for in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scenarios.run.spec import Data
from splitsight.data import draw_images
from splitsight.errors import UserError
from splitsight.names import files_of, printable
from splitsight.pictures import spread
from splitsight.video import open_source

__all__ = ["VIDEOS", "Inputs", "load_inputs"]

VIDEOS = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v"}


@dataclass
class Inputs:
    """Images to attack and images to tell them from.

    Attributes:
        images: ``(N, H, W, 3)`` uint8.
        names: N names.
        labels: ``(N,)`` int64, −1 where unknown, or a name that is not among the classes.
        times: seconds into the clip; 0 for still images.
        clips: name of the clip; empty for still images.
        windows: indices of the frames of each window; empty for still images.
        pool: ``(P, H, W, 3)`` uint8, what galleries are made of.
        pool_clips: P names of clips; empty where rivals are still images.
        places: ``(N,)`` positions of the images in the pool.
        gallery: images of a gallery at most.
        seed: of the draws of galleries.
        stills: how many first ones of the pool are rivals to all; ``None`` for all.
        hashes: SHA-256 of each image's pixels, hexadecimal.
    """

    images: np.ndarray
    names: list[str]
    labels: np.ndarray
    pool: np.ndarray
    places: np.ndarray
    gallery: int
    seed: int
    stills: int | None = None
    times: list[float] = field(default_factory=list)
    clips: list[str] = field(default_factory=list)
    windows: list[list[int]] = field(default_factory=list)
    pool_clips: list[str] = field(default_factory=list)
    hashes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.times = self.times or [0.0] * len(self.names)
        self.clips = self.clips or [""] * len(self.names)
        self.hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in self.images]

    @property
    def digest(self) -> str:
        """SHA-256 over all images and the pool: what identifies the data of a run."""
        whole = hashlib.sha256("".join(self.hashes).encode())
        whole.update(np.ascontiguousarray(self.pool).tobytes())
        return whole.hexdigest()

    def rivals(self, index: int) -> np.ndarray:
        """Positions in the pool of the gallery for an image, without its own place.

        Still images have all others. Frames of a clip have the still images of ``data.rivals``, else frames of other
        clips: those of the same clip may be the same picture.
        """
        place = self.places[index]
        if not self.pool_clips:
            stills = len(self.pool) if self.stills is None else self.stills
            return np.setdiff1d(np.arange(stills), [place])[: self.gallery - 1]
        other = np.flatnonzero(np.asarray(self.pool_clips) != self.pool_clips[place])
        rng = np.random.default_rng([self.seed, index])
        return np.sort(rng.permutation(other)[: self.gallery - 1])


def _stills(data: Data, path: Path, size: int, classes: Sequence[Sequence[str]]) -> Inputs:
    drawn = draw_images(path, size, max(data.count, data.gallery), data.seed)
    if len(drawn) < data.count:
        raise UserError(
            f"{printable(path)} holds {len(drawn)} different images and the scenario asks for {data.count}: "
            f"give more, or --limit {len(drawn)}"
        )
    n = data.count
    labels = drawn.stored_labels.known(classes)[:n]
    return Inputs(drawn.images[:n], drawn.names[:n], labels, drawn.images, np.arange(n), data.gallery, data.seed)


def _clips(data: Data, path: Path, size: int) -> Inputs:
    files = [path]
    if path.is_dir():
        files = files_of(path, VIDEOS, deep=True)
        if not files:
            raise UserError(
                f"{printable(path)} holds no videos: give a video, or a folder of {', '.join(sorted(VIDEOS))}"
            )
    pool: list[np.ndarray] = []
    origin: list[str] = []
    seconds: list[float] = []
    cut: list[tuple[int, list[int]]] = []
    for file in files:
        clip = printable(file.relative_to(path) if path.is_dir() else file.name)
        with open_source(file, fps=1 / data.stride, size=size) as source:
            frames = list(source)
        whole_windows = len(frames) // data.frames
        if whole_windows == 0:
            raise UserError(
                f"{printable(file)} gives {len(frames)} frames {data.stride:g} s apart and a window takes "
                f"{data.frames}: leave the clip out, or give the scenario fewer frames or a shorter stride"
            )
        for k, start in enumerate(spread(whole_windows, data.count)):
            first = len(pool) + start * data.frames
            cut.append((k, list(range(first, first + data.frames))))
        pool += [frame.image for frame in frames]
        origin += [clip] * len(frames)
        seconds += [frame.time_s for frame in frames]
    # the first window of every clip, then the second of each: any first few are of many clips
    places = [place for _, window in sorted(cut, key=lambda item: item[0]) for place in window]
    windows = [list(range(at, at + data.frames)) for at in range(0, len(places), data.frames)]
    names = [f"{origin[p]} {seconds[p]:.2f} s" for p in places]
    times = [seconds[p] for p in places]
    whole, at = np.stack(pool), np.asarray(places)
    images, clips, stills = whole[at], [origin[p] for p in places], None
    if data.rivals is not None:
        drawn = draw_images(data.rivals, size, data.gallery - 1, data.seed)
        stills = len(drawn)
        whole, at, origin = np.concatenate([drawn.images, images]), stills + np.arange(len(at)), []
    return Inputs(
        images,
        names,
        np.full(len(at), -1, np.int64),
        whole,
        at,
        data.gallery,
        data.seed,
        stills=stills,
        times=times,
        clips=clips,
        windows=windows,
        pool_clips=origin,
    )


def load_inputs(data: Data, size: int, classes: Sequence[Sequence[str]] = ()) -> Inputs:
    """Read what a scenario attacks.

    Args:
        data: its section.
        size: pixels a side.
        classes: names of each class, for labels that are names.

    Raises:
        UserError: no path, nothing readable there, or less than was asked for.
    """
    if data.path is None:
        what = "a Parquet file or a folder of images" if data.kind == "images" else "a video or a folder of videos"
        raise UserError(f"this scenario needs data that no model was trained on: give {what} with --data")
    if not data.path.exists():
        raise UserError(f"no such file or folder: {printable(data.path)}")
    if data.kind == "images":
        return _stills(data, data.path, size, classes)
    return _clips(data, data.path, size)
