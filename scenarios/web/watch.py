"""What the tap shows, for the picture in the middle: the features of the last frames, and how much it hands out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress

import cv2
import numpy as np

from adversary.tap import TapReader
from scenarios.web.pictures import drawn, jpeg
from splitsight.errors import UserError
from splitsight.recording import Session
from splitsight.wire import tensors
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

__all__ = ["TapWatch"]

_KEPT = 512
_RING = 4  # frames that wait for us on the server: the latest are enough
_MAX_BYTES = 256 << 20


class TapWatch:
    """A second subscriber of the tap, in a thread.

    Args:
        address: ``HOST:PORT`` of the tap.
        session: the only session that is looked at.

    Attributes:
        about: what the session said of itself.
        bytes: that the tap handed out so far, to this subscriber.
        frames: likewise.
        dropped: frames that it missed.
    """

    def __init__(self, address: str, session: str) -> None:
        self.about: Session | None = None
        self.bytes = self.frames = self.dropped = 0
        self._pictures: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._reader = TapReader(address, session_id=session, ring=_RING, patience=float("inf"))
        self._thread = threading.Thread(target=self._read, name="page-tap", daemon=True)
        self._thread.start()

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
