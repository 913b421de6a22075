import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitsight.network import NetworkProfile
from splitsight.network.prediction import SEGMENT
from splitsight.network.shaping import Direction, TokenBucket, directions


def link(mbps=8.0, seed=0, **figures):
    profile = NetworkProfile(name="p", uplink_mbps=mbps, downlink_mbps=mbps, **figures)
    return directions(profile, np.random.default_rng(seed))[0]


def test_a_bucket_without_burst_is_a_transmitter():
    bucket = TokenBucket(1000)
    assert bucket.take(100, 0.0) == pytest.approx(0.1)
    assert bucket.take(100, 0.0) == pytest.approx(0.2)  # behind the first
    assert bucket.take(100, 0.15) == pytest.approx(0.3)
    assert bucket.take(50, 5.0) == pytest.approx(5.05)  # rest saves nothing


def test_a_burst_passes_at_once_and_fills_again_at_the_rate():
    bucket = TokenBucket(1000, burst=200)
    assert bucket.take(200, 0.0) == 0.0
    assert bucket.take(100, 0.0) == pytest.approx(0.1)
    assert bucket.take(100, 0.3) == 0.3  # 200 tokens since 0.1, which is all that it holds
    assert bucket.take(200, 0.3) == pytest.approx(0.4)
    assert bucket.take(500, 100.0) == pytest.approx(100.3)


@given(st.floats(10, 1e9), st.floats(0, 1e5), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**6)), min_size=1))
def test_no_interval_carries_more_than_rate_and_burst_allow(rate, burst, arrivals):
    bucket, now, passed = TokenBucket(rate, burst), 0.0, []
    for gap, size in arrivals:
        now += gap
        passed.append((bucket.take(size, now), size))
        assert passed[-1][0] >= now
    times = [t for t, _ in passed]
    assert times == sorted(times)
    for i in range(len(passed)):
        carried = 0
        for j in range(i, len(passed)):
            carried += passed[j][1]
            # the first of them may have begun before the interval
            assert carried - passed[i][1] <= burst + rate * (times[j] - times[i]) + 1e-6 * (rate + carried)


def test_an_unlimited_bucket_stops_nothing():
    assert TokenBucket(math.inf).take(10**9, 3.0) == 3.0


def test_a_message_takes_size_by_bandwidth_and_latency():
    one = link(8.0, latency_ms=20)
    assert one.deliver_at(50_000, 1.0) == pytest.approx(1.0 + 0.05 + 0.02)
    assert one.deliver_at(50_000, 1.0) == pytest.approx(1.0 + 0.1 + 0.02)
    assert one.deliver_at(1_000, 9.0) == pytest.approx(9.0 + 0.001 + 0.02)


def test_jitter_is_drawn_once_a_message():
    one = link(8.0, latency_ms=50, jitter_ms=5)
    late = []
    for i in range(2000):
        # ten pieces that follow one another at once, then a rest
        ends = [one.deliver_at(1000, 10.0 * i) for _ in range(10)]
        np.testing.assert_allclose(np.diff(ends), 1e-3, atol=1e-9)
        late.append(ends[-1] - 10.0 * i - 0.01)
    assert np.mean(late) == pytest.approx(0.05, abs=5e-4) and np.std(late) == pytest.approx(0.005, rel=0.05)


def test_losses_cost_round_trips_and_bandwidth():
    one = link(8.0, latency_ms=10, loss=0.2)
    size, gap = SEGMENT, 5.0
    late = np.array([one.deliver_at(size, gap * i) - gap * i for i in range(20_000)])
    sent = size / 1e6
    rounds = (late - 0.01 - sent) / (0.02 + sent)  # a copy more for each round
    np.testing.assert_allclose(rounds, np.round(rounds), atol=1e-6)
    assert np.mean(np.round(rounds)) == pytest.approx(0.25, abs=0.01)


def test_a_seed_means_the_same_and_directions_differ():
    def draws(seed):
        up, down = directions(
            NetworkProfile(name="p", uplink_mbps=1, downlink_mbps=1, latency_ms=50, jitter_ms=9),
            np.random.default_rng(seed),
        )
        return [[d.deliver_at(100, float(i)) for i in range(5)] for d in (up, down)]

    assert draws(3) == draws(3) != draws(4)
    assert draws(3)[0] != draws(3)[1]


@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 40_000)), min_size=1))
def test_nothing_overtakes(seed, arrivals):
    one, now, before = link(20.0, seed, latency_ms=5, jitter_ms=10, loss=0.3), 0.0, 0.0
    for gap, size in arrivals:
        now += gap
        after = one.deliver_at(size, now)
        assert after >= max(before, now)
        before = after


def test_the_link_holds_what_is_on_its_way():
    assert link(80.0, latency_ms=100).capacity == (256 << 10) + 1_000_000
    assert isinstance(link(math.inf, latency_ms=1), Direction) and link(math.inf).capacity > 1 << 20
