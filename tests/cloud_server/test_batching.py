"""Fair turns, full batches, and no waiting for nobody."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from cloud_server.batching import FairBatcher


async def nothing(batch):
    pass


def filled(counts, max_batch):
    batcher = FairBatcher(nothing, max_batch, 0)
    for name, count in enumerate(counts):
        lane = batcher.open()
        for i in range(count):
            batcher.put(lane, (name, i))
    return batcher


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(1, 5))
def test_turns_are_fair_and_each_lane_keeps_its_order(counts, max_batch):
    batcher = filled(counts, max_batch)
    taken = []
    while batch := batcher.take():
        assert len(batch) <= max_batch
        taken += batch
    assert len(taken) == sum(counts)
    for name, count in enumerate(counts):
        assert [i for n, i in taken if n == name] == list(range(count))
    # the i-th frame of a lane never comes before a j-th of another that also waits, j < i
    assert [i for _, i in taken] == sorted(i for _, i in taken)


def test_a_fast_session_does_not_starve_a_late_one():
    batcher = filled([1000], 4)
    batcher.take()
    late = batcher.open()
    batcher.put(late, ("late", 0))
    assert ("late", 0) in batcher.take()


def test_a_closed_lane_is_never_computed():
    batcher = FairBatcher(nothing, 4, 0)
    lane, other = batcher.open(), batcher.open()
    batcher.put(lane, 1)
    batcher.put(other, 2)
    batcher.close(lane)
    batcher.put(lane, 3)
    assert batcher.take() == [2] and batcher.take() == []


def run(scenario):
    async def main():
        batches = []

        async def compute(batch):
            batches.append((time.perf_counter(), batch))

        batcher = FairBatcher(compute, 3, 0.2)
        task = asyncio.create_task(batcher.run())
        start = time.perf_counter()
        await scenario(batcher)
        await asyncio.sleep(0.3)
        task.cancel()
        return [(when - start, batch) for when, batch in batches]

    return asyncio.run(main())


def test_one_session_never_waits_for_the_window():
    async def scenario(batcher):
        batcher.put(batcher.open(), "a")

    [(when, batch)] = run(scenario)
    assert batch == ["a"] and when < 0.1


def test_the_window_gathers_sessions_and_ends():
    async def scenario(batcher):
        lanes = [batcher.open() for _ in range(4)]
        batcher.put(lanes[0], "a")
        await asyncio.sleep(0.05)
        batcher.put(lanes[1], "b")

    [(when, batch)] = run(scenario)
    assert batch == ["a", "b"] and when > 0.15


def test_a_full_batch_does_not_wait():
    async def scenario(batcher):
        lanes = [batcher.open() for _ in range(4)]
        for lane, name in zip(lanes, "abc", strict=False):
            batcher.put(lane, name)

    [(when, batch)] = run(scenario)
    assert batch == ["a", "b", "c"] and when < 0.1
