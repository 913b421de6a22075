"""Real processes for one fault: a cloud server, edges that stream to it, an adversary at its tap."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scenarios.faults.gate import Gate
from scenarios.processes import PREFIX, Child, Supervisor
from splitsight.errors import UserError
from splitsight.wire.certs import make_certificates

__all__ = ["Edge", "NotHere", "Pace", "Row", "Stage", "recorded"]

_START_S = 300.0
_POLL_S = 0.01


class NotHere(UserError):
    """A fault that cannot be brought about on this machine."""


@dataclass(frozen=True)
class Pace:
    """How long things take.

    Attributes:
        fps: frames a second of an edge, > 0.
        before: frames that are answered before the fault comes, ≥ 1.
        outage: seconds that a fault lasts which ends, > 0.
        after: frames that are to come once it is over, ≥ 1.
        answer_timeout: seconds after which an edge takes a missing answer for a lost connection.
    """

    fps: float = 10.0
    before: int = 20
    outage: float = 3.0
    after: int = 20
    answer_timeout: float = 20.0


@dataclass(frozen=True)
class Row:
    """What one fault did.

    Attributes:
        fault: what happened, and to whom.
        frames: that the edge captured, or the client sent.
        answered: of these, with an answer.
        acknowledged_lost: answers that were given and are not in the report; nothing may be here.
        unanswered: frames that ended without an answer.
        resent: frames that were sent more than once.
        recover_s: seconds from the end of the fault (or its beginning, where it does not end) to the next answer, or,
            for the adversary, to the next frame that it recorded; ``None`` where nothing goes on.
        code: exit code of whoever was hit; ``None`` where it still runs.
        said: what its user reads; empty for nothing.
        note: what else there is to know, in one sentence.
    """

    fault: str
    frames: int
    answered: int
    acknowledged_lost: int
    unanswered: int
    resent: int
    recover_s: float | None
    code: int | None
    said: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Edge:
    """An edge process.

    Args:
        child: of the supervisor.
        report: where it writes its answers.
    """

    def __init__(self, child: Child, report: Path) -> None:
        self.child, self.report = child, report

    @property
    def answered(self) -> int:
        """Answers in its report so far."""
        return self.report.read_bytes().count(b"\n") if self.report.exists() else 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its report."""
        return [json.loads(line) for line in self.report.read_text().splitlines()] if self.report.exists() else []

    @property
    def said(self) -> list[str]:
        """Sentences on its standard error, as a user reads them."""
        lines = self.child.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix(PREFIX) for line in lines if line.startswith((PREFIX, "warning: "))]

    def reach(self, count: int, timeout: float = _START_S) -> float:
        """Wait for so many answers; seconds that it took.

        Raises:
            UserError: it ended first, or they did not come.
        """
        begin = time.monotonic()
        while self.answered < count:
            if not self.child.alive and self.answered < count:
                raise self.child.failure()
            if time.monotonic() - begin > timeout:
                raise UserError(f"the edge had {self.answered} answers where {count} were to come", code=1)
            time.sleep(_POLL_S)
        return time.monotonic() - begin

    def row(self, fault: str, recover_s: float | None, note: str = "", timeout: float = _START_S) -> Row:
        """Once it has ended: what came of it."""
        code = self.child.process.wait(timeout)
        if code and not self.answered:
            raise self.child.failure()
        file = self.report.with_suffix(".summary.json")
        done = json.loads(file.read_text()) if file.exists() else {}
        rows = self.rows
        answered = done.get("answered", len(rows))
        return Row(
            fault=fault,
            frames=done.get("captured", len(rows)),
            answered=answered,
            acknowledged_lost=answered - len({row["sequence"] for row in rows}),
            unanswered=done.get("lost", 0),
            resent=sum(row["attempts"] > 1 for row in rows),
            recover_s=None if recover_s is None else round(recover_s, 2),
            code=code,
            said=_short(self.said),
            note=note,
        )


def _short(said: Sequence[str]) -> str:
    more = f" / … and {len(said) - 2} more" if len(said) > 2 else ""
    return " / ".join(said[:2]) + more


class Stage:
    """Where faults happen; a context manager.

    Args:
        folder: for logs and reports; created.
        pace: how long things take.
        target: network to serve.
        split: split point.
        video: that edges play; ``None`` for the default clip.
        models: options of ``splitsight adversary`` that name its models; none for the embedded ones.
    """

    def __init__(
        self,
        folder: Path,
        pace: Pace,
        *,
        target: str = "resnet18",
        split: str = "L8",
        video: str | None = None,
        models: Sequence[str] = (),
    ) -> None:
        self.folder, self.pace, self.models = folder, pace, list(models)
        self._network = ["--target", target, "--split", split]
        self._video = [] if video is None else ["--video", video]
        self._supervisor = Supervisor(folder / "logs")
        self._certs = folder / "certs"
        self._numbers = count(1)
        self._server: Child | None = None
        self.port = self.tap_port = 0

    def __enter__(self) -> Stage:
        self._supervisor.__enter__()
        if not self._certs.exists():
            make_certificates(self._certs, [])
        return self

    def __exit__(self, *ended: Any) -> None:
        self._supervisor.__exit__(*ended)

    def start(self, what: str, *arguments: object, wrap: str = "") -> Child:
        """``splitsight WHAT ARGUMENTS`` as a process; with ``wrap``, Python that runs first."""
        command = ["-m", "scenarios"]
        if wrap:
            command = [
                "-c",
                f"{wrap}\nimport runpy\nrunpy.run_module('scenarios', run_name='__main__', alter_sys=True)",
            ]
        return self._supervisor.start(
            f"{next(self._numbers):02d}-{what}",
            {"cloud": "cloud server"}.get(what, what),
            [*command, what, *map(str, arguments)],
            environment={"OMP_NUM_THREADS": "1"},
            expected_to_end=True,
        )

    @property
    def server(self) -> Child:
        """The server; started where it does not run."""
        if self._server is None or not self._server.alive:
            ports = ("--port", self.port, "--tap-port", self.tap_port, "--resume", 5)
            self._server = self.start("cloud", *self._network, *ports, "--threads", 1)
            ready = self._server.wait_event("ready", _START_S)
            self.port, self.tap_port = ready["port"], ready["tap_port"]
        return self._server

    @contextmanager
    def guarded(self):  # noqa: ANN201  a port
        """The port of a second server, over TLS."""
        pair = ("--cert", self._certs / "server.pem", "--key", self._certs / "server.key")
        child = self.start("cloud", *self._network, "--port", 0, "--threads", 1, *pair)
        try:
            yield child.wait_event("ready", _START_S)["port"]
        finally:
            child.process.kill()

    @property
    def ca(self) -> tuple[str, str]:
        """Options of an edge for the server over TLS."""
        return "--ca", str(self._certs / "ca.pem")

    @contextmanager
    def gate(self, port: int | None = None) -> Iterator[Gate]:
        """A link to the server, or to another port."""
        assert self.server
        with Gate(port or self.port) as gate:
            yield gate

    @contextmanager
    def linked(self) -> Iterator[tuple[Gate, Edge]]:
        """A link to the server and an edge behind it, of whose frames some are answered."""
        with self.gate() as gate:
            edge = self.edge(port=gate.port)
            edge.reach(self.pace.before)
            yield gate, edge

    def edge(self, *arguments: object, port: int | None = None, report: Path | None = None, wrap: str = "") -> Edge:
        """An edge that streams as many frames as the pace says, once it has been started."""
        assert self.server
        report = report or self.folder / f"edge-{next(self._numbers):02d}.jsonl"
        frames = self.pace.before + self.pace.outage * self.pace.fps + self.pace.after
        stream = ("--fps", self.pace.fps, "--seconds", frames / self.pace.fps, "--give-up", 600)
        patience = ("--answer-timeout", self.pace.answer_timeout)
        where = ("--server", f"127.0.0.1:{port or self.port}", "--report", report)
        child = self.start("edge", *self._network, *self._video, *where, *stream, *patience, *arguments, wrap=wrap)
        return Edge(child, report)

    def adversary(self, out: Path, *arguments: object) -> Child:
        """An adversary that is ready."""
        assert self.server
        where = ("--tap", f"127.0.0.1:{self.tap_port}", "--out", out, "--patience", 600, "--stride", 0.25)
        child = self.start("adversary", *self._network, *where, *self.models, *arguments)
        child.wait_event("ready", _START_S)
        return child

    def kill(self, child: Child) -> None:
        """SIGKILL."""
        child.process.kill()
        child.process.wait()

    @contextmanager
    def hung(self, child: Child):  # noqa: ANN201  nothing
        """Stopped within the block."""
        child.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            child.process.send_signal(signal.SIGCONT)

    @contextmanager
    def small_disk(self, kib: int):  # noqa: ANN201  a folder
        """A folder on a disk of its own.

        Raises:
            NotHere: this user may not mount one.
        """
        folder = self.folder / f"disk-{time.monotonic_ns()}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise NotHere("a full disk needs the right to mount a small one (root): it is left out", code=1)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)

    def ended(self, child: Child, timeout: float = _START_S) -> tuple[int, str]:
        """Exit code of a child, and what it said."""
        code = child.process.wait(timeout)
        lines = child.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return code, " / ".join(line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX))


def _frames(folder: Path) -> list[int]:
    from splitsight.recording import Recording

    with suppress(UserError):
        return Recording.open(folder / "recording").sequences
    return []


def recorded(folder: Path, enough: Callable[[list[int]], bool], timeout: float = _START_S) -> list[int]:
    """What an adversary has recorded, once it is enough.

    Raises:
        UserError: it never was.
    """
    end = time.monotonic() + timeout
    while not enough(found := _frames(folder)):
        if time.monotonic() > end:
            raise UserError(f"the adversary recorded {len(found)} frames, which is not enough", code=1)
        time.sleep(0.05)
    return found
