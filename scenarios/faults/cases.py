"""What is broken on purpose, one function a fault: it brings the fault about and says what came of it.

Each takes a :class:`~scenarios.faults.stage.Stage` and gives one row. An edge streams frames, some are answered, the
fault comes, and the edge is asked at its end what it sent, what was answered, and what it said. Cases that touch
nothing but their own edge may run side by side (:data:`OWN`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np

from cloud_server.bench import drawn_features
from scenarios.faults.stage import Row, Stage, recorded
from splitsight.wire.channels import Address, channel
from splitsight.wire.sessions import UNDEFENDED
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1.split_inference_pb2_grpc import SplitInferenceStub

__all__ = ["CASES", "OWN"]

Case = Callable[[Stage], Row]
CASES: dict[str, Case] = {}
OWN: set[str] = set()
"""Cases that leave the server and other edges alone."""


def _case(name: str, *, own: bool = False) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        CASES[name] = case
        if own:
            OWN.add(name)
        return case

    return add


# -- the server --------------------------------------------------------------------------------------------


@_case("server-killed")
def server_killed(s: Stage) -> Row:
    """SIGKILL while frames wait for their answers, and another process on the same port."""
    edge = s.edge()
    edge.reach(s.pace.before)
    # an idle server answers within milliseconds: stopped, it leaves frames under way for certain
    s.server.process.send_signal(signal.SIGSTOP)
    time.sleep(3 / s.pace.fps)
    s.kill(s.server)
    time.sleep(s.pace.outage)
    assert s.server
    had = edge.answered
    fault = "server killed with frames under way, started again on its port"
    return edge.row(fault, edge.reach(had + 1), "its start itself is not counted")


@_case("server-hung")
def server_hung(s: Stage) -> Row:
    """SIGSTOP and SIGCONT: its connections live, it does nothing."""
    edge = s.edge()
    edge.reach(s.pace.before)
    with s.hung(s.server):
        time.sleep(s.pace.outage)
        had = edge.answered
    return edge.row(f"server hung for {s.pace.outage:g} s (SIGSTOP)", edge.reach(had + 1))


@_case("memory")
def memory_pressure(s: Stage) -> Row:
    """The server gets no more memory from the system, for a while (RLIMIT_AS)."""
    import psutil

    edge = s.edge()
    edge.reach(s.pace.before)
    server = psutil.Process(s.server.process.pid)
    _, most = server.rlimit(psutil.RLIMIT_AS)
    server.rlimit(psutil.RLIMIT_AS, (server.memory_info().vms, most))
    others = [s.edge() for _ in range(2)]  # they need connections, sessions, larger batches
    time.sleep(s.pace.outage)
    had, alive = edge.answered, s.server.alive
    if alive:
        server.rlimit(psutil.RLIMIT_AS, (most, most))
    row = edge.row(
        f"no memory to be had on the server for {s.pace.outage:g} s (RLIMIT_AS)",
        edge.reach(had + 1) if s.server else None,
        "the server went on" if alive else "the server ended, and was started again",
    )
    for other in others:
        other.child.process.wait(120)
    return row


# -- the link ----------------------------------------------------------------------------------------------


@_case("link-cut", own=True)
def link_cut(s: Stage) -> Row:
    """All connections reset, and new ones too, until it is restored."""
    with s.linked() as (gate, edge):
        gate.cut()
        time.sleep(s.pace.outage)
        had = edge.answered
        gate.restore()
        return edge.row(f"link cut for {s.pace.outage:g} s", edge.reach(had + 1))


@_case("link-slow", own=True)
def link_slow(s: Stage) -> Row:
    """A tenth of what the frames need."""
    with s.linked() as (gate, edge):
        size = edge.rows[0]["bytes"]
        gate.bytes_per_second = size * s.pace.fps / 10
        time.sleep(s.pace.outage)
        had = edge.answered
        gate.restore()
        return edge.row(f"link ten times too slow for {s.pace.outage:g} s", edge.reach(had + 1))


@_case("half-open", own=True)
def half_open(s: Stage) -> Row:
    """The connection is there, and nothing comes through it any more; a new one does."""
    with s.linked() as (gate, edge):
        gate.strand()
        had, begin = edge.answered, time.monotonic()
        edge.reach(had + 3)
        wait = time.monotonic() - begin
        note = f"found out when no answer came for {s.pace.answer_timeout:g} s (--answer-timeout)"
        return edge.row("half-open connection", wait, note)


def _damaged(s: Stage, fault: str, port: int | None, *options: str) -> Row:
    with s.gate(port) as gate:
        edge = s.edge(*options, port=gate.port)
        edge.reach(s.pace.before)
        gate.damage_every = 3 * edge.rows[0]["bytes"]
        until = time.monotonic() + s.pace.outage
        while time.monotonic() < until and edge.child.alive:
            time.sleep(0.02)
        gate.restore()
        had = edge.answered
        goes_on = edge.child.alive
        return edge.row(fault, edge.reach(had + 1) if goes_on else None)


@_case("damaged-tls", own=True)
def damaged_tls(s: Stage) -> Row:
    """A bit turned every few frames, over TLS."""
    with s.guarded() as port:
        return _damaged(s, f"bits turned on the way for {s.pace.outage:g} s, over TLS", port, *s.ca)


@_case("damaged-clear", own=True)
def damaged_clear(s: Stage) -> Row:
    """The same without TLS, and past TCP's checksum."""
    row = _damaged(s, f"bits turned on the way for {s.pace.outage:g} s, without TLS", s.port)
    note = "what hits a number is not found out, what hits anything else ends the session: use TLS"
    return replace(row, note=note)


# -- sequence numbers --------------------------------------------------------------------------------------


@_case("sequence", own=True)
def sequence_numbers(s: Stage) -> Row:
    """One stream repeats a number, another leaves one out; then the session is taken up where it was."""
    assert s.server
    answered: set[int] = set()
    said: list[str] = []
    with channel(Address("127.0.0.1", s.port)) as opened:
        stub = SplitInferenceStub(opened)
        about = stub.Describe(pb.DescribeRequest()).session
        about.defense = about.defense or UNDEFENDED
        features = drawn_features(about.features, np.random.default_rng(0))
        tensors = [encode(values, CodecSpec()) for values in features]
        codec = CodecSpec().proto()

        def stream(after: int, numbers: list[int]) -> None:
            opening = pb.SessionOpen(session_id="sequence", session=about, codec=codec, resume_after=after)
            frames = [pb.InferRequest(frame=pb.Frame(sequence=n, features=tensors)) for n in numbers]
            try:
                for response in stub.Infer(iter([pb.InferRequest(open=opening), *frames]), timeout=30):
                    if response.HasField("answer"):
                        answered.add(response.answer.sequence)
            except grpc.RpcError as error:
                said.append(f"{error.code().name}: {error.details()}")

        stream(-1, [0, 1, 1])
        stream(1, [2, 4, 3])
        begin = time.monotonic()
        stream(2, [3, 4, 5])
        took = round(time.monotonic() - begin, 2)
    lost = len(set(range(6)) - answered)
    note = "what came before is answered; the session is taken up with resume_after"
    return Row(
        "sequence number repeated; two exchanged", 6, len(answered), 0, lost, 0, took, None, " / ".join(said), note
    )


# -- clocks and disks --------------------------------------------------------------------------------------

_CLOCK = """
import os, time
_ns, _s = time.time_ns, time.time
def _off():
    return -3600 if os.path.exists({flag!r}) else 0
time.time_ns = lambda: _ns() + _off() * 10**9
time.time = lambda: _s() + _off()
"""


@_case("clock", own=True)
def clock_jump(s: Stage) -> Row:
    """The edge's clock goes back an hour."""
    flag = s.folder / f"clock-{time.monotonic_ns()}"
    edge = s.edge(wrap=_CLOCK.format(flag=str(flag)))
    edge.reach(s.pace.before)
    had = edge.answered
    flag.touch()
    row = edge.row("the edge's clock set back by an hour", edge.reach(had + 1))
    trips = [r["rtt_ms"] for r in edge.rows]
    sane = 0 < min(trips) <= max(trips) < 60_000
    note = "round trips are measured by a clock that does not jump" if sane else "round trips jump"
    return replace(row, note=note)


@_case("disk-edge", own=True)
def disk_full_edge(s: Stage) -> Row:
    """No room for the edge's report."""
    with s.small_disk(16) as disk:
        edge = s.edge(report=disk / "edge.jsonl")
        note = "every line of the report reads; what came later had no room"
        return edge.row("disk of the edge's report full", None, note)


@_case("disk-adversary")
def disk_full_adversary(s: Stage) -> Row:
    """No room for the adversary's recording."""
    with s.small_disk(512) as disk:
        adversary = s.adversary(disk / "run")
        edge = s.edge()
        code, said = s.ended(adversary)
        kept = recorded(disk / "run", lambda found: True)
        edge.child.process.wait(120)
    note = f"its recording reads: {len(kept)} frames; the edge had {edge.answered} answers"
    return Row("disk of the adversary full", edge.answered, edge.answered, 0, 0, 0, None, code, said, note)


# -- the adversary -----------------------------------------------------------------------------------------


@_case("adversary-killed")
def adversary_killed(s: Stage) -> Row:
    """SIGKILL, and another process on the same folder."""
    out = s.folder / f"adversary-{time.monotonic_ns()}"
    first = s.adversary(out)
    edge = s.edge("--seconds", 3600)  # until it is told to end: nobody knows how long another adversary takes to start
    edge.reach(s.pace.before)
    recorded(out, lambda found: len(found) >= 3)
    s.kill(first)
    before = _frames_of(out)
    s.adversary(out)
    begin = time.monotonic()
    found = recorded(out, lambda now: len(now) > len(before))
    took = time.monotonic() - begin
    had = edge.answered
    edge.reach(had + s.pace.after)
    edge.child.process.terminate()
    row = edge.row("adversary killed, started again on its folder", took)
    missed = row.frames - len(recorded(out, lambda now: now[-1] == row.frames - 1))
    assert set(before) <= set(found)
    note = f"the {len(before)} frames recorded before are kept; {missed} that came while it was away are missing"
    return replace(row, note=note)


@_case("adversary-hung")
def adversary_hung(s: Stage) -> Row:
    """SIGSTOP and SIGCONT."""
    out = s.folder / f"adversary-{time.monotonic_ns()}"
    adversary = s.adversary(out)
    edge = s.edge()
    edge.reach(s.pace.before)
    recorded(out, lambda found: len(found) >= 3)
    with s.hung(adversary):
        time.sleep(s.pace.outage)
        had = _frames_of(out)
    begin = time.monotonic()
    recorded(out, lambda now: len(now) > len(had))
    took = time.monotonic() - begin
    row = edge.row(f"adversary hung for {s.pace.outage:g} s (SIGSTOP)", took)
    recorded(out, lambda now: len(now) == row.frames or not adversary.alive)
    missed = row.frames - len(_frames_of(out))
    note = f"{missed} of {row.frames} frames missing in the recording; the tap keeps the newest (--tap-ring)"
    return replace(row, note=note)


def _frames_of(out: Path) -> list[int]:
    return recorded(out, lambda found: True)
