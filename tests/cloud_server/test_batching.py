"""Fair turns, full batches, and no waiting for nobody."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from cloud_server.batching import FairBatcher


async def nothing(batch):
    return 0.0


def filled(counts, max_batch):
    batcher = FairBatcher(nothing, max_batch, 0)
    for name, count in enumerate(counts):
        lane = batcher.open(8)
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
    late = batcher.open(8)
    batcher.put(late, ("late", 0))
    assert ("late", 0) in batcher.take()


def test_a_closed_lane_is_never_computed():
    batcher = FairBatcher(nothing, 4, 0)
    lane, other = batcher.open(8), batcher.open(8)
    batcher.put(lane, 1)
    batcher.put(other, 2)
    batcher.close(lane)
    batcher.put(lane, 3)
    assert batcher.take() == [2] and batcher.take() == []


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once where everyone waits."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def jump(timeout=None):
            self.now += timeout or 0
            return select(0 if timeout is not None else 1)

        self._selector.select = jump

    def time(self):
        return self.now


def run(scenario, *, seconds=0.0, max_batch=3):
    """(when, batch) of each batch, where F2 takes ``seconds`` and the window is 0.2."""

    async def main():
        clock, batches = asyncio.get_running_loop().time, []

        async def compute(batch):
            batches.append((round(clock(), 6), batch))
            await asyncio.sleep(seconds)
            return seconds

        batcher = FairBatcher(compute, max_batch, 0.2)
        task = asyncio.create_task(batcher.run())
        await scenario(batcher)
        await asyncio.sleep(100)
        task.cancel()
        return batches

    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(main())


def test_one_session_never_waits_for_the_window():
    async def scenario(batcher):
        batcher.put(batcher.open(8), "a")

    assert run(scenario) == [(0, ["a"])]


def test_the_window_gathers_sessions_and_ends():
    async def scenario(batcher):
        lanes = [batcher.open(8) for _ in range(4)]
        batcher.put(lanes[0], "a")
        await asyncio.sleep(0.05)
        batcher.put(lanes[1], "b")

    assert run(scenario) == [(0.2, ["a", "b"])]


def test_a_full_batch_does_not_wait():
    async def scenario(batcher):
        lanes = [batcher.open(8) for _ in range(4)]
        for lane, name in zip(lanes, "abc", strict=False):
            batcher.put(lane, name)

    assert run(scenario) == [(0, ["a", "b", "c"])]


def test_frames_that_came_while_f2_ran_do_not_wait_for_other_sessions():
    async def scenario(batcher):
        busy, _silent = batcher.open(8), batcher.open(8)
        batcher.put(busy, "a")
        await asyncio.sleep(0.5)  # window, and half of F2
        batcher.put(busy, "b")

    assert run(scenario, seconds=0.6) == [(0.2, ["a"]), (0.8, ["b"])]


def saturating(limit, gap, frames, *, taken_as_limit=None):
    """A client that sends the next frame ``gap`` after each answer, one answer after another; F2 takes 1 second."""

    async def scenario(batcher):
        lane = batcher.open(taken_as_limit or limit)
        for i in range(limit):
            batcher.put(lane, i)
        sent = limit
        await asyncio.sleep(1)
        while sent < frames:
            await asyncio.sleep(gap)
            batcher.put(lane, sent)
            sent += 1
            if sent % limit == 0:
                await asyncio.sleep(1)

    return scenario


def test_a_session_at_its_limit_is_computed_in_whole_batches():
    batches = run(saturating(4, 0.04, 12), seconds=1, max_batch=8)
    assert batches == [(0, [0, 1, 2, 3]), (1.16, [4, 5, 6, 7]), (2.32, [8, 9, 10, 11])]


def test_frames_that_do_not_come_are_waited_for_no_longer_than_the_window():
    async def scenario(batcher):
        lane = batcher.open(2)
        for name in "ab":
            batcher.put(lane, name)
        await asyncio.sleep(5)
        for name in "cd":  # the first after a pause waits once, the second, on its own, does not
            batcher.put(lane, name)
            await asyncio.sleep(5)

    assert run(scenario, seconds=1) == [(0, ["a", "b"]), (5.2, ["c"]), (10, ["d"])]


def test_gathering_never_costs_more_than_a_quarter_of_a_batch():
    batches = run(saturating(4, 0.04, 8), seconds=0.4, max_batch=8)
    assert batches == [(0, [0, 1, 2, 3]), (1.14, [4, 5, 6]), (1.64, [7])]


def test_where_f2_is_faster_than_the_window_nothing_is_gathered():
    batches = run(saturating(4, 0.04, 8), seconds=0.05, max_batch=8)
    assert batches == [(0, [0, 1, 2, 3]), (1.04, [4]), (1.09, [5]), (1.14, [6]), (1.19, [7])]


def test_a_session_below_its_limit_never_waits():
    batches = run(saturating(4, 0.04, 8, taken_as_limit=5), seconds=1, max_batch=8)
    assert batches == [(0, [0, 1, 2, 3]), (1.04, [4]), (2.04, [5, 6, 7])]
