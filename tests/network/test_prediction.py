import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitsight.network import NetworkProfile, framed, predict
from splitsight.network.prediction import SEGMENT


def profile(up=8.0, down=16.0, latency=0.0, jitter=0.0, loss=0.0):
    return NetworkProfile(name="p", uplink_mbps=up, downlink_mbps=down, latency_ms=latency, jitter_ms=jitter, loss=loss)


def test_without_chance_it_is_size_by_bandwidth_and_latency():
    found = predict(profile(latency=20), 100_000, 200)
    # 100,000 bytes: 5 of gRPC, 9 for each of 7 HTTP/2 frames
    up, down = 8 * (100_000 + 5 + 7 * 9) / 8e3, 8 * (200 + 5 + 9) / 16e3
    assert (found.up_ms, found.down_ms) == pytest.approx((up, down))
    assert found.mean_ms == found.median_ms == pytest.approx(up + down + 40)
    assert found.std_ms == 0 and not found.saturated and found.utilisation == 0


def test_framing_at_the_edges_of_an_http2_frame():
    assert framed(16384 - 5) == 16384 + 9
    assert framed(16384 - 4) == 16385 + 18


def test_an_unlimited_link_costs_nothing():
    found = predict(profile(math.inf, math.inf), 10**7, 10**6, fps=1e6)
    assert found.mean_ms == 0 and not found.saturated


def test_jitter_spreads_and_moves_the_mean_only_near_zero():
    far = predict(profile(latency=50, jitter=5), 1000, 100)
    assert far.std_ms == pytest.approx(5 * math.sqrt(2), rel=1e-6)
    assert far.propagation_ms == pytest.approx(100, rel=1e-9)
    near = predict(profile(math.inf, math.inf, jitter=5), 1000, 100)  # two half-normal variables
    assert near.mean_ms == pytest.approx(2 * 5 / math.sqrt(2 * math.pi))
    assert near.std_ms == pytest.approx(5 * math.sqrt(2) * math.sqrt(1 / 2 - 1 / (2 * math.pi)))


@pytest.mark.parametrize("loss", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("bandwidth", [1.0, 20.0, math.inf])
def test_losses_against_a_simulation(loss, bandwidth):
    rng = np.random.default_rng(0)
    size, latency = 60_000, 15.0
    found = predict(profile(bandwidth, bandwidth, latency=latency, loss=loss), size, 100)
    totals = np.zeros(40_000)
    for message in (size, 100):
        n = math.ceil(framed(message) / SEGMENT)
        took = 8 * framed(message) / (1e3 * bandwidth * (1 - loss))
        lost = rng.geometric(1 - loss, (len(totals), n)) - 1
        totals += (np.arange(1, n + 1) * took / n + 2 * latency * lost).max(1) + latency
    error = totals.std() / math.sqrt(len(totals))
    assert found.mean_ms == pytest.approx(totals.mean(), abs=4 * error + 0.05)
    assert found.std_ms == pytest.approx(totals.std(), rel=0.05)
    half_a_cell = 0.1
    assert (totals <= found.median_ms + half_a_cell).mean() >= 0.49
    assert (totals < found.median_ms - half_a_cell).mean() <= 0.51


def test_one_segment_waits_a_geometric_number_of_round_trips():
    found = predict(profile(math.inf, math.inf, latency=10, loss=0.2), 100, 100)
    assert found.loss_ms == pytest.approx(2 * 20 * 0.2 / 0.8, rel=0.01)


def test_median_with_jitter_and_losses_against_a_simulation():
    rng = np.random.default_rng(1)
    found = predict(profile(math.inf, math.inf, latency=30, jitter=6, loss=0.25), 100, 100)
    draws = rng.normal(30, 6, (400_000, 2)).sum(1) + 60 * (rng.geometric(0.75, (400_000, 2)) - 1).sum(1)
    assert found.median_ms == pytest.approx(np.median(draws), abs=0.1)


def test_more_than_the_link_carries_never_ends():
    link = profile(up=8)  # 1,000 bytes a millisecond
    assert predict(link, 50_000, 100, fps=19).utilisation == pytest.approx(19 * predict(link, 50_000, 100).up_ms / 1e3)
    full = predict(link, 50_000, 100, fps=20)
    assert full.saturated and math.isinf(full.mean_ms) and math.isinf(full.median_ms) and full.up_ms < 60
    assert predict(profile(down=0.001), 100, 1000, fps=1).saturated  # answers count too


@pytest.mark.parametrize("wrong", [(0, 1, None), (1, 0, None), (1, 1, 0)])
def test_sizes_and_rates_are_positive(wrong):
    with pytest.raises(ValueError, match="positive"):
        predict(profile(), wrong[0], wrong[1], fps=wrong[2])


links = st.builds(
    profile,
    st.floats(0.1, 1000),
    st.floats(0.1, 1000),
    st.floats(0, 300),
    st.floats(0, 50),
    st.sampled_from([0.0]) | st.floats(1e-4, 0.5),
)


@settings(max_examples=60, deadline=None)
@given(links, st.integers(1, 500_000), st.floats(1.01, 5))
def test_a_worse_link_is_never_faster(link, size, factor):
    def with_(**changes):
        return predict(link.model_copy(update=changes), size, 150)

    base = predict(link, size, 150)
    close = 1e-3 * base.mean_ms + 1e-6  # of the grid on which losses are tabulated
    for worse in (
        with_(uplink_mbps=link.uplink_mbps / factor, downlink_mbps=link.downlink_mbps / factor),
        with_(latency_ms=link.latency_ms * factor + 1),
        with_(jitter_ms=link.jitter_ms * factor + 1),
        with_(loss=min(0.6, link.loss * factor + 0.01)),
        predict(link, size * factor, 150),
    ):
        assert worse.mean_ms >= base.mean_ms - close
    assert with_(jitter_ms=link.jitter_ms * factor + 1).std_ms >= base.std_ms - close
