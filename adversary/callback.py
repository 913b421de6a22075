"""What an attack says while it runs, and how long it may: time, deadline, progress and display in one object.

The mathematics of an attack knows nothing of these. A solver asks its :class:`Callback` whether it is late, reports
each step, and shows it the best answer so far; a recipe gives each of its parts a share of the time that is left.
Curves of quality against time need images from the middle of an attack, and scoring them takes time that the attack
did not use: the callback decides whether anybody looks, and does not count how long that takes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

from torch import Tensor

__all__ = ["Callback", "Look", "Progress"]

Look = Callable[[float, Tensor], None]
"""Called with (own seconds, images ``(K, 3, H, W)`` in [0, 1])."""

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps planned, mean loss a frame)."""


class _Time:
    """Own time and the next look, shared by a callback and its parts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.away = self.due = 0.0
        self.begin = clock()


class Callback:
    """Starts when made.

    Args:
        deadline: value of :meth:`now` to finish by (``time.monotonic()`` as long as nobody looks); ``None`` for none.
        progress: told of every step.
        look: shown images now and then; ``None``: nobody looks.
        growth: the next look is due when this part of the time so far has passed again, so that a curve has as many
            points between one and ten seconds as between ten and a hundred.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        deadline: float | None = None,
        *,
        progress: Progress | None = None,
        look: Look | None = None,
        growth: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deadline = deadline
        self._progress, self._look, self._growth = progress, look, growth
        self._done, self._planned = 0, None
        self._time = _Time(clock)

    def now(self) -> float:
        """The clock, less the time spent looking."""
        return self._time.clock() - self._time.away

    @property
    def seconds(self) -> float:
        """Own time since the start."""
        return self.now() - self._time.begin

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it, infinite without one."""
        return math.inf if self.deadline is None else self.deadline - self.now()

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self.now() >= self.deadline

    def part(self, share: float = 1.0, *, done: int = 0, planned: int | None = None, shown: bool = True) -> Callback:
        """For a part of the attack.

        Args:
            share: of the time that is left.
            done: steps that other parts took before; added to what the part reports.
            planned: steps of the whole, where the part is not all of it.
            shown: whether its images are answers of the whole, that may be shown.
        """
        other = copy.copy(self)
        if self.deadline is not None and share < 1:
            now = self.now()
            other.deadline = now + share * (self.deadline - now)
        other._done = self._done + done
        other._planned = planned if self._planned is None else self._planned
        other._look = self._look if shown else None
        return other

    def earlier(self, seconds: float) -> Callback:
        """For a part of the attack after which others still need these seconds before the deadline."""
        other = copy.copy(self)
        if other.deadline is not None:
            other.deadline -= seconds
        return other

    def step(self, done: int, planned: int, loss: float) -> None:
        """Report a step: how many are done, how many planned, and the mean loss a frame."""
        if self._progress is not None:
            self._progress(self._done + done, planned if self._planned is None else self._planned, loss)

    def show(self, images: Callable[[], Tensor]) -> None:
        """Offer the best answer so far.

        Args:
            images: makes it, if anybody looks; must not count as model evaluations.
        """
        if self._look is None or self.seconds < self._time.due:
            return
        entered, at = self._time.clock(), self.seconds
        self._look(at, images())
        self._time.due = at * (1 + self._growth)
        self._time.away += self._time.clock() - entered
