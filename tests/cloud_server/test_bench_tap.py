"""Figures of the tap benchmark."""

import json

import numpy as np
import pytest

from cloud_server.bench import ARMS, bench_tap, summarize
from splitsight.errors import UserError


def test_ratios_are_paired_by_round_and_have_intervals():
    rng = np.random.default_rng(0)
    # rounds differ by far more than arms do: only pairing can see two percent
    none = rng.lognormal(0, 1, (30, 1)) * rng.normal(1e-3, 1e-5, (30, 40))
    result = summarize({"none": none, "control": none.copy(), "reading": none * 1.02, "hanging": none * 0.99})
    assert result["ratios"]["control"]["p50"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    slow = result["ratios"]["reading"]
    assert slow["p50"]["ratio"] == pytest.approx(1.02, abs=1e-4)
    assert slow["p50"]["low"] <= slow["p50"]["ratio"] <= slow["p50"]["high"]
    assert slow["p99"]["ratio"] == pytest.approx(1.02, abs=1e-4)
    assert result["met"] == {"reading": {"p50": "no", "p99": "yes"}, "hanging": {"p50": "yes", "p99": "yes"}}
    # noise as large as what is asked about decides nothing
    noisy = none * rng.lognormal(0, 0.2, (30, 1))
    assert summarize({"none": none, "reading": noisy})["met"]["reading"]["p50"] == "undecided"
    assert result["arms"]["none"]["n"] == 1200
    json.dumps(result)


@pytest.mark.parametrize("settings", [{"rounds": 1}, {"requests": 0}, {"rate": 0}, {"rate": float("nan")}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        bench_tap(**settings)


def test_rounds_against_a_real_server():
    seen = []
    result = bench_tap(rounds=2, requests=3, rate=100, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)] and result["frame_bytes"] > 4 * 128 * 8 * 8
    assert {arm: figures["n"] for arm, figures in result["arms"].items()} == dict.fromkeys(ARMS, 6)
    assert all(0 < figures["p50_ms"] <= figures["p99_ms"] for figures in result["arms"].values())


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(UserError, match="threads 0 is too small"):
        bench_tap(threads=0, rounds=2)
