"""Cutting a stream of frames into windows of K frames a fixed time apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Observation", "Window", "Windower"]


@dataclass
class Observation:
    """One tapped frame.

    Attributes:
        sequence: number within the session.
        capture_us: edge clock, microseconds since the Unix epoch.
        arrived: ``time.monotonic()`` when it was read here.
        features: one tensor for each that crosses the split, with batch dimension 1.
    """

    sequence: int
    capture_us: int
    arrived: float
    features: tuple[Tensor, ...]


@dataclass
class Window:
    """K observations that are reconstructed together; fewer only at the end of a stream."""

    index: int
    frames: list[Observation]
    complete: bool

    @property
    def completed_at(self) -> float:
        """``time.monotonic()`` when its last frame arrived."""
        return max(frame.arrived for frame in self.frames)


class Windower:
    """Consecutive windows of ``frames`` frames, at least ``stride`` seconds of capture time apart.

    Frames in between belong to no window (they have a preview). Frames that arrive twice, after a resumed
    connection, are dropped here.

    Args:
        frames: K.
        stride: seconds between the frames of a window.
    """

    def __init__(self, frames: int = 4, stride: float = 0.5) -> None:
        self.frames, self.stride_us = frames, stride * 1e6
        self._open: list[Observation] = []
        self._next_us: float | None = None
        self._last, self._last_us = -1, 0
        self._count = 0

    def fresh(self, sequence: int) -> bool:
        """Whether this sequence number was not seen before."""
        return sequence > self._last

    def add(self, frame: Observation) -> Window | None:
        """File a frame; returns the window that it completes, if any."""
        if not self.fresh(frame.sequence):
            return None
        self._last = frame.sequence
        if frame.capture_us < self._last_us - self.stride_us:
            self._next_us = None  # the edge's clock was set back: the old grid would leave out all until then
        self._last_us = frame.capture_us
        # some tolerance, because capture times jitter around the grid
        if self._next_us is not None and frame.capture_us < self._next_us - 0.08 * self.stride_us:
            return None
        on_grid = self._next_us is not None and frame.capture_us < self._next_us + self.stride_us
        self._next_us = (self._next_us if on_grid and self._next_us is not None else frame.capture_us) + self.stride_us
        self._open.append(frame)
        return self._cut(True) if len(self._open) == self.frames else None

    def flush(self) -> Window | None:
        """The frames of a window that the stream's end left incomplete."""
        return self._cut(False) if self._open else None

    def _cut(self, complete: bool) -> Window:
        window = Window(self._count, self._open, complete)
        self._count += 1
        self._open = []
        return window
