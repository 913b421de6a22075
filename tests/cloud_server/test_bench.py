"""Figures of the tap benchmark."""

import json

import numpy as np
import pytest

from cloud_server.bench import bench_tap, summarize
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
    assert result["met"] == {"reading": {"p50": False, "p99": True}, "hanging": {"p50": True, "p99": True}}
    assert result["arms"]["none"]["n"] == 1200
    json.dumps(result)


@pytest.mark.parametrize("settings", [{"rounds": 1}, {"requests": 0}, {"rate": 0}, {"rate": float("nan")}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        bench_tap(**settings)


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(UserError, match="unknown target 'nosuch'"):
        bench_tap(target="nosuch", rounds=2)
