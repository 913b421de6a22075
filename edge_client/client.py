"""The edge: capture → preprocess → F1 → defence → encode → stream, one frame after another.

Pacing follows the source. Frames of a stored clip are due at ``start + k / fps``, never skipped, and carry
that moment as their capture time, so that windows cut by time do not depend on this machine's load. A live
source hands over its newest frame, and what came while there was no room in flight is skipped and counted.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.budget import Spending, check_budget
from edge_client.link import Answered, Link, Sent, describe
from edge_client.playback import Player
from edge_client.report import Report
from splitsight.errors import UserError
from splitsight.network import load_profile
from splitsight.network.relay import Relay
from splitsight.video import FrameSource, open_source
from splitsight.wire.channels import Address, parse_addresses
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.operator import OperatorOptions, served
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, WireError
from splitsight.wire.v1 import operator_pb2, tensor_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

if TYPE_CHECKING:
    from splitsight.pipeline import EdgePipeline

__all__ = ["EdgeOptions", "EdgeReport", "Encoder", "run_edge"]

_EXAMPLE = "--server 127.0.0.1:50051"
_POLL_S = 0.1
_DTYPES = ("float32", "float16", "int8")
_COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True)
class EdgeOptions:
    """What an edge does.

    Attributes:
        server: ``HOST:PORT`` of the cloud server, or those of its replicas with commas between.
        video: file, image folder, camera index or URL; ``None`` for the default clip.
        target: name of the split network.
        split: name of the split point.
        weights: of the target; ``None`` for the embedded ones.
        fps: frames a second, > 0.
        seconds: length of the run at most, > 0; ``None`` for all the source has.
        loop: start stored clips again at their end; ``None``: only where ``seconds`` asks for more than there is.
        pace: keep the rate in real time; ``False`` sends stored frames as fast as they are answered.
        dtype: ``float32``, ``float16`` or ``int8``.
        compression: ``none`` or ``zstd``.
        defense: what is done to the features before they leave, by name and parameters.
        epsilon_budget: largest ε of the stream, > 0; the edge stops before the frame that would exceed it. ``None`` for
            no limit. Needs a defence that guarantees something.
        epsilon_ledger: file that carries what was spent from session to session; ``None`` counts this session alone.
        in_flight: frames that may wait for an answer, ≥ 1; the server may lower it.
        threads: CPU threads of F1, ≥ 1.
        report: file for one JSON line an answered frame; the summary goes beside it as ``*.summary.json``.
        truth: folder for the model's inputs, ``000000.png`` …; never sent anywhere.
        wait_s: seconds to wait for a server that is not up yet, ≥ 0.
        give_up_s: seconds to try to take up a lost connection, ≥ 0.
        answer_timeout_s: seconds an answer may take before the connection counts as lost, > 0.
        drain_s: seconds that frames in flight get to be answered after a signal, ≥ 0.
        source_timeout_s: seconds to wait for a camera or stream, > 0.
        session_id: ``None`` for a random one.
        credentials: what the server asks for.
        network: the connection is shaped like this network, a name or a YAML file; ``None`` leaves it as it is.
        network_seed: of the network's jitter and losses; ``None`` for a random one.
        operator: where somebody may pause it, play something else …; ``None`` for nowhere.
        paused: begin paused, until the operator has it go on.
    """

    server: str
    video: str | None = None
    target: str = "resnet18"
    split: str = "L8"
    weights: Path | None = None
    fps: float = 2.0
    seconds: float | None = None
    loop: bool | None = None
    pace: bool = True
    dtype: str = "float32"
    compression: str = "none"
    defense: str = "identity"
    epsilon_budget: float | None = None
    epsilon_ledger: Path | None = None
    in_flight: int = 8
    threads: int = 1
    report: Path | None = None
    truth: Path | None = None
    wait_s: float = 5.0
    give_up_s: float = 30.0
    answer_timeout_s: float = 20.0
    drain_s: float = 3.0
    source_timeout_s: float = 10.0
    session_id: str | None = None
    credentials: ClientCredentials = ANONYMOUS
    network: str | None = None
    network_seed: int | None = None
    operator: OperatorOptions | None = None
    paused: bool = False

    def check(self) -> None:
        """Refuses values that make no sense.

        Raises:
            UserError: names the option and what it may be.
        """
        if len(parse_addresses(self.server, _EXAMPLE)) > 1 and self.network is not None:
            raise UserError("an emulated network leads to one server: give --server one address, or no --network")
        check_budget(self.epsilon_budget)
        for name, value, known in (("dtype", self.dtype, _DTYPES), ("compression", self.compression, _COMPRESSIONS)):
            if value not in known:
                raise UserError(f"unknown {name} '{value}': choose one of {', '.join(known)}")
        for name, number, least in (("in_flight", self.in_flight, 1), ("threads", self.threads, 1)):
            if number < least:
                raise UserError(f"{name} must be at least {least}, not {number}")
        for name, seconds in (("wait_s", self.wait_s), ("give_up_s", self.give_up_s), ("drain_s", self.drain_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise UserError(f"{name} must be 0 seconds or more, not {seconds:g}")
        if not (math.isfinite(self.answer_timeout_s) and self.answer_timeout_s > 0):
            raise UserError(f"answer_timeout_s must be more than 0 seconds, not {self.answer_timeout_s:g}")
        if self.network is not None:
            load_profile(self.network)
        if self.paused and self.operator is None:
            raise UserError("an edge that begins paused needs an operator who has it go on: give --operator-port, too")


@dataclass
class EdgeReport:
    """What an edge did.

    Attributes:
        session_id: of the session.
        captured: frames that were sent, or would have been.
        answered: frames with an answer, each counted once.
        lost: frames without an answer.
        skipped: frames of a live source that came while there was no room.
        undecoded: frames of a damaged clip that could not be decoded, each counted once; none of them is ``captured``.
        duplicates: answers that came a second time after a reconnect.
        resent: frames that were sent again.
        reconnects: how often a lost connection was taken up again.
        seconds: from the first capture to the last answer.
        fps: answered frames a second of that.
        bytes: size of all frame messages, each counted once.
        p50_ms: median round-trip time; NaN without answers.
        p99_ms: 99th percentile of it.
        head_ms: median milliseconds of preprocessing and F1.
        late_ms: most that a frame of a stored clip was sent after it was due.
        epsilon: what was told, as :meth:`edge_client.budget.Spending.summary` says it; ``None`` where nothing is
            guaranteed.
        signal: ``SIGINT`` or ``SIGTERM`` if that ended the run.
        error: the sentence that ended the run, if one did.
        network: the profile that was emulated, and ``up_bytes`` and ``down_bytes``, all that was carried; ``None`` for
            an unshaped connection.
    """

    session_id: str
    captured: int = 0
    answered: int = 0
    lost: int = 0
    skipped: int = 0
    undecoded: int = 0
    duplicates: int = 0
    resent: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    bytes: int = 0
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    head_ms: float = math.nan
    late_ms: float = 0.0
    epsilon: dict[str, Any] = field(default_factory=dict)
    signal: str | None = None
    error: str | None = None
    network: dict[str, Any] | None = None
    _rtt_ms: list[float] = field(default_factory=list, repr=False)
    _head_ms: list[float] = field(default_factory=list, repr=False)

    @property
    def exit_code(self) -> int:
        """0, or 130 after SIGINT; an error is raised and carries its own."""
        return 130 if self.signal == "SIGINT" else 0

    def summary(self) -> dict[str, Any]:
        """For JSON: all public fields, ``None`` for what was not measured."""
        data = {k: v for k, v in asdict(self).items() if not k.startswith("_")}
        return {k: (None if isinstance(v, float) and math.isnan(v) else v) for k, v in data.items()}


class _Stop:
    """SIGINT and SIGTERM set a flag instead of tearing a frame apart; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.name: str | None = None
        self.source: FrameSource | Player | None = None  # told too, since it may be waiting for a camera

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
        self.event.set()
        if self.source is not None:
            self.source.interrupt()

    @contextmanager
    def installed(self) -> Iterator[_Stop]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # Python allows handlers in the main thread only; a caller's thread has its own way to stop
            return
        old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _compare(
    options: EdgeOptions, ours: SessionDescription, served: pb.DescribeResponse, *, undone: bool = False
) -> None:
    """Refuses a server that does not hold the other half.

    Args:
        options: of this edge.
        ours: what it does.
        served: what the server says of itself.
        undone: whether the server has to undo the defence before F2.

    Raises:
        UserError: says what differs, and what to do about it.
    """
    at = f"the server at {options.server}"
    try:
        theirs = SessionDescription.read(served.session)
    except ValueError as error:
        raise UserError(f"{at} announces features that cannot be ({error}): run the same version there") from error
    if not theirs.defense and undone:
        raise UserError(
            f"{at} takes any defence that leaves F2 as it is, and has to undo {ours.defense}: start it with "
            f"--defense '{ours.defense}'"
        )
    if not theirs.defense:
        theirs = replace(theirs, defense=ours.defense, defense_digest=ours.defense_digest)
    elif theirs.defense != ours.defense:
        raise UserError(
            f"{at} asks for the defence {theirs.defense}, this edge has {ours.defense}: start this edge with "
            f"--defense '{theirs.defense}'"
        )
    for name in ("target", "split"):
        if getattr(theirs, name) != getattr(ours, name):
            wanted = getattr(theirs, name)
            raise UserError(
                f"{at} serves {name} {wanted}, not {getattr(ours, name)}: start this edge with --{name} {wanted}"
            )
    if (what := theirs.difference(ours)) is not None:
        remedy = "run the same version on both sides"
        if "digest" in what:
            remedy = "give both the same file or key of it" if "defence" in what else "give both the same --weights"
        raise UserError(f"{at} has {what.replace(', not ', ', this edge ')}: {remedy}")
    codec = _codec(options)
    if served.dtypes and codec.dtype not in served.dtypes:
        known = ", ".join(tensor_pb2.DType.Name(d).removeprefix("DTYPE_").lower() for d in served.dtypes)
        raise UserError(f"{at} does not take --dtype {options.dtype}: choose one of {known}")
    if served.compressions and codec.compression not in served.compressions:
        known = ", ".join(
            tensor_pb2.Compression.Name(c).removeprefix("COMPRESSION_").lower() for c in served.compressions
        )
        raise UserError(f"{at} does not take --compression {options.compression}: choose one of {known}")


def _codec(options: EdgeOptions) -> tensor_pb2.Codec:
    return CodecSpec(options.dtype, options.compression).proto()


class Encoder:
    """Image → frame message, by the edge pipeline.

    Args:
        pipeline: run once at the start, so that the first frame does not pay for what a first pass does.
    """

    def __init__(self, pipeline: EdgePipeline) -> None:
        import torch

        from splitsight.draws import Draws

        self._torch, self._pipeline, self._draws = torch, pipeline, Draws()
        # allocates, and chooses kernels
        self(0, 0, np.zeros((pipeline.input_size, pipeline.input_size, 3), np.uint8))

    def __call__(self, sequence: int, capture_us: int, image: np.ndarray) -> Sent:
        """``(S, S, 3)`` uint8 RGB → what goes over the wire, with ``head_ms`` and ``encode_ms`` in its ``extra``.

        Raises:
            UserError: the features cannot be sent.
        """
        torch = self._torch
        started = time.perf_counter()
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().div_(255)
            features = self._pipeline.protected(batch, self._draws)
        computed = time.perf_counter()
        try:
            (tensors,) = self._pipeline.encoded(features)
        except WireError as error:
            raise UserError(f"the features of frame {sequence} cannot be sent: {error}") from error
        frame = pb.Frame(sequence=sequence, capture_time_us=capture_us, features=tensors)
        encoded = time.perf_counter()
        times = {"head_ms": 1000 * (computed - started), "encode_ms": 1000 * (encoded - computed)}
        return Sent(frame, extra={k: round(v, 3) for k, v in times.items()})


def run_edge(options: EdgeOptions, on_event: Callable[[str, dict[str, Any]], None] = lambda *_: None) -> EdgeReport:
    """Plays a source through F1 and streams the features until it ends, a signal comes, or the server is lost.

    Handles SIGINT and SIGTERM while it runs (from the main thread): capture stops, what is in flight gets
    ``drain_s`` seconds. Sets PyTorch's thread count for the process.

    Args:
        options: what to do.
        on_event: called with a name and details for ``connected``, ``lost``, ``resumed``, ``answer``, ``budget`` (most
            of it is spent) and ``done``; partly from another thread.

    Returns:
        What was done; its ``exit_code`` is 0, or 130 after SIGINT.

    Raises:
        UserError: bad options, no source, no server, a server that does not fit, a connection that could not
            be taken up again, a full disk, a budget that is spent (exit status 3). Whatever was answered is in the
            report by then.
    """
    options.check()
    stop = _Stop()
    with stop.installed():
        report = EdgeReport(session_id=options.session_id or uuid.uuid4().hex)
        # Cheap checks first: nobody should wait for PyTorch to read that a file is missing.
        with (
            open_source(
                options.video,
                fps=options.fps,
                seconds=options.seconds,
                loop=options.loop,
                timeout_s=options.source_timeout_s,
            ) as source,
            _relay(options) as relay,
        ):
            player = stop.source = Player(
                source,
                options.video or "",
                lambda: open_source(options.video, fps=options.fps, loop=True),
                fps=options.fps,
                pace=options.pace,
            )
            via = None if relay is None else relay.address
            try:
                about = describe(options.server, options.wait_s, stop.event, options.credentials, via)
            except UserError:
                if not stop.event.is_set():
                    raise
                _conclude(report, stop)
                return report
            with Report(options.report, options.truth) as files, closing(player):
                try:
                    _stream(options, player, about, files, report, stop, on_event, via)
                except Exception as error:
                    report.error = str(error) or type(error).__name__
                    raise
                finally:
                    _conclude(report, stop)
                    report.network = _emulated(options, relay)
                    report.skipped, report.undecoded = source.skipped + player.skipped, source.lost
                    if report.error is None:
                        files.finish(report.summary())
                    else:
                        _finish_quietly(files, report)
        on_event("done", report.summary())
        return report


@contextmanager
def _relay(options: EdgeOptions) -> Iterator[Relay | None]:
    """What shapes the connection, where that was asked for."""
    if options.network is None or not (profile := load_profile(options.network)).shaped:
        yield None
        return
    (address,) = parse_addresses(options.server, _EXAMPLE)
    with Relay(address, profile, seed=options.network_seed) as relay:
        yield relay


def _emulated(options: EdgeOptions, relay: Relay | None) -> dict[str, Any] | None:
    if options.network is None or relay is None:
        return None
    up, down = relay.carried
    return {**load_profile(options.network).to_dict(), "up_bytes": up, "down_bytes": down}


def _finish_quietly(files: Report, report: EdgeReport) -> None:
    # The error that ended the run must reach the user even if the summary cannot be written any more.
    try:
        files.finish(report.summary())
    except UserError:
        return


def _conclude(report: EdgeReport, stop: _Stop) -> None:
    report.signal = stop.name
    report.lost = report.captured - report.answered
    if report._rtt_ms:
        report.p50_ms, report.p99_ms = (round(float(x), 3) for x in np.percentile(report._rtt_ms, [50, 99]))
    if report._head_ms:
        report.head_ms = round(float(np.median(report._head_ms)), 3)
    report.fps = round(report.answered / report.seconds, 3) if report.seconds > 0 else 0.0


def _stream(
    options: EdgeOptions,
    player: Player,
    announced: pb.DescribeResponse,
    files: Report,
    report: EdgeReport,
    stop: _Stop,
    on_event: Callable[[str, dict[str, Any]], None],
    via: Address | None,
) -> None:
    import torch

    from splitsight import targets
    from splitsight.data import fit
    from splitsight.pipeline import EdgePipeline
    from splitsight.tasks import read_answer

    torch.set_num_threads(options.threads)
    target = targets.load(options.target, options.weights)
    codec = CodecSpec(options.dtype, options.compression)
    pipeline = EdgePipeline(target, options.split, options.defense, codec)
    about = pipeline.description()
    _compare(options, about, announced, undone=pipeline.server is not None)
    player.about = about, codec
    encoder = Encoder(pipeline)

    started = time.monotonic()

    def on_answer(done: Answered) -> None:
        files.add_answer(done)
        report.answered += 1
        report.bytes += done.sent.bytes
        report.seconds = round(time.monotonic() - started, 3)
        report._rtt_ms.append(done.rtt_ms)
        said = "" if (reading := read_answer(done.answer)) is None else reading.headline()
        on_event(
            "answer",
            {"sequence": done.answer.sequence, "rtt_ms": round(done.rtt_ms, 3), "says": said}
            | {name: done.sent.extra[name] for name in ("epsilon",) if name in done.sent.extra},
        )

    opening = pb.SessionOpen(session_id=report.session_id, session=about.proto(), codec=_codec(options))
    spending = Spending(
        pipeline.defense.mechanism,
        about.defense,
        budget=options.epsilon_budget,
        ledger=options.epsilon_ledger,
        warn=lambda sentence: on_event("budget", {"says": sentence}),
    )
    link = Link(
        options.server,
        opening,
        in_flight=min(options.in_flight, announced.max_in_flight or options.in_flight),
        on_answer=on_answer,
        on_event=on_event,
        give_up_s=options.give_up_s,
        answer_timeout_s=options.answer_timeout_s,
        credentials=options.credentials,
        via=via,
    )
    link.start()
    try:
        started = time.monotonic()
        player.begin()
        player.clock.change(paused=options.paused)
        with served(_Steered(player, link, report), options.operator):
            while (shot := player.next(link.room, stop.event.is_set)) is not None:
                if spending.spent and shot.features is None:
                    break
                sequence = report.captured
                image = None if shot.image is None else fit(shot.image, target.input_size)
                report.late_ms = round(max(report.late_ms, 1000 * shot.late_s), 3)
                if shot.features is not None:
                    # these very numbers were told before
                    sent = Sent(pb.Frame(sequence=sequence, capture_time_us=shot.capture_us, features=shot.features))
                else:
                    assert image is not None
                    sent = encoder(sequence, shot.capture_us, image)
                    report._head_ms.append(sent.extra["head_ms"])
                size, most = sent.frame.ByteSize(), announced.max_message_bytes
                if sequence == 0 and most and size + 64 > most:
                    raise UserError(
                        f"a frame takes {size} bytes but the server at {options.server} accepts {most}: choose a "
                        "smaller --dtype, a deeper --split or --compression zstd"
                    )
                if shot.features is None:
                    spending.send()
                if spending.epsilon is not None:
                    sent.extra["epsilon"] = round(spending.epsilon, 6)
                if image is not None:
                    files.add_truth(sequence, image)
                report.captured += 1
                link.send(sent)
        if stop.event.is_set() or not link.drain(stop=stop.event):
            link.drain(options.drain_s)
        if shot is not None and spending.spent and not stop.event.is_set():
            raise spending.stopped(report.answered)
    finally:
        link.close()
        spending.close()
        report.epsilon = spending.summary()
        report.duplicates, report.resent, report.reconnects = link.duplicates, link.resent, link.reconnects


class _Steered:
    """What an operator sees and changes of an edge."""

    def __init__(self, player: Player, link: Link, report: EdgeReport) -> None:
        self._player, self._link, self._report = player, link, report

    def status(self) -> operator_pb2.OperatorStatus:
        """What is played, and how the connection is."""
        found = self._player.status()
        found.frames, found.unanswered = self._report.captured, len(self._link)
        found.connected = self._link.connected
        return found

    def change(self, wanted: operator_pb2.ChangeRequest) -> None:
        """By the player."""
        self._player.change(wanted)
