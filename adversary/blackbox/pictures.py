"""What an attacker asks an oracle about: still images of its own, or windows of K frames.

Windows come from videos where there are some. Videos are few, so windows can also be made of still images: a square
that drifts and grows or shrinks evenly over each one, as a hand-held camera would see a poster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as counting
from pathlib import Path

import cv2
import numpy as np

from adversary.blackbox.queries import Picture, Role
from splitsight.captions import read_class_names
from splitsight.data import draw_images, image_hash
from splitsight.errors import UserError
from splitsight.names import files_of
from splitsight.training_data import TrainingSet
from splitsight.video import open_source

__all__ = ["draw_groups", "draw_unasked", "pan"]

Group = tuple[Picture, ...]
_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
_PHASES = 4
"""Windows of a video begin so many times in one stride."""
_PANS = 1 << 40
"""Windows made of still images are numbered from here, those of videos below."""
_SPARE = 32
"""Images drawn beyond what is asked for, since some may be in the other role already."""


def draw_groups(
    data: Path, size: int, wanted: dict[Role, int], *, frames: int = 1, stride: float = 0.5, seed: int = 0
) -> dict[Role, list[Group]]:
    """What to ask about for each role: single pictures, or windows of ``frames``.

    Args:
        data: Parquet shards with ``classes.tsv`` (the last shard is held out: it is never asked about), a Parquet file
            or a folder of PNG/JPEG; for windows also a video or a folder of videos, of which every fifth file, and
            at least one, is for ``test`` only.
        size: pixels a side.
        wanted: pictures a role; more may come.
        frames: K.
        stride: seconds between the frames of a window from a video.
        seed: of all draws.

    Raises:
        UserError: nothing readable there, or too little of it.
    """
    if not data.exists():
        raise UserError(f"no such file or folder: {data}")
    videos = _videos(data)
    if videos and frames > 1:
        return _windows(videos, size, frames, stride, seed)
    if videos:
        raise UserError(f"{data} holds videos: give images, or --frames of at least 2")
    images, captions = _stills(data, size, sum(wanted.values()) // frames + _SPARE, seed)
    if frames == 1:
        groups = [(Picture(image, caption),) for image, caption in zip(images, captions, strict=True)]
    else:
        groups = []
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            drifted = pan(image, frames, np.random.default_rng([seed, i]))
            groups.append(tuple(Picture(f, caption, _PANS + i, k) for k, f in enumerate(drifted)))
    return {role: groups for role in wanted}


def draw_unasked(data: Path, size: int, count: int, known: set[str], *, seed: int = 0) -> list[np.ndarray]:
    """Further still images of the attacker, none of which is among the ``known`` (SHA-256 of their pixels).

    Args:
        data: as for :func:`draw_groups`.
        size: pixels a side.
        count: at most so many.
        known: what was asked about, for whatever role.
        seed: of the draw.

    Returns:
        Each ``(S, S, 3)`` uint8; none where ``data`` holds videos.
    """
    if _videos(data):
        return []
    images, _ = _stills(data, size, count + len(known), seed)
    return [image for image in images if image_hash(image) not in known][:count]


def _videos(data: Path) -> list[Path]:
    if data.is_file():
        return [data] if data.suffix.lower() in _VIDEOS else []
    return files_of(data, _VIDEOS, deep=True)


def _stills(data: Path, size: int, count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Different images, and what each shows where classes are known."""
    shards = TrainingSet.open(data).shards
    sources = shards[:-1] or shards
    table = (data if data.is_dir() else data.parent) / "classes.tsv"
    names = read_class_names(table) if table.is_file() else None
    images: list[np.ndarray] = []
    captions: list[str] = []
    for source in sources:
        if len(images) >= count:
            break
        drawn = draw_images(source, size, count - len(images), seed)
        images += list(drawn.images)
        for label in drawn.stored_labels.known(names or ()).tolist():
            captions.append(f"a photo of a {names[label][0]}" if names and 0 <= label < len(names) else "")
    return images, captions


def pan(image: np.ndarray, frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A square that moves evenly over an image, ``(S, S, 3)`` uint8, each step resampled to S pixels.

    Its side is 70 to 95 % of the image's, and changes by at most 5 %; its centre moves by at most 15 %.
    """
    size = len(image)
    side = rng.uniform(0.7, 0.95) * np.linspace(1, rng.uniform(0.95, 1.05), frames).clip(max=1)
    room = (1 - side) / 2
    begin = rng.uniform(-1, 1, 2)
    centre = 0.5 + room[:, None] * np.linspace(
        begin, np.clip(begin + rng.uniform(-0.3, 0.3, 2) / room.max(), -1, 1), frames
    )
    shown = []
    for s, (y, x) in zip(side, centre, strict=True):
        # pixel i of the answer lies at corner + s · (i + ½) − ½ of the image
        corner = np.array([x, y]) * size - s * size / 2
        matrix = np.array([[s, 0, corner[0] + s / 2 - 0.5], [0, s, corner[1] + s / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shown.append(cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return shown


def _cut(file: Path, size: int, frames: int, stride: float, ids: Iterator[int]) -> list[Group]:
    with open_source(file, fps=_PHASES / stride, size=size) as source:
        images = [frame.image for frame in source]
    groups = []
    for start in range(len(images) - _PHASES * (frames - 1)):
        if start % (_PHASES * frames) >= _PHASES:
            continue  # so that no frame is in two windows, and none is asked about twice
        window = images[start : start + _PHASES * (frames - 1) + 1 : _PHASES]
        clip = next(ids)
        groups.append(tuple(Picture(image, "", clip, k) for k, image in enumerate(window)))
    return groups


def _windows(files: Sequence[Path], size: int, frames: int, stride: float, seed: int) -> dict[Role, list[Group]]:
    if len(files) < 2:
        raise UserError(f"{files[0].parent} holds one video: at least two are needed, since one is held out")
    rng, ids = np.random.default_rng(seed), counting()
    held = set(range(4, len(files), 5)) or {len(files) - 1}
    groups: dict[Role, list[Group]] = {"train": [], "test": []}
    for i, file in enumerate(files):
        groups["test" if i in held else "train"] += _cut(file, size, frames, stride, ids)
    for role, found in groups.items():
        if not found:
            raise UserError(
                f"no video for {role}ing under {files[0].parent} holds {frames} frames {stride:g} s apart: "
                "give longer ones, a smaller --frames or a shorter --stride"
            )
        groups[role] = [found[i] for i in rng.permutation(len(found))]
    return groups
