"""An edge whose connection is shaped: it says so, takes the time, and breaks and resumes like any other."""

import dataclasses
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_cloud import FakeCloud, description

from edge_client.client import EdgeOptions, run_edge
from splitsight import targets
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.network import load_profile, predict


@pytest.fixture(scope="module")
def served():
    return description(targets.load("resnet18"), "L8")


@pytest.fixture
def cloud(served):
    made = []

    def make(**options):
        made.append(FakeCloud(served, **options))
        return made[-1]

    yield make
    for c in made:
        c.stop()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        write_png(folder / f"{i:02d}.png", np.full((64, 64, 3), 20 * i, np.uint8))
    return folder


@pytest.fixture
def network(tmp_path):
    def make(**figures):
        file = tmp_path / "shed.yaml"
        file.write_text("".join(f"{k}: {v}\n" for k, v in ({"uplink_mbps": 50, "downlink_mbps": 50} | figures).items()))
        return str(file)

    return make


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_frames_take_what_the_profile_says_and_the_summary_names_it(cloud, pictures, network, tmp_path):
    slow = network(uplink_mbps=4, downlink_mbps=1, latency_ms=20)
    report = run_edge(
        EdgeOptions(
            cloud().address, str(pictures), fps=10, pace=False, in_flight=1, report=tmp_path / "r.jsonl", network=slow
        )
    )
    assert report.answered == 12 and report.reconnects == 0
    rows = lines(tmp_path / "r.jsonl")
    least = predict(load_profile(slow), rows[0]["bytes"], 20).mean_ms  # 65.6 + 40 ms
    late = np.array([row["rtt_ms"] for row in rows])
    assert (late > least - 1).all() and np.median(late) < least + 60
    summary = json.loads((tmp_path / "r.summary.json").read_text())["network"]
    assert summary == report.network
    assert summary["name"] == "shed" and summary["uplink_mbps"] == 4 and "4 Mbit/s up" in summary["figures"]
    assert report.bytes < summary["up_bytes"] < report.bytes * 1.01 + 3000  # what gRPC and HTTP/2 add
    assert 0 < summary["down_bytes"] < 10_000


@pytest.mark.parametrize("name", [None, "loopback"])
def test_an_unshaped_connection_is_not_called_emulated(cloud, pictures, name):
    assert run_edge(EdgeOptions(cloud().address, str(pictures), fps=10, pace=False, network=name)).network is None


def test_broken_streams_are_resumed_through_the_relay(cloud, pictures, network, tmp_path):
    report = run_edge(
        EdgeOptions(
            cloud(break_after=5).address,
            str(pictures),
            fps=10,
            pace=False,
            report=tmp_path / "r.jsonl",
            network=network(latency_ms=2, jitter_ms=1, loss=0.05),
            network_seed=1,
        )
    )
    assert (report.answered, report.lost, report.reconnects) == (12, 0, 2)
    assert [r["sequence"] for r in lines(tmp_path / "r.jsonl")] == list(range(12))


def test_a_server_that_is_lost_behind_the_relay_is_said_with_its_own_address(cloud, pictures, network, tmp_path):
    server = cloud(hang_after=4)
    threading.Thread(target=lambda: server.silent.wait(60) and server.stop(), daemon=True).start()
    with pytest.raises(UserError, match=f"{server.address} was lost and could not be taken up again") as error:
        run_edge(
            EdgeOptions(
                server.address,
                str(pictures),
                fps=10,
                pace=False,
                give_up_s=0.4,
                answer_timeout_s=0.5,
                report=tmp_path / "r.jsonl",
                network=network(latency_ms=5),
            )
        )
    assert "\n" not in str(error.value)
    summary = json.loads((tmp_path / "r.summary.json").read_text())
    assert summary["answered"] == len(lines(tmp_path / "r.jsonl")) == 4 and summary["network"]["name"] == "shed"


def test_no_server_behind_the_relay_is_the_same_sentence(pictures, network):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no cloud server answers at 127\.0\.0\.1:9 "):
        run_edge(EdgeOptions("127.0.0.1:9", str(pictures), wait_s=0.3, network=network(latency_ms=5)))
    assert time.monotonic() - start < 10


def test_a_profile_that_cannot_be_is_refused_before_anything_runs(pictures, network):
    options = EdgeOptions("127.0.0.1:9", str(pictures), wait_s=60)
    for wrong, match in ((network(uplink_mbps=-1), "uplink_mbps: -1"), ("carrier-pigeon", "unknown network")):
        with pytest.raises(UserError, match=match):
            run_edge(dataclasses.replace(options, network=wrong))
