"""Captioned pictures side by side, as a grid and as a video."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from splitsight.errors import UserError
from splitsight.files import writing

__all__ = ["Panel", "grid", "panels", "spread", "write_video"]

SCALE = 4
_GAP, _HEADER, _CAPTION = 8, 40, 56
_SMALLEST = 11
"""Pixels of a letter, below which a line is shortened instead."""
_PAPER, _INK, _SOFT, _EMPTY = (17, 20, 26), (238, 241, 245), (150, 160, 175), (34, 39, 48)


@dataclass(frozen=True)
class Panel:
    """One picture with two lines under it.

    Attributes:
        image: ``(h, w, 3)`` uint8 RGB, or ``None`` for an empty panel.
        title: what it is.
        detail: its figures; ``None`` is no line.
    """

    image: np.ndarray | None
    title: str
    detail: str | None = None


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, width: int, fill: tuple[int, int, int]
) -> None:
    """Write one line: smaller where it would not fit, and in the end shortened, its end an ellipsis."""
    while size > _SMALLEST and draw.textlength(text, font=_font(size)) > width:
        size -= 1
    font = _font(size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(at, text, font=font, fill=fill)


def _enlarged(image: np.ndarray | None, side: int) -> np.ndarray:
    if image is None:
        return np.full((side, side, 3), _EMPTY, np.uint8)
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)


def panels(row: Sequence[Panel], header: str = "", *, side: int = 256) -> np.ndarray:
    """Panels side by side: captions below, a header line above.

    Args:
        row: from left to right.
        header: one line; empty for none (then it takes no room).
        side: pixels of a panel.

    Returns:
        ``(h, w, 3)`` uint8 RGB; both sides even, as video codecs want them.
    """
    top = _HEADER if header else _GAP
    width = len(row) * side + (len(row) + 1) * _GAP
    height = top + side + _CAPTION
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
    draw = ImageDraw.Draw(canvas)
    if header:
        _write(draw, (_GAP, 10), header, 18, width - 2 * _GAP, _INK)
    for i, panel in enumerate(row):
        left = _GAP + i * (side + _GAP)
        canvas.paste(Image.fromarray(_enlarged(panel.image, side)), (left, top))
        if panel.image is None:
            draw.text((left + side // 2, top + side // 2), "nothing yet", font=_font(15), fill=_SOFT, anchor="mm")
        _write(draw, (left, top + side + 6), panel.title, 17, side, _INK)
        if panel.detail:
            _write(draw, (left, top + side + 30), panel.detail, 15, side, _SOFT)
    return np.asarray(canvas)


def grid(columns: Sequence[Sequence[Panel]], header: str, *, side: int = 192) -> np.ndarray:
    """Frames as columns, tiers as rows, so that each reconstruction stands under its original.

    Args:
        columns: one sequence of panels a frame, all of the same length.
        header: one line above.
        side: pixels of a panel.

    Returns:
        ``(h, w, 3)`` uint8 RGB.
    """
    if not columns:
        raise ValueError("a grid needs at least one frame")
    rows = [
        panels([column[tier] for column in columns], header if tier == 0 else "", side=side)
        for tier in range(len(columns[0]))
    ]
    return np.concatenate(rows)


def spread(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` indices, evenly spread over ``range(count)``."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)] if wanted > 1 else [count // 2]


def write_video(
    path: Path, frames: Iterable[np.ndarray], fps: float, *, progress: Callable[[], None] | None = None
) -> int:
    """H.264 in MP4 that browsers play (yuv420p, index in front); appears complete or not at all.

    Args:
        path: ``*.mp4``.
        frames: ``(h, w, 3)`` uint8 RGB, all of one even size.
        fps: frames a second.
        progress: called after each frame.

    Returns:
        How many frames were written.

    Raises:
        UserError: the encoder failed, as it does on a full disk; with what it said.
    """
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        return 0
    count = 0
    with writing(path) as partial, TemporaryFile() as said:
        command = _encoder(first.shape[1], first.shape[0], fps, partial)
        # in a group of its own, so that Ctrl-C in a terminal leaves it to finish what it was given
        encoder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, process_group=0
        )
        assert encoder.stdin is not None
        try:
            for frame in chain([first], remaining):
                try:
                    encoder.stdin.write(np.ascontiguousarray(frame).data)
                except BrokenPipeError:  # the encoder's own: it says itself why it ended
                    break
                count += 1
                if progress is not None:
                    progress()
            with suppress(BrokenPipeError):
                encoder.stdin.close()
            status = encoder.wait()
        finally:
            if encoder.poll() is None:
                encoder.kill()
                encoder.wait()
            with suppress(BrokenPipeError):
                encoder.stdin.close()
        if status:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines()
            reason = words[-1] if words else f"signal {-status}" if status < 0 else f"exit status {status}"
            raise UserError(f"the video {path} could not be encoded ({reason}): is the disk full?", code=1)
    return count


def _encoder(width: int, height: int, fps: float, path: Path) -> list[str]:
    """The command that takes raw frames on its standard input."""
    import imageio_ffmpeg

    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]
    coded = ["-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p", "-threads", "2"]
    video = [*frames, *coded, "-movflags", "+faststart", "-f", "mp4", str(path)]
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *video]
