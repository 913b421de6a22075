"""The demonstration with a page: started, changed, mended and ended by one thread.

What a running process can change (pause, speed, source, attack, prompt) goes to its operator port. What takes new
processes makes a new *part* of the run, in a folder of its own: its cloud (unless the old one serves it, too) and its
adversary are started beside the old ones, and only when they are ready does the edge change over, so that a choice that
cannot be leaves the old stream as it was. A process that is lost is started again.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.budget import SPENT
from scenarios.demo import DemoOptions, DemoRun, check, load_report
from scenarios.launch import READY_S, Steered, adversary_command, cloud_command, edge_command
from scenarios.processes import Child, Supervisor
from scenarios.web.choices import chosen
from scenarios.web.compare import Comparison
from scenarios.web.judge import Judge, whole
from scenarios.web.monitor import Monitor
from scenarios.web.screen import Screen
from scenarios.web.state import ADVERSARY, EDGE, RESTARTING, Board, Request, Requests
from scenarios.web.status import Numbers, recordings, stated
from scenarios.web.watch import TapWatch
from splitsight.errors import UserError
from splitsight.recording import Session
from splitsight.wire.channels import Address, channel
from splitsight.wire.credentials import ClientCredentials, read_token
from splitsight.wire.operator import OperatorClient
from splitsight.wire.ports import free_port

if TYPE_CHECKING:
    from splitsight.evaluators import Evaluator
    from splitsight.metrics.gallery import Gallery
    from splitsight.pipeline import EdgePipeline

__all__ = ["WebRun"]

_DRAIN_S = 20.0
_TICK_S, _TOLD_S, _LISTED_S = 0.1, 0.5, 5.0
_TRIES, _WITHIN_S = 4, 60.0
"""How often a lost process is started again within so many seconds."""


class _Ended(Exception):
    """Somebody asked for the end while processes were being started."""


@dataclass
class _Cloud:
    """A cloud server that serves whatever has the same key."""

    key: tuple[object, ...]
    child: Child
    name: str
    ports: tuple[int, int]
    command: Callable[[int, int], list[str]]


class _Part(DemoRun):
    """One stream of the run, from an edge's start to its end."""

    steered: Steered
    adversary: str
    edge: str
    watch: TapWatch
    screen: Screen
    numbers: Numbers
    cloud: _Cloud
    monitor: Monitor
    judge: Judge
    children: Supervisor
    edge_client: OperatorClient
    adversary_client: OperatorClient

    @property
    def processes(self) -> dict[str, Child]:
        """Those of this part that were started, by role."""
        found = self.children.children
        names = {"cloud": self.cloud.name, "adversary": self.adversary, "edge": self.edge}
        return {role: found[name] for role, name in names.items() if name in found}


class WebRun:
    """The run; :meth:`play` in the main thread.

    Attributes:
        cannot: what cannot be changed here, and why, one sentence each: nothing.
        exporting: what is being made to be taken away; empty for nothing.

    Args:
        options: what is demonstrated first.
        out: its folder.
        pipeline: what the edge does first.
        gallery: see :class:`~scenarios.web.judge.Judge`.
        evaluators: those of the report.
        judge: for the page.
        board: for the page.
        requests: of the page.
        token_file: of the operator's token.
    """

    def __init__(
        self,
        options: DemoOptions,
        out: Path,
        pipeline: EdgePipeline,
        gallery: Gallery | None,
        evaluators: list[Evaluator],
        judge: Judge,
        board: Board,
        requests: Requests,
        token_file: Path,
    ) -> None:
        self.options, self.out, self.board, self.judge = options, out, board, judge
        self.parts: list[_Part] = []
        self.phase, self.problem = "starting", ""
        self.ended: UserError | None = None
        self._first = pipeline, gallery, evaluators
        self._requests, self._token_file = requests, token_file
        self._credentials = ClientCredentials(read_token(token_file, "operator"))
        self.began = self._told = time.monotonic()
        self._clouds = 0
        self.comparison, self.cannot, self.exporting = Comparison(), {}, ""
        self._losses: deque[float] = deque(maxlen=_TRIES)
        self._settings: dict[str, Any] = {}  # of the edge, carried from part to part
        self._stop = self._starting = False
        self._listed: tuple[float, list[dict[str, str]]] = -_LISTED_S, []
        self._children: Supervisor
        self._tell()

    @property
    def part(self) -> _Part | None:
        """The stream that runs now."""
        return self.parts[-1] if self.parts else None

    @property
    def monitor(self) -> Monitor | None:
        """Of the processes that run now."""
        return None if self.part is None else self.part.monitor

    def reports(self) -> list[str]:
        """Reports that can be read in the browser: those of this run come at its end."""
        return []

    # ---------------------------------------------------------------- life

    def play(self, children: Supervisor) -> None:
        """Run until the stream ends or somebody asks for the end.

        Raises:
            UserError: the first stream cannot be started.
            KeyboardInterrupt: Ctrl-C; the children still run.
        """
        self._children = children
        with suppress(_Ended):
            self._begin(self.options, *self._first)
            while not self._stop:
                self._tick()
                self._mend()
                if (request := self._requests.take(_TICK_S)) is not None:
                    self._answer(request)
        self.say("stopping")
        self.halt(drain=True)

    def ask(self, action: str, **values: Any) -> Future[str]:
        """See :meth:`scenarios.web.state.Requests.ask`."""
        return self._requests.ask(action, **values)

    def say(self, phase: str) -> None:
        """What goes on, for the page and for the terminal."""
        self.phase = phase
        if self.part is not None:
            self.part.status = phase
        self._tell()

    def halt(self, *, drain: bool = False) -> None:
        """End all processes: the edge first, then the adversary, then the cloud."""
        if (part := self.part) is not None:
            self._end(part, drain=drain)
            self._children.stop(part.cloud.name, grace=10)
        self.comparison.close()
        self._tell()

    # ---------------------------------------------------------------- parts

    def _begin(
        self,
        options: DemoOptions,
        pipeline: EdgePipeline,
        gallery: Gallery | None,
        evaluators: list[Evaluator],
    ) -> None:
        """Start a part, and end the one before once it is ready.

        Raises:
            UserError: it cannot be started; the one before goes on.
        """
        number, before, children = len(self.parts) + 1, self.part, self._children
        folder = self.out if number == 1 else self.out / f"part-{number:02d}"
        folder.mkdir(exist_ok=True)
        suffix = "" if number == 1 else f"-{number}"
        part = _Part(options, folder, pipeline, gallery, evaluators)
        part.steered = Steered(self._token_file, uuid.uuid4().hex)
        part.adversary, part.edge = f"adversary{suffix}", f"edge{suffix}"
        remaining = self._remaining(before)
        new: list[str] = []
        self._starting = True
        try:
            # all at once: most of what they do first is to load the same libraries
            part.cloud = self._cloud(part, pipeline, new)
            port, tap_port = part.cloud.ports
            command = adversary_command(options, folder, tap_port, part.threads, part.steered)
            adversary = self._start(part.adversary, "adversary", command, part.threads, new)
            command = edge_command(options, folder, port, remaining, part.steered)
            edge = self._start(part.edge, "edge", command, 1, new)
            edge.accepted = frozenset({0, SPENT})
            self.say("starting the cloud server, the adversary and the edge")
            part.cloud.child.wait_event("ready", READY_S, tick=self._tick)
            self.say("starting the adversary and the edge")
            part.hear(adversary.wait_event("ready", READY_S, tick=self._tick))
            part.adversary_client = self._client(adversary)
            self.say("starting the edge")
            part.edge_client = self._client(edge)
        except BaseException:
            for key in new:
                children.stop(key, grace=0)
            raise
        finally:
            self._starting = False
        edge.expected_to_end = True
        if before is not None:
            self.say("changing over")
            self._end(before)
            if before.cloud is not part.cloud:
                children.stop(before.cloud.name, grace=5)
        part.watch = TapWatch(str(Address("127.0.0.1", tap_port)), part.steered.session)
        self.judge.begin(next(iter(evaluators), None), gallery, whole(pipeline.target))
        part.judge, part.children = self.judge, children
        part.screen = Screen(self.board, part.join, part.watch, self.judge, lambda: part.solving, 1 / options.fps)
        clients = {"adversary": part.adversary_client, "edge": part.edge_client}
        part.monitor = Monitor(channel(Address("127.0.0.1", port)), clients)
        part.numbers = Numbers(self.board, part, self.began)
        self.board.clear()
        self.parts.append(part)
        if number == 1:
            load_report()
        self.options = options
        part.edge_client.change(**({"paused": False} | self._settings))
        self.say("streaming")

    def _start(self, key: str, name: str, command: list[str], threads: int, new: list[str]) -> Child:
        """Start a process; its key goes to ``new``."""
        child = self._children.start(key, name, command, environment={"OMP_NUM_THREADS": str(threads)})
        new.append(key)
        return child

    def _client(self, child: Child) -> OperatorClient:
        port = child.wait_event("operator", READY_S, tick=self._tick)["port"]
        return OperatorClient(Address("127.0.0.1", port), self._credentials)

    def _remaining(self, before: _Part | None) -> float | None:
        """Seconds of the stream that are left to play; ``None`` for as long as somebody likes."""
        if self.options.seconds is None or before is None:
            return self.options.seconds
        played = sum(len(part.join.frames) / part.options.fps for part in self.parts)
        return max(1 / self.options.fps, self.options.seconds - played)

    def _cloud(self, part: _Part, pipeline: EdgePipeline, new: list[str]) -> _Cloud:
        """The running cloud server where it serves this part, too, else another."""
        o = part.options
        about = pipeline.description()
        # a defence that the server need not know of does not concern it
        defense = o.defense if pipeline.server is not None or about.tail_digest != pipeline.cut.tail_digest else None
        key = (o.target, o.weights, o.split, defense)
        if self.part is not None and self.part.cloud.key == key and self.part.cloud.child.alive:
            return self.part.cloud

        def command(port: int, tap_port: int) -> list[str]:
            return cloud_command(o, port=port, tap_port=tap_port, defense=defense)

        # known before it listens, so that the others need not wait for it to say
        ports = free_port(), free_port()
        return _Cloud(key, *self._start_cloud(command(*ports), new), ports, command)

    def _start_cloud(self, command: list[str], new: list[str]) -> tuple[Child, str]:
        self._clouds += 1
        name = "cloud" if self._clouds == 1 else f"cloud-{self._clouds}"
        return self._start(name, "cloud server", command, 1, new), name

    def _end(self, part: _Part, *, drain: bool = False) -> None:
        """End a part's edge and adversary; what they wrote stays."""
        children = self._children
        children.stop(part.edge, grace=5)
        child = children.children[part.adversary]
        child.expected_to_end = True
        deadline = time.monotonic() + _DRAIN_S
        # the end of the session reaches it through the tap; then it refines the window that it holds
        while drain and child.alive and time.monotonic() < deadline:
            self._tick()
            time.sleep(_TICK_S)
        children.stop(part.adversary, grace=10)
        part.monitor.close()
        part.watch.close()
        for client in (part.edge_client, part.adversary_client):
            client.close()
        part.join.poll()

    # ---------------------------------------------------------------- requests

    def _answer(self, request: Request) -> None:
        if not request.done.set_running_or_notify_cancel():
            return
        try:
            if request.action == "stop":
                self._stop = True
                said = "The run ends; its report is being written."
            elif request.action == "sweep":
                said = self._look_around()
            elif request.action == "restart":
                self._losses.clear()
                said = self._restart({})
            else:
                said = self._change(request.values)
        except UserError as error:
            self.say("streaming")
            request.done.set_exception(error)
        except _Ended:
            request.done.set_exception(UserError("the run ends"))
            raise
        except BaseException as error:
            request.done.set_exception(error)
            raise
        else:
            self._tell()
            request.done.set_result(said)

    def _change(self, values: Mapping[str, Any]) -> str:
        """Change what is asked for; says what was done.

        Raises:
            UserError: it cannot be.
        """
        part = self.part
        assert part is not None
        wanted = {key: value for key, value in values.items() if value is not None}
        if unknown := set(wanted) - {*EDGE, *ADVERSARY, *RESTARTING}:
            raise UserError(f"{', '.join(sorted(unknown))} cannot be changed here")
        source = wanted.get("source")
        if source and (kept := Path(source).expanduser() / "session.json").is_file():
            try:
                about = Session.from_json(kept.read_text(encoding="utf-8")).about
            except (OSError, ValueError) as error:
                raise UserError(f"the recording {source} cannot be read: {error}") from error
            wanted = {"target": about.target, "split": about.split, "defense": about.defense} | wanted
        restarting = {k: wanted[k] for k in RESTARTING if k in wanted and wanted[k] != getattr(part.options, k)}
        said: list[str] = []
        if restarting:
            # these go to the new processes at once
            said.append(self._restart(restarting | {k: wanted[k] for k in ADVERSARY if k in wanted}))
            part = self.part
            assert part is not None
        elif steered := {k: wanted[k] for k in ADVERSARY if k in wanted}:
            part.adversary_client.change(**steered)
            part.options = self.options = replace(self.options, **steered)
            part.solvers.append(part.options.solver)
            said.append("The adversary takes it up with its next window.")
        if steered := {k: wanted[k] for k in EDGE if k in wanted}:
            part.edge_client.change(**steered)
            self._settings |= {k: v for k, v in steered.items() if k in ("paused", "speed")}
            said.append("Done." if "source" not in steered else "It plays now.")
        return " ".join(said) or "Nothing changed."

    def _restart(self, changes: Mapping[str, Any]) -> str:
        """A new part with these options.

        Raises:
            UserError: it cannot be; the old part goes on.
        """
        self.say("checking")
        options = chosen(self.options, changes)
        self._begin(options, *check(options))
        return "" if options.preview else "There is no preview network for that: refined windows alone are shown."

    def _look_around(self) -> str:
        """Have the newest frame reconstructed at each split point.

        Raises:
            UserError: there is no frame yet.
        """
        self.comparison.newest(self.part, self.judge, self.board)
        return ""

    # ---------------------------------------------------------------- watching

    def _tick(self) -> None:
        """Show what is new; called all the time.

        Raises:
            _Ended: while processes are being started, the end is asked for.
        """
        if self._starting and self._requests.ending:
            raise _Ended
        if (part := self.part) is not None:
            part.join.poll()
            part.screen.update()
            part.numbers.update()
            part.streaming_s = time.monotonic() - part.numbers.began
        if time.monotonic() - self._told > _TOLD_S:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self.board.status = stated(self)

    def _mend(self) -> None:
        """Start again what is lost."""
        part = self.part
        assert part is not None
        children = self._children.children
        edge, adversary = children[part.edge], children[part.adversary]
        if edge.process.poll() in (0, SPENT) and not edge.stopping:
            if edge.process.returncode == SPENT:
                self.ended = edge.failure()
                self.problem = f"{self.ended} Choose another defence, or stop."
                if self.options.seconds is None:
                    return
            self._stop = True
            return
        lost = next((c for c in (part.cloud.child, adversary, edge) if not c.alive), None)
        if lost is None:
            if self.problem and self._settled():
                self.problem = ""
            return
        now = time.monotonic()
        if len(self._losses) == _TRIES and now - self._losses[0] < _WITHIN_S:
            self.problem = (
                f"{lost.failure()} It was started again {_TRIES} times: look into its log, then press “Start again”, "
                "or stop."
            )
            return
        self._losses.append(now)
        self.problem = f"{lost.failure()} It is started again."
        self.say(f"starting the {lost.name} again")
        try:
            if lost is part.cloud.child:
                # on the same ports, where the edge and the adversary look for it
                part.cloud.child, part.cloud.name = self._start_cloud(part.cloud.command(*part.cloud.ports), [])
                part.cloud.child.wait_event("ready", READY_S, tick=self._tick)
            else:
                self._restart({})
            self.say("streaming")
        except UserError as error:
            self.problem = f"{error} Trying again."

    def _settled(self) -> bool:
        """Whether answers come again since the last loss."""
        part = self.part
        return part is not None and bool(self._losses) and part.numbers.answered_at > self._losses[-1] + 1

    def recordings(self) -> list[dict[str, str]]:
        """What can be replayed; looked for now and then."""
        if time.monotonic() - self._listed[0] > _LISTED_S:
            self._listed = time.monotonic(), recordings(self.out)
        return self._listed[1]
