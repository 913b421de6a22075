"""What the tap shows, for the picture in the middle: the features of the last frames, and how much it hands out.

Read from the tap itself (:class:`TapWatch`), or, where that cannot be reached, from the recording that an adversary
makes of it (:class:`RecordingWatch`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from adversary.tap import TapReader
from scenarios.web.pictures import drawn, jpeg
from splitsight.errors import UserError
from splitsight.files import read_parquet
from splitsight.recording import PART, SESSION, TAIL, Session, records
from splitsight.wire import tensors
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

__all__ = ["RecordingWatch", "TapWatch", "Watch"]

_KEPT = 512
_RING = 4  # frames that wait for us on the server: the latest are enough
_MAX_BYTES = 256 << 20
_EVERY_S = 0.2


class Watch:
    """Draws frames as they come.

    Attributes:
        about: what the session said of itself.
        bytes: that the tap handed out so far, as far as it was read here.
        frames: likewise.
        dropped: frames that were missed.
    """

    def __init__(self) -> None:
        self.about: Session | None = None
        self.bytes = self.frames = self.dropped = 0
        self._pictures: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, sequence: int) -> bytes | None:
        """The features of a frame, JPEG; ``None`` where they are not (or no longer) there."""
        with self._lock:
            return self._pictures.get(sequence)

    @property
    def newest(self) -> int | None:
        """The frame that came last."""
        with self._lock:
            return next(reversed(self._pictures), None)

    def close(self) -> None:
        """Stop reading."""
        raise NotImplementedError

    def _frame(self, tapped: tap_pb2.TappedFrame) -> None:
        self.bytes += len(tapped.frame)
        self.frames += 1
        self.dropped = tapped.dropped
        if self.about is None:
            return
        frame = split_inference_pb2.Frame.FromString(tapped.frame)
        specs = self.about.about.features
        try:
            arrays: list[np.ndarray] = [
                tensors.decode(tensor, spec, max_bytes=_MAX_BYTES)
                for tensor, spec in zip(frame.features, specs, strict=True)
            ]
        except (tensors.WireError, ValueError):
            return  # what the server refuses, too
        picture = jpeg(drawn(arrays, specs), smooth=False)
        with self._lock:
            self._pictures[frame.sequence] = picture
            while len(self._pictures) > _KEPT:
                self._pictures.popitem(last=False)


class TapWatch(Watch):
    """A second subscriber of the tap, in a thread.

    Args:
        address: ``HOST:PORT`` of the tap.
        session: the only session that is looked at.
    """

    def __init__(self, address: str, session: str) -> None:
        super().__init__()
        self._reader = TapReader(address, session_id=session, ring=_RING, patience=float("inf"))
        threading.Thread(target=self._read, name="page-tap", daemon=True).start()

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    def _read(self) -> None:
        cv2.setNumThreads(1)
        with suppress(UserError):  # the server shut its tap; another watch belongs to the next one
            for event in self._reader.events():
                if event.WhichOneof("event") == "session":
                    with suppress(ValueError):
                        self.about = Session.from_open(event.session)
                elif event.WhichOneof("event") == "frame":
                    self._frame(event.frame)


class RecordingWatch(Watch):
    """Follows a recording while it is written, in a thread; what was there before is not drawn.

    Args:
        folder: of the recording.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._at = folder, 0
        self._parts: set[str] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._read, name="page-recording", daemon=True).start()

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()

    def _read(self) -> None:
        cv2.setNumThreads(1)
        while not self._closed.wait(_EVERY_S):
            with suppress(OSError, ValueError):  # it is being written, or moved away
                self.look()

    def look(self) -> None:
        """Draw what is new.

        Raises:
            OSError, ValueError: it cannot be read now.
        """
        if self.about is None:
            self.about = Session.from_json((self._folder / SESSION).read_text(encoding="utf-8"))
        parts = {path.name for path in self._folder.iterdir() if PART.fullmatch(path.name)}
        for new in sorted(parts - (parts if self._parts is None else self._parts)):
            # the tail went into it, and begins anew
            with (self._folder / new).open("rb") as file:
                self._draw([tap_pb2.TappedFrame(frame=f.as_py()) for f in read_parquet(file, ["frame"]).column(0)])
            self._at = 0
        self._parts = parts
        with (self._folder / TAIL).open("rb") as file:
            file.seek(self._at)
            frames, intact = records(file.read())
        self._at += intact
        self._draw(frames)

    def _draw(self, frames: list[tap_pb2.TappedFrame]) -> None:
        last = self.newest
        for tapped in frames:
            if last is None or split_inference_pb2.Frame.FromString(tapped.frame).sequence > last:
                self._frame(tapped)
