"""Minutes of a server that serves for long."""

import json

import pytest

from cloud_server.soak import FLAT_MIB, soak, summarize_soak
from splitsight.errors import UserError


def _minutes(*memory):
    return [{"answers": 10, "errors": i == 0, "server_mib": mib} for i, mib in enumerate(memory)]


def test_memory_is_judged_by_the_last_two_thirds():
    # what it takes to warm up does not count
    assert summarize_soak(_minutes(100, 300, 300, 301, 302, 302)) == {
        "answers": 60, "errors": 1, "growth_mib": 1.5, "flat": True,
    }  # fmt: skip
    assert not summarize_soak(_minutes(0, 0, FLAT_MIB + 1))["flat"]
    assert summarize_soak(_minutes(1, 2))["flat"] is None


@pytest.mark.parametrize("settings", [{"minutes": 0}, {"sessions": 0}, {"rate": 0}, {"rate": float("nan")}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        soak(**settings)


def test_minutes_of_a_real_server():
    result = soak(minutes=3, minute=0.6, sessions=2, rate=30)
    assert len(result["minutes"]) == 3 and result["errors"] == 0 and result["answers"] > 15
    for row in result["minutes"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["server_mib"] > 50 and row["server_cores"] > 0
    json.dumps(result)
