"""Real processes over an emulated network: latency as predicted, and the comparison that ``bench link`` makes of it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from scenarios.link import Setup, run_pair
from splitsight.network import load_profile, predict

_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def slow(tmp_path):
    """So slow that what a busy machine adds does not matter."""
    file = tmp_path / "slow.yaml"
    file.write_text("uplink_mbps: 0.8\ndownlink_mbps: 2\nlatency_ms: 150\n")
    return str(file)


def test_an_edge_over_a_slow_network_is_as_slow_as_predicted(tmp_path, slow):
    measured = run_pair(Setup(), "L16", ["loopback", slow], frames=4, logs=tmp_path / "logs")
    plain, shaped = (np.median([row["latency_ms"] for row in measured[name]]) for name in ("loopback", slow))
    network = predict(load_profile(slow), measured[slow][0]["bytes"], 120).median_ms
    assert network > 380  # 8 KiB at 0.8 Mbit/s, and 300 ms
    assert shaped - plain == pytest.approx(network, rel=0.2)
    assert len(measured[slow]) == 4


def test_bench_link_from_the_command_line_goes_on_and_says_what_it_found(tmp_path, slow):
    def bench(*more):
        return subprocess.run(
            [
                *(sys.executable, "-m", "scenarios", "bench", "link", "--splits", "L16", "--networks", slow),
                *("--frames", "10", "--out", str(tmp_path / "out"), *more),
            ],
            capture_output=True,
            text=True,
            env=_ENV,
        )

    done = bench("--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    (pair,) = summary["pairs"]
    assert (pair["split"], pair["network"], pair["measured"]["n"]) == ("L16", "slow", 10)
    # the halves are timed alone: on a busy machine they are not what they are in the processes
    assert 0.6 < pair["ratio"]["ratio"] < 1.6
    again = bench()
    assert again.returncode == 0 and "slow" in again.stdout and "pairs within 15 %" in again.stdout
    other = bench("--seed", "1")
    assert other.returncode == 2 and "another measurement (seed differ)" in other.stderr
