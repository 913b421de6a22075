"""Two cloud servers behind gRPC's own load balancing: one is killed, or hangs, in mid-stream."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

from splitsight.wire.channels import Address, channel
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tap_pb2
from splitsight.wire.v1.tap_pb2_grpc import TapStub

_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


class Replica:
    """A server process, and what its tap shows of one session."""

    def __init__(self, folder, name, *arguments):
        self.log, self.seen = folder / f"{name}.log", []
        command = [sys.executable, "-m", "cloud_server", "--threads", "1", "--tap-port", "0", "--resume-seconds", "1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=log, env=_ENV
            )

    def listen(self):
        self.ready = json.loads(self.process.stdout.readline() or "{}")
        assert self.ready.get("event") == "ready", self.log.read_text()
        self.port = self.ready["port"]
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self):
        with channel(Address("127.0.0.1", self.ready["tap_port"])) as opened:
            try:
                for event in TapStub(opened).Subscribe(tap_pb2.SubscribeRequest()):
                    self.seen.append(event)
            except grpc.RpcError:
                pass

    def frames(self, session):
        """Sequence numbers that the tap showed, in order."""
        shown = [e.frame for e in list(self.seen) if e.HasField("frame") and e.frame.session_id == session]
        return [pb.Frame.FromString(frame.frame).sequence for frame in shown]

    def ended(self, session):
        """Whether the tap said so."""
        return any(event.end.session_id == session for event in list(self.seen))

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    made = [Replica(tmp_path_factory.mktemp("replicas"), name) for name in "ab"]
    try:
        yield [one.listen() for one in made]
    finally:
        for one in made:
            one.stop()


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _until(condition, edge):
    end = time.monotonic() + 60
    while not condition():
        assert edge.poll() is None, edge.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_session_goes_on_at_another_replica(replicas, tmp_path, how):
    session = f"session-{how}"
    report, servers = tmp_path / "edge.jsonl", ",".join(f"127.0.0.1:{r.port}" for r in replicas)
    arguments = ["--server", servers, "--report", report, "--fps", 20, "--seconds", 4, "--session-id", session]
    edge = subprocess.Popen(
        [sys.executable, "-m", "edge_client", *map(str, arguments), "--answer-timeout-s", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_ENV,
    )  # fmt: skip
    first = replicas[0]
    try:
        _until(lambda: len(_lines(report)) >= 15 and any(len(r.frames(session)) > 8 for r in replicas), edge)
        first, second = sorted(replicas, key=lambda r: -len(r.frames(session)))
        assert second.frames(session) == []
        first.process.send_signal(how)
        _, errors = edge.communicate(timeout=60)
        assert (edge.returncode, errors) == (0, "")
    finally:
        edge.kill()
        edge.wait()
        first.process.send_signal(signal.SIGCONT)
    rows = _lines(report)
    assert [row["sequence"] for row in rows] == list(range(80))
    done = json.loads(report.with_suffix(".summary.json").read_text())
    assert (done["answered"], done["lost"], done["reconnects"]) == (80, 0, 1)
    # each tap shows what its own replica did; the second begins with the first frame that had no answer
    end = time.monotonic() + 5
    while not second.ended(session) and time.monotonic() < end:
        time.sleep(0.02)
    other = second.frames(session)
    assert second.ended(session) and other == list(range(other[0], 80))
    # a server that is killed takes along what its tap had not handed out yet; one that was stopped hands it out now
    while how == signal.SIGSTOP and other[0] > len(first.frames(session)) and time.monotonic() < end:
        time.sleep(0.02)
    one = first.frames(session)
    assert one == list(range(len(one)))
    assert how == signal.SIGKILL or other[0] <= len(one)
