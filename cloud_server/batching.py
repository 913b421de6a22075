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
    """The waiting frames of one session, in order."""

    def __init__(self) -> None:
        self.waiting: deque[Item] = deque()
        self.closed = False


class FairBatcher(Generic[Item]):
    """Collects frames and hands them over in batches; lives on one event loop.

    Args:
        compute: takes 1 … ``max_batch`` items, deals with their results and with its own errors.
        max_batch: items a batch.
        window: seconds to wait for sessions that have nothing waiting, while some frames do; a single
            session is never made to wait.
    """

    def __init__(self, compute: Callable[[list[Item]], Awaitable[None]], max_batch: int, window: float) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._window = window
        self._lanes: set[Lane[Item]] = set()
        self._turns: deque[Lane[Item]] = deque()
        self._arrived = asyncio.Event()

    def open(self) -> Lane[Item]:
        """A lane for a new session."""
        lane: Lane[Item] = Lane()
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
        self._arrived.set()

    def take(self) -> list[Item]:
        """The next batch, in fair turns; empty if nothing waits."""
        batch: list[Item] = []
        while self._turns and len(batch) < self._max_batch:
            lane = self._turns.popleft()
            if not lane.waiting:
                continue  # closed meanwhile
            batch.append(lane.waiting.popleft())
            if lane.waiting:
                self._turns.append(lane)
        return batch

    def _complete(self) -> bool:
        ready = sum(1 for lane in self._lanes if lane.waiting)
        return ready == len(self._lanes) or sum(len(lane.waiting) for lane in self._turns) >= self._max_batch

    async def run(self) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # the window counts from here, not from each frame: frames that came while F2 ran go at once
            end = loop.time() + self._window
            while not self._complete() and (left := end - loop.time()) > 0:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), left)
                except TimeoutError:
                    break
            self._arrived.clear()
            while batch := self.take():
                await self._compute(batch)
