"""What waits for an adversary that may be too slow for it: a bounded queue that gives up the oldest, never the newest.

A stream does not wait for who watches it. Whoever works through all of it in order, slower than it comes, falls behind
without end; whoever leaves out what has waited too long stays at most that long behind, plus the time of one piece of
work, with as much memory as comes in that time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Backlog"]

T = TypeVar("T")


class Backlog(Generic[T]):
    """A queue between two threads, first in, first out.

    Args:
        patience: seconds that something may wait while newer things come; then the newest alone is kept. 0 keeps the
            newest alone at any time.
        now: seconds on a clock that never goes back.
    """

    def __init__(self, patience: float, now: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._now = patience, now
        self._waiting: deque[tuple[float, T]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> list[T]:
        """Add an item; returns those that are given up for it, oldest first."""
        with self._changed:
            now, given_up = self._now(), []
            if self._waiting and now - self._waiting[0][0] >= self._patience:
                # all of them: what came after it would only be late in its turn
                given_up = [waiting for _, waiting in self._waiting]
                self._waiting.clear()
            self._waiting.append((now, item))
            self._changed.notify()
        return given_up

    def take(self) -> T | None:
        """The oldest item, as soon as there is one; ``None`` when nothing waits and nothing more will come."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return self._waiting.popleft()[1] if self._waiting else None

    @property
    def waiting(self) -> int:
        """How many items wait."""
        with self._changed:
            return len(self._waiting)

    def close(self) -> None:
        """Nothing more will come; what waits is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
