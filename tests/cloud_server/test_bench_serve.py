"""Figures of the serving benchmark."""

import json

import numpy as np
import pytest

from cloud_server.bench_serve import Measured, bench_serve, summarize_serving
from cloud_server.model import Served
from cloud_server.options import CloudOptions
from splitsight.errors import UserError


def test_figures_against_hand_computed_ones():
    one = Measured([40, 90, 120], [0.01, 0.02, 0.03, 0.04, 0.05], [1, 3, 3, 3, 2, 2], [1.5, 1.5, 0.5], [1, 1, 1])
    result = summarize_serving([100, 100, 200], {1: one}, threads=1, cores=2)
    assert result["bound_fps"] == 100
    [row] = result["sessions"]
    # parts 0.4, 0.9 and 0.6; of six frames in batches of 1, 3 and 2
    assert row["part"]["ratio"] == 0.6 and row["part"]["low"] == 0.4 and row["part"]["high"] == 0.9
    assert (row["sessions"], row["n"], row["fps"], row["batch"]) == (1, 5, 90, 2)
    # of the first two rounds' bounds the clients left half: 0.8, 1.8 and 0.6
    assert (row["part_left"]["ratio"], row["clients"], row["server"]) == (0.8, 1.5, 1)
    assert row["p50_ms"] == 30 and row["p99_ms"] == pytest.approx(49.6)
    json.dumps(result)


def test_parts_are_paired_by_round():
    rng = np.random.default_rng(0)
    bound = rng.lognormal(5, 1, 20)  # the machine's speed varies far more than what is asked about
    figures = summarize_serving(bound, {2: Measured(list(0.9 * bound), [1], [1], [0] * 20, [1] * 20)})
    assert figures["sessions"][0]["part"] == {"ratio": 0.9, "low": 0.9, "high": 0.9}


@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 1},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"sessions": []},
        {"sessions": [0, 1]},
        {"max_batch": 0},
        {"threads": 0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        bench_serve(**settings)


def test_rounds_against_a_real_server():
    seen = []
    result = bench_serve(sessions=[2, 1, 2], rounds=2, seconds=0.2, max_batch=4, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)] and result["batch"] <= 4 < max(map(int, result["alone"]))
    assert [row["sessions"] for row in result["sessions"]] == [1, 2]
    for row in result["sessions"]:
        assert row["n"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] and 1 <= row["batch"] <= 4
        assert 0 < row["part"]["low"] <= row["part"]["ratio"] <= row["part"]["high"]
        # processor time comes in steps of 10 ms, of which a busy machine may grant none
        assert 0 <= row["clients"] < 8 and 0 <= row["server"] < 8 and row["part_left"]["ratio"] >= row["part"]["ratio"]
    json.dumps(result)


def test_a_frame_has_the_same_answer_alone_and_in_a_batch():
    served = Served(CloudOptions(threads=1))
    rng = np.random.default_rng(0)
    frames = [[np.maximum(rng.normal(size=s.shape), 0).astype(np.float32) for s in served.specs] for _ in range(3)]
    together = served(frames)[0]
    for twice in (False, True):
        served._twice = twice
        for frame, expected in zip(frames, together, strict=True):
            [answer] = served([frame])[0]
            assert [label.index for label in answer.top] == [label.index for label in expected.top]
            assert [la.probability for la in answer.top] == pytest.approx(
                [x.probability for x in expected.top], abs=1e-5
            )
