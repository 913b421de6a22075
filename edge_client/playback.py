"""What an edge plays, and when: a source, or a recording sent again, on a clock that can be stopped and sped up.

The clock maps a source's own time to the edge's: after the last change (a start, another speed, the end of a pause) at
moment ``a``, when the source stood at ``m``, a frame of source time ``t`` is due at ``a + (t − m) / speed``. Nothing is
summed up from frame to frame, so no error adds up; at speed 1 without a pause frame ``t`` is due at ``start + t``.

A recording holds features that have left the device before. Sent again in a new session they are the same numbers, the
defence's noise included, so that another attack can be tried on the very same frames; nothing new is told, and no
privacy budget is spent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from splitsight.errors import UserError
from splitsight.video import FrameSource, open_source
from splitsight.wire.operator import only
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec
from splitsight.wire.v1 import operator_pb2 as pb
from splitsight.wire.v1 import tensor_pb2

if TYPE_CHECKING:
    from splitsight.recording import Recording

__all__ = ["Clock", "Player", "Shot", "is_recording"]

_POLL_S = 0.1
_SESSION = "session.json"


class Shot(NamedTuple):
    """One frame to send.

    Attributes:
        image: ``(h, w, 3)`` uint8 RGB; of a recording the original, where it lies beside it.
        features: as they were recorded; ``None`` for a frame that F1 has yet to see.
        capture_us: microseconds since the Unix epoch.
        late_s: seconds since it was due.
    """

    image: np.ndarray | None
    features: Sequence[tensor_pb2.Tensor] | None
    capture_us: int
    late_s: float


class _Raw(NamedTuple):
    time_s: float
    image: np.ndarray | None
    features: Sequence[tensor_pb2.Tensor] | None = None


class Clock:
    """Source time ↔ monotonic time; not locked, its owner is.

    Args:
        now: seconds on a clock that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.speed, self.paused = 1.0, False
        self._at, self._media = now(), 0.0

    @property
    def media(self) -> float:
        """Where the source stands, in its own seconds."""
        return self._media if self.paused else self._media + (self._now() - self._at) * self.speed

    def restart(self) -> None:
        """A source begins now."""
        self._at, self._media = self._now(), 0.0

    def change(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        """From where the source stands now on."""
        self._media, self._at = self.media, self._now()
        self.speed = self.speed if speed is None else speed
        self.paused = self.paused if paused is None else paused

    def skip_to(self, time_s: float) -> None:
        """A frame was let through although the clock is stopped: go on behind it."""
        self._media, self._at = time_s, self._now()

    def due(self, time_s: float) -> float | None:
        """When a frame is due; ``None`` while the clock is stopped."""
        return None if self.paused else self._at + (time_s - self._media) / self.speed


def is_recording(source: str | None) -> bool:
    """Whether it names the folder of a recording."""
    return source is not None and (Path(source).expanduser() / _SESSION).is_file()


@dataclass
class _Playing:
    name: str
    frames: Iterator[_Raw]
    source: FrameSource | None  # None for a recording


class Player:
    """Frames in order; what is played can be changed meanwhile, from another thread.

    Attributes:
        about: what a recording must have been made of; ``None`` takes any.

    Args:
        source: to begin with; stays the caller's to close.
        name: what the caller calls it.
        again: opens the source with which it began, when it is asked for again; stays open until :meth:`close`.
        fps: frames a second of sources that are asked for later.
        pace: keep the rate of stored frames in real time.
        now: seconds on a clock that never goes back.
        epoch_us: microseconds since the Unix epoch.
    """

    def __init__(
        self,
        source: FrameSource,
        name: str,
        again: Callable[[], FrameSource],
        *,
        fps: float,
        pace: bool = True,
        now: Callable[[], float] = time.monotonic,
        epoch_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._first_name, self._again, self._fps, self._pace, self._now = name, again, fps, pace, now
        self._epoch_us = epoch_us
        self._changed = threading.Condition()
        self.clock = Clock(now)
        self._steps = 0
        self._playing = _Playing(name, _images(source), source)
        self._next_up: _Playing | None = None
        self._held: _Raw | None = None  # read, and not due yet
        self._opened: list[FrameSource] = []
        self._start, self._start_us = now(), epoch_us()
        self.about: tuple[SessionDescription, CodecSpec] | None = None

    def begin(self) -> None:
        """The source's time 0 is now."""
        with self._changed:
            self.clock.restart()
            self._start, self._start_us = self._now(), self._epoch_us()

    @property
    def source(self) -> str:
        """What is played."""
        return (self._next_up or self._playing).name

    @property
    def live(self) -> bool:
        """Whether it is a camera or a stream."""
        source = (self._next_up or self._playing).source
        return source is not None and source.live

    def change(self, wanted: pb.ChangeRequest) -> None:
        """See :class:`splitsight.wire.operator.Handler`."""
        only(wanted, {"paused", "step", "speed", "source"}, "edge")
        other = self._open(wanted.source) if wanted.HasField("source") else None
        with self._changed:
            live = (other or self._next_up or self._playing).source
            if wanted.HasField("speed") and wanted.speed != 1 and live is not None and live.live:
                raise UserError("a camera or a stream plays at its own speed: give a stored clip")
            if other is not None:
                self._next_up = other
            self.clock.change(
                speed=wanted.speed if wanted.HasField("speed") else None,
                paused=wanted.paused if wanted.HasField("paused") else None,
            )
            self._steps = self._steps + wanted.step if self.clock.paused else 0
            self._changed.notify_all()

    def _open(self, name: str) -> _Playing:
        try:
            if is_recording(name):
                return _Playing(name, _recorded(Path(name).expanduser(), self.about), None)
            source = open_source(name, fps=self._fps, loop=True) if name else self._again()
        except (OSError, RuntimeError) as error:  # a name that no file can have, the home of nobody
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"'{name[:80]}' cannot be played ({why}): give another source") from error
        self._opened.append(source)
        return _Playing(name or self._first_name, _images(source), source)

    def next(self, room: Callable[[float], bool], stopped: Callable[[], bool]) -> Shot | None:
        """The next frame, once it is due and there is room for it; ``None`` at the end or when stopped.

        Room comes first, so that a live frame is fresh when it leaves.

        Args:
            room: waits for at most so many seconds until one more frame may be in flight.
            stopped: asked again and again.

        Raises:
            UserError: a source fails.
        """
        while not stopped():
            with self._changed:
                if self._next_up is not None:
                    self._playing, self._next_up, self._held = self._next_up, None, None
                    self.clock.restart()
                    # another speed than that of stored clips means nothing to a camera
                    if self._playing.source is not None and self._playing.source.live:
                        self.clock.change(speed=1.0)
                playing = self._playing
                if self.clock.paused and not self._steps and (self._held is not None or self._live(playing)):
                    self._changed.wait(_POLL_S)
                    continue
            if self._held is None:
                if not room(_POLL_S):
                    continue
                self._held = next(playing.frames, None)
                if self._held is None:
                    if playing.name == self._first_name:
                        return None
                    # a recording was played to its end: go back to what was played before it
                    with self._changed:
                        self._next_up = self._next_up or self._open("")
                    continue
            if (shot := self._due(playing, self._held)) is not None:
                self._held = None
                return shot
        return None

    @staticmethod
    def _live(playing: _Playing) -> bool:
        return playing.source is not None and playing.source.live

    def _due(self, playing: _Playing, frame: _Raw) -> Shot | None:
        """The frame, if it may leave now; waits for a moment where it may not."""
        paced = self._pace and not self._live(playing)
        with self._changed:
            if self.clock.paused:
                if not self._steps:
                    return None
                self._steps -= 1
                self.clock.skip_to(frame.time_s)
                return Shot(frame.image, frame.features, self._epoch_us(), 0.0)
            if not paced:
                return Shot(frame.image, frame.features, self._epoch_us(), 0.0)
            due = self.clock.due(frame.time_s)
            assert due is not None
            late = self._now() - due
            if late < 0:
                # a change wakes it; the frame is asked about again
                self._changed.wait(min(-late, _POLL_S))
                return None
            return Shot(frame.image, frame.features, self._start_us + round((due - self._start) * 1e6), late)

    def status(self) -> pb.OperatorStatus:
        """What is played, and how."""
        with self._changed:
            return pb.OperatorStatus(role="edge", paused=self.clock.paused, speed=self.clock.speed, source=self.source)

    def interrupt(self) -> None:
        """Make a wait for a live frame end soon; safe in a signal handler."""
        if self._playing.source is not None:
            self._playing.source.interrupt()

    @property
    def skipped(self) -> int:
        """Slots of live sources that passed while nobody asked, in those opened here."""
        return sum(source.skipped for source in self._opened)

    def close(self) -> None:
        """Free what was opened here."""
        for source in self._opened:
            source.close()


def _images(source: FrameSource) -> Iterator[_Raw]:
    for _, time_s, image in source:
        yield _Raw(time_s, image)


def _recorded(folder: Path, about: tuple[SessionDescription, CodecSpec] | None) -> Iterator[_Raw]:
    """A recording's frames, with the originals where the run kept them.

    Raises:
        UserError: it cannot be read, or is of another session than this edge's.
    """
    from splitsight.recording import Recording  # brings what reads Parquet, which few edges need

    recording = Recording.open(folder)
    session = recording.session
    if about is not None:
        what = about[0].difference(session.about)
        if what is None and about[1] != session.codec:
            what = f"features as {about[1].dtype}, not {session.codec.dtype}"
        if what is not None:
            raise UserError(
                f"the recording {folder} is of another session: this one has {what} as recorded; choose the "
                "recording's target, split point and defence first"
            )
    if not len(recording):
        raise UserError(f"the recording {folder} holds no frames: choose another")
    return _messages(recording, folder.parent / "truth")


def _messages(recording: Recording, truth: Path) -> Iterator[_Raw]:
    from splitsight.data import decode_image

    first: int | None = None
    for message in recording.messages():
        first = message.capture_time_us if first is None else first
        picture = truth / f"{message.sequence:06d}.png"
        image = decode_image(picture.read_bytes(), picture.name) if picture.is_file() else None
        yield _Raw((message.capture_time_us - first) / 1e6, image, list(message.features))
