"""Real processes: the server is killed and started again while an edge streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cloud_server.server")

_SERVE = """
import sys
from cloud_server.server import CloudOptions, serve
sys.exit(serve(CloudOptions(target="resnet18", split="L8", port=int(sys.argv[1]))))
"""
_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def start_server(port: int, log: Path) -> tuple[subprocess.Popen, int]:
    with log.open("ab") as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port)], stdout=subprocess.PIPE, stderr=errors, text=True, env=_ENV
        )
    ready = json.loads(child.stdout.readline() or "{}")
    assert ready.get("event") == "ready", log.read_text()
    return child, ready["port"]


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(path: Path, n: int, edge: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while count(path) < n:
        assert edge.poll() is None, "the edge ended early"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def children():
    made: list[subprocess.Popen] = []
    yield made
    for child in made:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def clip(tmp_path) -> Path:
    import cv2

    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 20, (96, 64))
    for i in range(40):
        writer.write(np.full((64, 96, 3), 6 * i, np.uint8))
    writer.release()
    return path


def start_edge(port: int, clip: Path, report: Path, *options: str) -> subprocess.Popen:
    basic = ["--server", f"127.0.0.1:{port}", "--video", str(clip), "--report", str(report)]
    return subprocess.Popen(
        [sys.executable, "-m", "edge_client", *basic, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=_ENV,
    )


def test_every_frame_is_answered_once_though_the_server_is_killed(children, clip, tmp_path):
    report = tmp_path / "edge.jsonl"
    server, port = start_server(0, tmp_path / "server.log")
    children.append(server)
    hasty_report = tmp_path / "hasty.jsonl"
    hasty = start_edge(port, clip, hasty_report, "--fps", "10", "--loop", "--give-up-s", "0.5")
    edge = start_edge(port, clip, report, "--fps", "20", "--seconds", "8", "--give-up-s", "60", "--dtype", "float16")
    children += [hasty, edge]
    wait_for_lines(hasty_report, 5, hasty)
    wait_for_lines(report, 30, edge)
    server.send_signal(signal.SIGKILL)
    server.wait()
    # One edge is not willing to wait for as long as a server takes to come up.
    _, errors = hasty.communicate(timeout=15)
    assert hasty.returncode == 1
    assert errors.count("\n") == 1 and "could not be taken up again" in errors
    summary = json.loads(hasty_report.with_suffix(".summary.json").read_text())
    assert summary["answered"] == count(hasty_report) >= 5
    server, again = start_server(port, tmp_path / "server.log")
    children.append(server)
    assert again == port
    _, errors = edge.communicate(timeout=90)
    assert (edge.returncode, errors) == (0, "")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [r["sequence"] for r in rows] == list(range(160))
    assert all(len(r["answer"]["top"]) == 5 for r in rows)
    summary = json.loads(report.with_suffix(".summary.json").read_text())
    assert (summary["answered"], summary["lost"], summary["skipped"]) == (160, 0, 0)
    assert summary["reconnects"] == 1 and summary["resent"] > 0
    # Same clip, same weights: the answers before and after the restart must agree.
    for i in (40, 80):
        assert rows[i]["best"]["index"] == rows[0]["best"]["index"]
        assert rows[i]["best"]["probability"] == pytest.approx(rows[0]["best"]["probability"], abs=1e-3)
