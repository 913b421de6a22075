"""Edge, cloud and adversary over mutual TLS with a token each, and a server that comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitsight.recording import Recording
from splitsight.wire.certs import make_certificates

_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(tmp_path):
    made = []

    def begin(*arguments: object) -> subprocess.Popen:
        log = (tmp_path / f"{arguments[0]}.log").open("ab")
        command = [sys.executable, "-m", "scenarios", *map(str, arguments)]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=_ENV))
        log.close()
        return made[-1]

    yield begin
    for child in made:
        child.kill()
        child.wait()
        child.stdout.close()


def _ready(child: subprocess.Popen) -> dict:
    event = json.loads(child.stdout.readline() or "{}")
    assert event.get("event") == "ready"
    return event


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait(path: Path, lines: int, *alive: subprocess.Popen) -> None:
    end = time.monotonic() + 90
    while _count(path) < lines:
        assert time.monotonic() < end and all(child.poll() is None for child in alive)
        time.sleep(0.05)


def test_a_guarded_run_goes_on_at_a_restarted_server(start, models, tmp_path):
    certs = tmp_path / "certs"
    make_certificates(certs, [])
    pair = ("--cert", certs / "server.pem", "--key", certs / "server.key", "--client-ca", certs / "ca.pem")
    own = ("--ca", certs / "ca.pem", "--cert", certs / "client.pem", "--key", certs / "client.key")
    tokens = ("--token-file", certs / "edge.token", "--tap-token-file", certs / "tap.token")
    server = start("cloud", "--port", 0, "--tap-port", 0, "--threads", 1, *pair, *tokens)
    at = _ready(server)
    out, report = tmp_path / "adversary", tmp_path / "edge.jsonl"
    tap = ("adversary", "--tap", f"localhost:{at['tap_port']}", "--out", out, "--stride", 0.25, "--patience", 60)
    adversary = start(*tap, *models, "--token-file", certs / "tap.token", *own)
    _ready(adversary)
    stream = ("edge", "--server", f"localhost:{at['port']}", "--fps", 4, "--seconds", 15, "--report", report)
    edge = start(*stream, "--give-up", 60, "--token-file", certs / "edge.token", *own)
    _wait(report, 8, edge, adversary)
    server.send_signal(signal.SIGKILL)
    server.wait()
    again = start("cloud", "--port", at["port"], "--tap-port", at["tap_port"], "--threads", 1, *pair, *tokens)
    _ready(again)
    assert edge.wait(90) == 0
    assert adversary.wait(60) == 0, (tmp_path / "adversary.log").read_text()
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [row["sequence"] for row in rows] == list(range(60))
    events = [json.loads(line)["event"] for line in (out / "live.jsonl").read_text().splitlines()]
    lost, back = events.index("tap_lost"), events.index("tap_back")
    assert "preview" in events[:lost] and "preview" in events[back:] and events.count("session") == 1
    taken = Recording.open(out / "recording").sequences
    assert taken == sorted(set(taken)) and taken[0] == 0 and taken[-1] == 59
