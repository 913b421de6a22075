"""Frame sources: video files, cameras, network streams and image folders, one iterator for all of them.

Two clocks exist, and mixing them up is what makes a run irreproducible:

* *stored* sources (files, folders) are sampled by **media time**: at ``fps`` frames a second, frame *k* is
  the one shown at ``k / fps`` seconds into the clip, however fast or slowly the caller asks for it;
* *live* sources (cameras, streams) are sampled by **wall clock**: the caller gets the newest frame of the
  slot it asks in, and slots it was too late for are skipped and counted.

What cannot be decoded of a stored clip is left out: reading goes on with the next frame that can be, at its own
media time, and what was lost is counted and said once, on closing.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import cv2
import numpy as np

from splitsight.errors import UserError
from splitsight.names import files_of, printable

__all__ = ["FrameSource", "VideoFrame", "default_video", "open_source"]

# `splitsight.data` is imported where it is used: it brings PyTorch, and nobody should wait seconds for that to
# read that a file is missing.

_URL = re.compile(r"^(rtsps?|rtmps?|https?|udp|tcp|rtp|srt|mms)://", re.IGNORECASE)
_IMAGES = {".png", ".jpg", ".jpeg"}
# OpenCV and FFmpeg print complaints of their own; ours are sentences, and one of each is enough. FFmpeg's level
# is read once, when any capture or writer of the process is first made, hence here and not on opening.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_DEFAULT = Path(__file__).parent / "assets" / "clips" / "office.mp4"
_DEFAULT_FPS = 25.0
_HALF_FRAME = 0.5
_TRIES = 300
"""Packets in a row that may fail to decode before a clip of unknown length counts as ended."""
_log = logging.getLogger(__name__)


class VideoFrame(NamedTuple):
    """One sampled frame.

    Attributes:
        index: 0, 1, 2, … without gaps.
        time_s: seconds since the first frame, on the source's clock (media or wall), never wrapped by a loop.
        image: ``(h, w, 3)`` uint8 RGB.
    """

    index: int
    time_s: float
    image: np.ndarray


class FrameSource(ABC):
    """Iterates over :class:`VideoFrame`; a context manager that frees the device or file.

    Attributes:
        name: what the user gave, for messages.
        live: sampled by wall clock; frames asked for too late are gone.
        fps: frames a second, or ``None`` for every frame the source has.
        skipped: slots of a live source that passed while nobody asked for a frame.
    """

    live: bool = False

    def __init__(self, name: str, fps: float | None, size: int | None, seconds: float | None) -> None:
        self.name = name
        self.fps = fps
        self.skipped = 0
        self._size = size
        self._seconds = seconds
        self._rate = _DEFAULT_FPS

    @abstractmethod
    def _raw(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yields (time in seconds, BGR or RGB image as :meth:`_rgb` expects it)."""

    def _rgb(self, image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def __iter__(self) -> Iterator[VideoFrame]:
        """Frames in order.

        Raises:
            UserError: a live source stops delivering, or an image of a folder is damaged.
        """
        from splitsight.data import fit

        rate = self.fps or self._rate
        limit = None if self._seconds is None else max(1, math.ceil(self._seconds * rate - 1e-6))
        for index, (time_s, image) in enumerate(self._raw()):
            rgb = self._rgb(image)
            yield VideoFrame(index, time_s, rgb if self._size is None else fit(rgb, self._size))
            # Checked after the yield: the next frame of a live source would be waited for in vain.
            if limit is not None and index + 1 >= limit:
                return

    @property
    def lost(self) -> int:
        """Frames of a stored clip that could not be decoded so far, each counted once however often it is played."""
        return 0

    def interrupt(self) -> None:  # noqa: B027  (a stored source never waits)
        """Makes an iteration that waits for a live frame end soon; safe in a signal handler."""

    def close(self) -> None:  # noqa: B027  (a folder holds nothing open)
        """Frees the device; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0 < rate <= 1000 else _DEFAULT_FPS


class _Folder(FrameSource):
    """One image a frame, in the natural order of their names."""

    def __init__(
        self, name: str, files: list[Path], fps: float | None, size: int | None, seconds: float | None, loop: bool
    ) -> None:
        super().__init__(name, fps, size, seconds)
        from splitsight.data import decode_image

        self._files = files
        self._loop = loop
        self._decode = decode_image
        decode_image(files[0].read_bytes(), printable(files[0]))  # a damaged first file is worth knowing before the run

    def _rgb(self, image: np.ndarray) -> np.ndarray:
        return image

    def _raw(self) -> Iterator[tuple[float, np.ndarray]]:
        period = 1 / (self.fps or _DEFAULT_FPS)
        k = 0
        while True:
            for file in self._files:
                try:
                    data = file.read_bytes()
                except OSError as error:
                    raise UserError(
                        f"{printable(file)} cannot be read ({error.strerror}): remove or replace it"
                    ) from error
                yield k * period, self._decode(data, printable(file))
                k += 1
            if not self._loop:
                return


class _Losses:
    """Counts the frames of a clip that are missing between those that could be decoded.

    A decoder reports some bad packets; others it, or the container's parser, drops without a word. These show as gaps
    between time stamps, which count only in a clip that is otherwise of constant rate (others have gaps by nature) and
    never for more than the frames that the header announces beyond those delivered.

    Args:
        rate: frames a second.
        announced: frames by the header; not above 0 where it says nothing.

    Attributes:
        ended: the clip has been read to its end, so that frames which the header announces further are missing.
    """

    def __init__(self, rate: float, announced: float) -> None:
        self._rate = rate
        self._announced = announced
        self.ended = False
        self._last = 0.0
        self._frames = 0
        self._before = 0  # packets that failed before the first frame, whose time is 0
        self._regular = 0  # frames one period after the one before
        self._reported = 0  # packets that failed
        self._missing = 0  # frames for which there is time where packets failed
        self._silent = 0  # likewise where none did

    def add(self, now: float, failed: int) -> None:
        """A frame at ``now`` seconds, after so many packets that failed."""
        if not self._frames:
            self._before = failed
        periods = (now - self._last) * self._rate if self._frames else failed + 1
        missing = max(0, round(periods) - 1)
        self._regular += abs(periods - 1) < 0.25
        self._reported += failed
        if failed:
            self._missing += missing
        elif missing > 1:  # one alone is what a busy camera leaves out
            self._silent += missing
        self._frames += 1
        self._last = now

    def total(self) -> int:
        """Frames lost so far."""
        if self._regular < 0.9 * self._frames:
            return self._reported
        lost = self._missing
        if self._announced > 0:
            lost += min(self._silent, max(0, round(self._announced) - self._frames - lost))
            # a header's length is often that of the sound, and a little longer
            tail = round(self._announced - self._last * self._rate) - self._before - 1
            lost += tail if self.ended and tail >= max(3, 0.05 * self._announced) else 0
        return lost


class _File(FrameSource):
    """A stored video, sampled by media time; a loop continues the clock where the clip ended."""

    def __init__(
        self,
        name: str,
        opener: Callable[[], cv2.VideoCapture],
        fps: float | None,
        size: int | None,
        seconds: float | None,
        loop: bool,
        patience_s: float | None = None,
    ) -> None:
        super().__init__(name, fps, size, seconds)
        self._opener = opener
        self._loop = loop
        self._patience = patience_s
        self._losses: _Losses | None = None  # of this play of the clip
        self._lost_before = 0  # by the earlier play that lost most
        self._said = False
        self._capture = opener()
        self._rate = _rate(self._capture)
        # The probe reads one frame: a file may have a sound header and not one picture that decodes.
        self._failed = self._grab()
        if self._failed is None or not self._capture.retrieve()[0]:
            self.close()
            raise UserError(
                f"{name} holds no frame that can be decoded: convert it with `ffmpeg -i IN OUT.mp4` or give another"
            )
        self._fresh = True

    @property
    def lost(self) -> int:
        """Of the play of the clip that lost most."""
        return max(self._lost_before, 0 if self._losses is None else self._losses.total())

    def close(self) -> None:
        self._capture.release()
        if self.lost and not self._said:
            self._said = True
            _log.warning(
                "%s is damaged: %d of its frames could not be decoded and %s left out, the others were read",
                self.name,
                self.lost,
                "was" if self.lost == 1 else "were",
            )

    def _grab(self) -> int | None:
        """Go to the next frame that decodes; how many packets failed before it, ``None`` at the end of the clip.

        OpenCV says "no frame" for a packet that does not decode as it does at the end; but after the former, the
        next attempt reads on.
        """
        if self._capture.grab():
            return 0
        left = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) - self._capture.get(cv2.CAP_PROP_POS_FRAMES)
        tries = int(min(max(_TRIES, left), 5_000)) if math.isfinite(left) else _TRIES
        begun = time.monotonic()
        for failed in range(1, tries):
            if self._patience is not None and time.monotonic() - begun > self._patience:
                return None  # far away, where each attempt may take as long as the network lets it
            if self._capture.grab():
                return failed
        return None

    def _rewind(self) -> int:
        # Reopening is exact where seeking lands on the nearest key frame.
        if not self._fresh:
            self._capture.release()
            self._capture = self._opener()
            self._failed = self._grab()
            if self._failed is None:
                raise UserError(f"{self.name} could be read once but not again: was it moved or replaced?")
        self._fresh = False
        return self._failed or 0

    def _raw(self) -> Iterator[tuple[float, np.ndarray]]:
        k = 0
        offset = 0.0
        while True:
            failed: int | None = self._rewind()
            self._lost_before = self.lost
            losses = self._losses = _Losses(self._rate, self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            position = 0  # of the grabbed frame, counted in frames
            first = self._capture.get(cv2.CAP_PROP_POS_MSEC)
            now = 0.0
            image: np.ndarray | None = None
            while failed is not None:
                wanted = offset + now if self.fps is None else k / self.fps
                # Half a frame of tolerance: 2 frames a second of a 30 fps clip must not hinge on rounding.
                if offset + now >= wanted - _HALF_FRAME / self._rate:
                    if image is None:
                        ok, image = self._capture.retrieve()
                        if not ok:
                            image = None
                    if image is not None:
                        yield wanted, image
                        k += 1
                        if self.fps is not None:
                            continue
                losses.add(now, failed)
                image = None
                failed = self._grab()
                if failed is not None:
                    position += 1 + failed
                    stamp = (self._capture.get(cv2.CAP_PROP_POS_MSEC) - first) / 1000
                    # Some containers carry no time stamps; counting frames is the next best clock.
                    now = stamp if math.isfinite(stamp) and stamp > now else max(now, position / self._rate)
            losses.ended = True
            if not self._loop:
                return
            offset += now + 1 / self._rate


class _Live(FrameSource):
    """A camera or stream: a thread keeps reading so that the newest frame is never an old one from a buffer."""

    live = True

    def __init__(
        self,
        name: str,
        capture: cv2.VideoCapture,
        fps: float | None,
        size: int | None,
        seconds: float | None,
        timeout_s: float,
        endless: bool,
    ) -> None:
        super().__init__(name, fps, size, seconds)
        self._rate = _rate(capture)
        self._capture = capture
        self._timeout = timeout_s
        self._endless = endless
        self._changed = threading.Condition()
        self._newest: np.ndarray | None = None
        self._count = 0
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="video-reader", daemon=True)
        self._thread.start()
        if not self._wait_newer(0, time.monotonic() + timeout_s):
            self.close()
            raise UserError(f"{name} delivers no frames: check that it is switched on and not used by another program")

    def _read(self) -> None:
        while not self._stopping:
            ok, image = self._capture.read()
            with self._changed:
                if ok:
                    self._newest = image
                    self._count += 1
                else:
                    self._ended = True
                self._changed.notify_all()
                if not ok:
                    break
        # Only the reading thread may release: OpenCV crashes when a capture is freed during read().
        self._capture.release()

    def _wait_newer(self, seen: int, deadline: float) -> bool:
        with self._changed:
            while self._count <= seen and not self._ended and not self._stopping:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.1))
            return self._count > seen

    def interrupt(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self.interrupt()
        self._thread.join(timeout=1.0)  # a read that hangs must not hold up the exit; the thread is a daemon

    def _raw(self) -> Iterator[tuple[float, np.ndarray]]:
        start = time.monotonic()
        k = 0
        seen = 0
        taken = 0
        while True:
            if self.fps is not None:
                slot = max(k, math.floor((time.monotonic() - start) * self.fps + 1e-9))
                self.skipped += slot - k
                k = slot
                while not self._stopping and (left := start + k / self.fps - time.monotonic()) > 0:
                    time.sleep(min(left, 0.1))
            if self._stopping:
                return
            if not self._wait_newer(seen, time.monotonic() + self._timeout):
                if self._stopping or (self._ended and not self._endless and self._seconds is None):
                    return  # a stream that simply ends, and nobody asked for a certain length
                raise UserError(f"{self.name} stopped delivering frames after {taken}: check the device or the network")
            with self._changed:
                seen, image = self._count, self._newest
            assert image is not None
            yield time.monotonic() - start, image
            taken += 1
            k += 1


def default_video() -> Path:
    """The clip of the package: people who gesture in an office, 31 s (source and licence beside it).

    Raises:
        UserError: it is missing.
    """
    if not _DEFAULT.is_file():
        raise UserError("the default clip is not in this installation: give a video with --video PATH")
    return _DEFAULT


def _open_url(url: str, timeout_s: float) -> cv2.VideoCapture:
    """Opens a stream, in a thread: name resolution and some protocols ignore FFmpeg's own timeout."""
    opened: queue.Queue[cv2.VideoCapture] = queue.Queue()
    milliseconds = max(1, round(timeout_s * 1000))
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]

    def work() -> None:
        opened.put(cv2.VideoCapture(url, cv2.CAP_FFMPEG, parameters))

    threading.Thread(target=work, name="video-open", daemon=True).start()
    try:
        capture = opened.get(timeout=timeout_s + 1)
    except queue.Empty:
        capture = None
    if capture is None or not capture.isOpened():
        raise UserError(
            f"{url} could not be opened within {timeout_s:g} s: "
            "check the address, the network and that it serves a video"
        )
    return capture


@contextmanager
def _utf8(path: Path) -> Iterator[str]:
    """A name by which OpenCV can open a file: absolute, since FFmpeg takes ``10:15.mp4`` for a protocol, and UTF-8."""
    name = str(path.absolute())
    try:
        name.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="splitsight-") as folder:
            link = Path(folder) / ("video" + (path.suffix if path.suffix.isascii() else ""))
            link.symlink_to(name)
            yield str(link)
    else:
        yield name


def _open_file(path: Path) -> cv2.VideoCapture:
    with _utf8(path) as name:
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            capture = cv2.VideoCapture(name, cv2.CAP_ANY)
    if not capture.isOpened():
        raise UserError(
            f"{printable(path)} is not a readable video: check that it is complete, or convert it with "
            "`ffmpeg -i IN OUT.mp4`"
        )
    return capture


def _stored(path: Path, fps: float | None, size: int | None, seconds: float | None, loop: bool) -> FrameSource:
    name = printable(path)
    try:
        if path.is_dir():
            files = files_of(path, _IMAGES)
            if not files:
                raise UserError(f"{name} holds no PNG or JPEG files: give a folder of images, or a video file")
            return _Folder(name, files, fps, size, seconds, loop)
        if not path.exists():
            raise UserError(f"no such file or folder: {name}")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{name} is empty (0 bytes): give a complete video")
        if path.suffix.lower() in _IMAGES:
            return _Folder(name, [path], fps, size, seconds, loop)
        if path.is_file():
            path.open("rb").close()  # OpenCV does not tell "may not be read" from "is not a video"
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): check its permissions") from error
    return _File(name, lambda: _open_file(path), fps, size, seconds, loop)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, nobody's home
        return False


def open_source(
    spec: str | Path | None = None,
    *,
    fps: float | None = None,
    size: int | None = None,
    seconds: float | None = None,
    loop: bool | None = None,
    timeout_s: float = 10.0,
) -> FrameSource:
    """Opens whatever the user named, and reads one frame to be sure.

    Args:
        spec: video file, folder of PNG/JPEG, camera index (``"0"``), URL (``rtsp://…``, ``http://…``), or
            ``None`` for :func:`default_video`. Where a file or folder of that name exists, it is meant, whatever
            else the name looks like; the images of a folder come in natural order (``2.png`` before ``10.png``).
        fps: frames a second to sample, > 0; ``None`` for every frame there is. Image folders give one image a
            frame whatever the rate.
        size: pixels; frames are scaled and centre-cropped to ``(size, size, 3)``. ``None`` keeps them whole.
        seconds: how much to deliver at most, > 0, on the source's clock; ``None`` for all of it.
        loop: start stored clips again at their end. ``None``: only where ``seconds`` asks for more than there is.
        timeout_s: seconds to wait for a stream or camera, on opening and for each frame.

    Raises:
        UserError: nothing there, not readable, no frame in it, or not reachable in time.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"the frame rate must be more than 0 frames a second, not {fps:g}")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"the length must be more than 0 seconds, not {seconds:g}")
    if spec is None:
        spec = default_video()
    text = str(spec)
    if loop is None:
        loop = seconds is not None
    if isinstance(spec, Path) or _exists(text):
        return _stored(Path(text).expanduser(), fps, size, seconds, loop)
    if text.strip().isdecimal():
        name = f"camera {int(text)}"
        capture = cv2.VideoCapture(int(text))
        if not capture.isOpened():
            raise UserError(f"there is no {name}, or it is in use: give another index, or a file with --video PATH")
        return _Live(name, capture, fps, size, seconds, timeout_s, endless=True)
    if _URL.match(text):
        capture = _open_url(text, timeout_s)
        if capture.get(cv2.CAP_PROP_FRAME_COUNT) < 1:
            return _Live(text, capture, fps, size, seconds, timeout_s, endless=False)
        first = [capture]  # a file that happens to be far away
        again = lambda: first.pop() if first else _open_url(text, timeout_s)  # noqa: E731
        return _File(text, again, fps, size, seconds, loop, patience_s=timeout_s)
    return _stored(Path(text).expanduser(), fps, size, seconds, loop)
