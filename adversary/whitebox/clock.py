"""An attack's own time, which stands still while somebody looks at its images.

Curves of quality against time need images from the middle of an attack, and scoring them takes time that the
attack did not use. A solver therefore asks a :class:`Clock` how late it is, and shows it the best answer so far
at every step; the clock decides whether anybody looks, and does not count how long that takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["Clock", "Look"]

Look = Callable[[float, Tensor], None]


class Clock:
    """Starts when made.

    Args:
        look: called with (own seconds, images ``(K, 3, H, W)`` in [0, 1]) now and then; ``None``: nobody looks.
        growth: the next look is due when this part of the time so far has passed again, so that a curve has as
            many points between one and ten seconds as between ten and a hundred.
    """

    def __init__(self, look: Look | None = None, growth: float = 0.1) -> None:
        self._look, self._growth = look, growth
        self._away = 0.0
        self._due = 0.0
        self._begin = time.monotonic()

    def now(self) -> float:
        """Like ``time.monotonic()``, less the time spent looking."""
        return time.monotonic() - self._away

    def late(self, deadline: float | None) -> bool:
        """Whether a deadline on the scale of :meth:`now` has passed; there may be none."""
        return deadline is not None and self.now() >= deadline

    @property
    def seconds(self) -> float:
        """Own time since the start."""
        return self.now() - self._begin

    def show(self, images: Callable[[], Tensor]) -> None:
        """Offer the best answer so far.

        Args:
            images: makes it, if anybody looks; must not count as model evaluations.
        """
        if self._look is None or self.seconds < self._due:
            return
        entered, at = time.monotonic(), self.seconds
        self._look(at, images())
        self._due = at * (1 + self._growth)
        self._away += time.monotonic() - entered

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Nobody looks in here."""
        look, self._look = self._look, None
        try:
            yield
        finally:
            self._look = look
