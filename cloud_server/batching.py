"""Frames of many sessions → batches, in fair turns.

Every session has its own queue; a batch takes one frame from each waiting session in turn before it takes a
second one from any, and the next batch goes on where this one stopped. So with S sessions waiting, a frame at
the head of its session's queue is computed after at most ⌈S / max_batch⌉ batches, however fast others send.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["FairBatcher", "Lane"]

Item = TypeVar("Item")


class Lane(Generic[Item]):
    """The waiting frames of one session, in order.

    Attributes:
        limit: frames that the session may have in flight.
        waiting: frames not yet taken.
        taken: frames in the batch that was taken last.
        expected: answers that were given to a session at its limit and not yet followed by another frame.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: deque[Item] = deque()
        self.taken = self.expected = 0
        self.closed = False


class FairBatcher(Generic[Item]):
    """Collects frames and hands them over in batches; lives on one event loop.

    Args:
        compute: takes 1 … ``max_batch`` items, deals with their results and with its own errors; gives the seconds
            that computing them took.
        max_batch: items a batch.
        window: seconds to wait, while some frames do, for sessions that have nothing waiting, and for the next
            frames of those that had as many in flight as they may and have just been answered. A single session
            with fewer in flight is never made to wait.
    """

    def __init__(self, compute: Callable[[list[Item]], Awaitable[float]], max_batch: int, window: float) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._window = window
        self._lanes: set[Lane[Item]] = set()
        self._turns: deque[Lane[Item]] = deque()
        self._arrived = asyncio.Event()

    def open(self, limit: int) -> Lane[Item]:
        """A lane for a new session that may have ``limit`` frames in flight."""
        lane: Lane[Item] = Lane(limit)
        self._lanes.add(lane)
        return lane

    def close(self, lane: Lane[Item]) -> None:
        """Forget a session; what still waits in its lane is never computed."""
        lane.closed = True
        lane.waiting.clear()
        self._lanes.discard(lane)

    def put(self, lane: Lane[Item], item: Item) -> None:
        """Queue one item; does nothing on a closed lane."""
        if lane.closed:
            return
        if not lane.waiting:
            self._turns.append(lane)
        lane.waiting.append(item)
        lane.expected = max(0, lane.expected - 1)
        self._arrived.set()

    def take(self) -> list[Item]:
        """The next batch, in fair turns; empty if nothing waits."""
        batch: list[Item] = []
        for lane in self._lanes:
            lane.taken = 0
        while self._turns and len(batch) < self._max_batch:
            lane = self._turns.popleft()
            if not lane.waiting:
                continue  # closed meanwhile
            batch.append(lane.waiting.popleft())
            lane.taken += 1
            if lane.waiting:
                self._turns.append(lane)
        return batch

    def _expect(self) -> None:
        """Note, once a batch is answered, which sessions will send again as soon as they have read their answers.

        Those are the sessions that had as many frames in flight as they may. Without waiting for them, a session on
        its own is computed in batches of one (the first frame to arrive) and of all the others, in turn.
        """
        for lane in self._lanes:
            lane.expected = lane.taken if lane.taken + len(lane.waiting) >= lane.limit else 0

    async def _gather(self, end: float, missing: Callable[[Lane[Item]], bool]) -> None:
        """Wait until no session is missing, a batch is full, or it is ``end`` on the loop's clock."""
        loop = asyncio.get_running_loop()
        while (
            any(map(missing, self._lanes))
            and sum(len(lane.waiting) for lane in self._turns) < self._max_batch
            and (left := end - loop.time()) > 0
        ):
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def run(self) -> None:
        """Serve until cancelled."""
        clock = asyncio.get_running_loop().time
        took = 0.0  # seconds that the batch before took
        while True:
            await self._arrived.wait()
            idle = True
            while self._turns:
                now = clock()
                if took > self._window:  # else computing a few at a time costs less than waiting
                    # frames together save part of a batch's time; waiting for them must not cost more
                    await self._gather(now + min(self._window, took / 4), lambda lane: lane.expected > 0)
                if idle:  # not where frames came while F2 ran: they have waited for others
                    await self._gather(now + self._window, lambda lane: not lane.waiting)
                idle = False
                if batch := self.take():
                    took = await self._compute(batch)
                    self._expect()
            self._arrived.clear()
