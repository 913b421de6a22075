"""What the page shows, and how it asks for changes: the seam between the supervising thread and the web server's."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

__all__ = ["ADVERSARY", "EDGE", "RESTARTING", "SERIES", "Board", "Picture", "Request", "Requests"]

EDGE = ("paused", "step", "speed", "source")
ADVERSARY = ("attack", "prompt")
RESTARTING = ("target", "split", "defense", "threat")
"""What may be asked for: of the edge, of the adversary, and what takes new processes."""

SERIES = ("quality", "lag", "rtt", "bytes", "epsilon", "accuracy", "tap", "cpu")
"""What is plotted over time."""
_KEPT = 240  # points of a curve
_MOST = 32  # requests that may wait


@dataclass(frozen=True)
class Picture:
    """A picture with the words under it.

    Attributes:
        jpeg: its bytes.
        title: what it is.
        detail: more about it; empty for nothing.
        tag: changes with any of these.
    """

    jpeg: bytes
    title: str
    detail: str = ""
    tag: str = field(init=False)

    def __post_init__(self) -> None:
        words = f"{self.title}\n{self.detail}\n".encode()
        object.__setattr__(self, "tag", blake2b(words + self.jpeg, digest_size=8).hexdigest())


class Board:
    """The latest of everything; written by the supervising thread, read by the web server's.

    Attributes:
        version: grows whenever a picture changes.
        pictures: by name; replaced, never changed.
        status: plain data; replaced, never changed.
    """

    def __init__(self) -> None:
        self.version = 0
        self.pictures: Mapping[str, Picture] = {}
        self.status: Mapping[str, Any] = {}
        self._lock = threading.Lock()
        self._curves: dict[str, dict[str, deque[tuple[float, float]]]] = {name: {} for name in SERIES}

    def show(self, **pictures: Picture | None) -> None:
        """Put pictures up in one step; ``None`` takes one away."""
        with self._lock:
            known = {**self.pictures, **pictures}
            known = {name: picture for name, picture in known.items() if picture is not None}
            if known != self.pictures:
                self.pictures = known
                self.version += 1

    def clear(self) -> None:
        """Take all pictures down: another stream begins."""
        with self._lock:
            self.pictures = {}
            self.version += 1

    def plot(self, series: str, curve: str, at: float, value: float) -> None:
        """Add a point, seconds since the start of the run → value; the oldest ones go."""
        with self._lock:
            self._curves[series].setdefault(curve, deque(maxlen=_KEPT)).append((round(at, 2), float(f"{value:.5g}")))

    def curves(self, series: str) -> dict[str, list[tuple[float, float]]]:
        """Points of each curve of a plot."""
        with self._lock:
            return {name: list(points) for name, points in self._curves[series].items()}


@dataclass
class Request:
    """A change that a page asks for.

    Attributes:
        action: ``change`` (values of the running system, perhaps new processes) or ``stop`` or ``restart``.
        values: by name.
        done: its outcome in words; fails with a :class:`splitsight.errors.UserError`.
    """

    action: str
    values: Mapping[str, Any]
    done: Future[str] = field(default_factory=Future)


class Requests:
    """Requests wait here until the supervising thread takes them.

    Attributes:
        ending: whether somebody has asked for the end, which waits for nothing else.
    """

    def __init__(self) -> None:
        self.ending = False
        self._queue: queue.Queue[Request] = queue.Queue(_MOST)

    def ask(self, action: str, **values: Any) -> Future[str]:
        """Ask for something; the future tells what came of it.

        Raises:
            queue.Full: far too many wait already.
        """
        request = Request(action, values)
        self._queue.put_nowait(request)
        self.ending = self.ending or action == "stop"
        return request.done

    def take(self, timeout: float) -> Request | None:
        """The next one, waited for at most so many seconds."""
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
