"""The live page on an edge, a cloud server and an adversary that somebody else started.

It reads what edge and adversary write, each into a folder of its own, and steers both by their operator's ports
(:mod:`splitsight.wire.operator`). It starts no process, so whatever takes a new one is shown, but cannot be changed.
Streams come one after the other: a new session of the adversary is a new part, and the end of one has it copied, with
its originals, into a folder of its own with a report.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scenarios.demo import DemoOptions, DemoRun, report
from scenarios.join import Join, Lines
from scenarios.processes import Child, Supervisor
from scenarios.rereport import ReportOptions, beholders, frame_rate, told
from scenarios.web.compare import Comparison
from scenarios.web.judge import Judge, whole
from scenarios.web.monitor import Monitor
from scenarios.web.screen import Screen
from scenarios.web.state import ADVERSARY, EDGE, Board, Request, Requests
from scenarios.web.status import Numbers, stated
from scenarios.web.watch import RecordingWatch
from splitsight import targets
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.recording import SESSION, Session
from splitsight.terminal import announce
from splitsight.wire.channels import parse_address
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.operator import OperatorClient

__all__ = ["Joined", "JoinedPart", "JoinedRun"]

_TICK_S, _TOLD_S, _LOOK_S = 0.1, 0.5, 0.5
_SETTLES = 20  # frames after which the rate of a stream is known
_OF_EDGE = ("edge.jsonl", "edge.summary.json", "truth")
_OF_ADVERSARY = ("live.jsonl", "recording", "preview", "window")
_NEEDS = "started elsewhere: to change it, start the processes again with other options there"


@dataclass(frozen=True)
class Joined:
    """What a page joins.

    Attributes:
        tapped: folder of the adversary, ``--out``.
        out: folder of the reports, one in a folder each.
        frames: folder of the edge, with the files of its ``--report`` (``edge.jsonl``) and ``--truth`` (``truth``);
            ``None`` where they cannot be reached: there are then no originals, and no reports.
        cloud: ``HOST:PORT`` of the cloud server; empty to ask it nothing.
        edge: ``HOST:PORT`` of the edge's operator; empty for none.
        adversary: likewise.
        operator: for both.
        server: for the cloud server.
        weights: of the target, where they are not the default ones.
        command: that the report names.
    """

    tapped: Path
    out: Path
    frames: Path | None = None
    cloud: str = ""
    edge: str = ""
    adversary: str = ""
    operator: ClientCredentials = ANONYMOUS
    server: ClientCredentials = ANONYMOUS
    weights: Path | None = None
    command: str = ""
    cannot: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        fixed = {"processes": f"Target, split point, threat model and defence were {_NEEDS}."}
        for role, given, what in (
            ("edge", self.edge, "Pause, speed and what is played"),
            ("adversary", self.adversary, "Attack and prompt"),
        ):
            if not given:
                fixed[role] = f"{what} are steered by the {role}'s operator port: give it with --{role} HOST:PORT."
        object.__setattr__(self, "cannot", fixed)


class JoinedPart(DemoRun):
    """One session of the joined adversary."""

    watch: RecordingWatch
    screen: Screen
    numbers: Numbers
    judge: Judge
    children: Supervisor
    reported = False
    settled = False
    """Whether its frame rate is known."""

    @property
    def processes(self) -> dict[str, Child]:
        """Those that were started here: none."""
        return {}


class JoinedRun:
    """The run; :meth:`play` in the main thread. See :class:`scenarios.web.run.WebRun`, whose page it serves, too.

    Args:
        joined: what.
        judge: for the page.
        board: for the page.
        requests: of the page.

    Attributes:
        cannot: what cannot be changed here, and why, one sentence each.
        exporting: what is being made to be taken away; empty for nothing.
    """

    def __init__(self, joined: Joined, judge: Judge, board: Board, requests: Requests) -> None:
        self.joined, self.out, self.judge, self.board, self._requests = joined, joined.out, judge, board, requests
        self.cannot = joined.cannot
        self.options = DemoOptions(target="", split="", command=joined.command)
        self.parts: list[JoinedPart] = []
        self.phase, self.problem = "waiting for a stream", ""
        self.comparison, self.exporting = Comparison(), ""
        self.began = self._told = time.monotonic()
        self._looked = -_LOOK_S
        self._events: Lines | None = None
        self._seen: tuple[int, str] | None = None
        self._clients = {
            role: OperatorClient(parse_address(address, f"--{role} 127.0.0.1:50061"), joined.operator)
            for role, address in (("edge", joined.edge), ("adversary", joined.adversary))
            if address
        }
        cloud = joined.server.channel(parse_address(joined.cloud, "--cloud 127.0.0.1:50051")) if joined.cloud else None
        self.monitor = Monitor(cloud, self._clients)
        self._tell()

    @property
    def part(self) -> JoinedPart | None:
        """The session that is shown."""
        return self.parts[-1] if self.parts else None

    def ask(self, action: str, **values: Any) -> Future[str]:
        """See :meth:`scenarios.web.state.Requests.ask`."""
        return self._requests.ask(action, **values)

    def recordings(self) -> list[dict[str, str]]:
        """What can be replayed: what the edge itself has, which is not known here."""
        return []

    def reports(self) -> list[str]:
        """Folders with a report, the newest first."""
        pages = sorted(self.out.glob("run-*/index.html"), key=lambda page: page.stat().st_mtime, reverse=True)
        return [page.parent.name for page in pages]

    def play(self) -> None:
        """Show one session after the other, until Ctrl-C."""
        while True:
            self._tick()
            if (request := self._requests.take(_TICK_S)) is not None:
                self._answer(request)

    def finish(self) -> None:
        """Report what there is of a session that has not ended."""
        self._finish(complete=False)

    def close(self) -> None:
        """End what looks and asks; the joined processes stay as they are."""
        self.monitor.close()
        self.comparison.close()
        for client in self._clients.values():
            client.close()
        if self.part is not None:
            self.part.watch.close()

    # ---------------------------------------------------------------- sessions

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked = now
            self._look()
        if (part := self.part) is not None and not part.reported:
            part.join.poll()
            part.screen.update()
            part.numbers.update()
            part.streaming_s = now - part.numbers.began
            if not part.settled:
                part.settled = len(part.join.frames) >= _SETTLES
                part.options = self.options = replace(part.options, fps=frame_rate(part.join)[0])
                part.screen.period = 1 / part.options.fps
        if now - self._told > _TOLD_S:
            self._tell()

    def _look(self) -> None:
        """Is there another session, or is this one at its end?"""
        file = self.joined.tapped / "live.jsonl"
        try:
            number = file.stat().st_ino
            session = Session.from_json((self.joined.tapped / "recording" / SESSION).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not yet
            return
        new = (number, session.session_id) != self._seen
        if new:
            self._finish(complete=False)
            self._seen, self._events = (number, session.session_id), Lines(file)
        ended = self._events is not None and any(event.get("event") == "end" for event in self._events.new())
        if new:
            try:
                self._begin(session)
            except UserError as error:
                self.problem = str(error)
                return
            # an earlier page has reported it
            self.part.reported = ended and (self.part.out / "index.html").is_file()  # type: ignore[union-attr]
        if ended:
            self._finish(complete=True)

    def _begin(self, session: Session) -> None:
        """Show a session.

        Raises:
            UserError: its network is not to be had here.
        """
        about, said = session.about, told(self.joined.tapped)
        options = DemoOptions(
            video="what the edge plays",
            target=about.target,
            split=about.split,
            weights=self.joined.weights,
            prior=str(said.get("prior", "small")),
            threat=str(said.get("threat", "white-box")),
            attack=str(said.get("attack", "")),
            preview=bool(said.get("preview", True)),
            defense=about.defense,
            frames=int(said.get("frames", 4)),
            stride=float(said.get("stride_s", 0.5)),
            seed=int(said.get("seed", 0)),
            command=self.joined.command,
        )
        target = targets.load(about.target, self.joined.weights)
        pipeline = EdgePipeline(target, about.split, about.defense)
        if pipeline.description().head_digest != about.head_digest:
            raise UserError(f"the session runs other weights of {about.target} than this page: give their --weights")
        gallery, evaluators = beholders(ReportOptions(self.joined.tapped), target, options.seed)
        part = JoinedPart(options, self.out / f"run-{session.session_id[:12]}", pipeline, gallery, evaluators)
        part.out.mkdir(parents=True, exist_ok=True)
        frames = self.joined.frames or part.out
        part.join = Join(self.joined.tapped, truth=frames / "truth", edge=frames / "edge.jsonl")
        part.warning, part.weights = str(said.get("warning", "")), dict(said.get("weights", {}))
        part.judge, part.children = self.judge, Supervisor(part.out / "logs")  # which stays empty
        self.judge.begin(next(iter(evaluators), None), gallery, whole(target))
        part.watch = RecordingWatch(self.joined.tapped / "recording")
        part.screen = Screen(self.board, part.join, part.watch, self.judge, lambda: self._attack(part), 1 / options.fps)
        part.numbers = Numbers(self.board, part, self.began)
        self.board.clear()
        self.parts.append(part)
        self.options, self.problem, self.phase = options, "", "streaming"

    def _attack(self, part: JoinedPart) -> str:
        """What refines windows now; somebody else may have changed it."""
        said = self.monitor.said.get("adversary")
        if said is not None and said.attack and said.attack != part.solving:
            part.solvers.append(said.attack)
        return part.solving

    def _finish(self, *, complete: bool) -> None:
        """Copy what edge and adversary left of this session, and report it; once."""
        part = self.part
        if part is None or part.reported:
            return
        part.reported = True
        part.watch.close()
        part.join.poll()
        part.screen.update()
        if not any(row.answered for row in part.join.rows()):
            self.problem = "There is no report without the edge's own files: give their folder with --frames."
            self.phase = "the stream has ended"
            return
        self.phase = "writing the report"
        self._tell()
        try:
            for place, names in ((self.joined.frames, _OF_EDGE), (self.joined.tapped, _OF_ADVERSARY)):
                for file in (place / name for name in names if place is not None):
                    if file.is_dir():
                        shutil.copytree(file, part.out / file.name, dirs_exist_ok=True)
                    elif file.exists():
                        shutil.copyfile(file, part.out / file.name)
            report(part, part.children, complete=complete, join=Join(part.out).again())
        except (UserError, OSError) as error:
            self.problem = f"There is no report of {part.out.name}: {error}"
        else:
            folder = str(part.out)
            announce({"event": "report", "folder": folder}, f"the report: {part.out / 'index.html'}")
        self.phase = "the stream has ended; waiting for another"
        self._tell()

    # ---------------------------------------------------------------- requests

    def _answer(self, request: Request) -> None:
        if not request.done.set_running_or_notify_cancel():
            return
        try:
            if request.action == "sweep":
                self.comparison.newest(self.part, self.judge, self.board)
                said = ""
            elif request.action == "change":
                said = self._change({key: value for key, value in request.values.items() if value is not None})
            else:
                raise UserError(self.cannot["processes"])
        except UserError as error:
            request.done.set_exception(error)
        else:
            self._tell()
            request.done.set_result(said)

    def _change(self, wanted: dict[str, Any]) -> str:
        """Have edge and adversary change what they can.

        Raises:
            UserError: it cannot be.
        """
        if not wanted.keys() <= {*EDGE, *ADVERSARY}:
            raise UserError(self.cannot["processes"])
        for role, names in (("adversary", ADVERSARY), ("edge", EDGE)):
            if (steered := {k: wanted[k] for k in names if k in wanted}) and role not in self._clients:
                raise UserError(self.cannot[role])
            if steered:
                self._clients[role].change(**steered)
        return "The adversary takes it up with its next window." if wanted.keys() & {*ADVERSARY} else "Done."

    def _tell(self) -> None:
        self._told = time.monotonic()
        self.board.status = stated(self)
