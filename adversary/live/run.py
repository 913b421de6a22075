"""The live adversary as a process: tap → recording, previews, windows.

What it knows beforehand (:class:`Known`) is made by :mod:`adversary.live.whitebox`, with F1, or by
:mod:`adversary.live.blackbox`, without; nothing here can build a target. It sees features only. What it writes under
``out``:

* ``recording/``: the tapped frames (see :mod:`splitsight.recording`),
* ``preview/000000.png``, ``window/000000.png``: its two tiers, by sequence number,
* ``live.jsonl``: one event a line (``preview``, ``window``, ``window_skipped``, ``session``, ``end``, …). ``lag_ms``
  counts from when the frame, or the last one of the window, was read from the tap, until its image is a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import cv2
import grpc
import numpy as np
import torch

from adversary.live.engine import Engine
from adversary.live.pace import Pace
from adversary.live.steering import Steering
from adversary.live.windows import Observation, Window, Windower
from adversary.tap import TapReader
from splitsight.data import to_pixels, write_png
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.numerics import subnormals_flushed
from splitsight.recording import RecordingWriter, Session
from splitsight.terminal import LiveLine, announce
from splitsight.wire import tensors
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.operator import OperatorOptions, served
from splitsight.wire.sessions import SessionDescription, show
from splitsight.wire.v1 import operator_pb2, split_inference_pb2, tap_pb2

__all__ = ["Known", "LiveOptions", "run_live"]

_AGAIN = 5.0
"""Periods that a warm-up may take to be repeated; what takes longer is too slow by any measure."""


class Known(NamedTuple):
    """What an adversary has before the stream begins.

    Attributes:
        target: name of the attacked network.
        split: its split point.
        digest: SHA-256 of the weights of the F1 that it was made for.
        specs: what crosses the split.
        engine: makes images of it.
        weights: digests of its own models, by role.
        remedy: what helps where a session runs other weights.
        defense: what it expects the edge to do to the features; ``None`` for whatever that is.
        threat: the threat model, by its name.
    """

    target: str
    split: str
    digest: str
    specs: Sequence[FeatureSpec]
    engine: Engine
    weights: Mapping[str, str]
    remedy: str
    defense: str | None = None
    threat: str = "white-box"


@dataclass(frozen=True)
class LiveOptions:
    """How to run the live adversary.

    Attributes:
        tap: ``HOST:PORT``.
        out: folder for everything that is written.
        target: name of the attacked network.
        split: split point; must be the session's.
        prior: name or folder of the generative prior.
        frames: K, frames of a window.
        stride: seconds between the frames of a window.
        attack: that solves the windows, a name out of ``splitsight list attacks``.
        setting: its named setting; empty for its default.
        changes: values to replace in it, by name.
        defense: what the edge does to the features, as far as the attacker was told.
        threads: compute threads.
        nice: how much to lower this process's priority (0…19).
        margin: part of a window's period that is left unused before its deadline, in [0, 1).
        prompt: text prior; empty for none.
        credentials: what the tap asks for.
        session: only this session; empty for the first one that shows up.
        preview: whether single frames are shown at once; without, no inversion network is looked for.
        inversion: white-box: file of an inversion network; the embedded one by default.
        weights: white-box: the target's weights; the embedded ones by default.
        network: black-box: file of the trained network; the package's or the cache's by default.
        patience: seconds to wait for a tap that is away.
        seed: of all draws.
        operator: where somebody may choose another attack or prompt; ``None`` for nowhere.
    """

    tap: str
    out: Path
    target: str = "resnet18"
    split: str = "L8"
    prior: str = "small"
    frames: int = 4
    stride: float = 0.5
    attack: str = "window"
    setting: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    defense: str = "identity"
    threads: int = 1
    nice: int = 10
    margin: float = 0.15
    prompt: str = ""
    credentials: ClientCredentials = ANONYMOUS
    session: str = ""
    preview: bool = True
    inversion: Path | None = None
    weights: Path | None = None
    network: Path | None = None
    patience: float = 10.0
    seed: int = 0
    operator: OperatorOptions | None = None

    @property
    def named(self) -> str:
        """What solves the windows, ``NAME[:SETTING]``."""
        return self.attack + (f":{self.setting}" if self.setting else "")


def _lower_priority(by: int) -> None:
    """Step back behind the edge and the server.

    Linux schedules the sessions of a desktop against each other first (``sched_autogroup``), and niceness only
    counts within one; so a process that leads its own session lowers that session too.
    """
    os.nice(by)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such file without autogroups
            Path("/proc/self/autogroup").write_text(str(by))


class _Log:
    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w")
        self._lock = threading.Lock()
        self._line = LiveLine()
        self.counts: Counter[str] = Counter()

    def write(self, event: str, **values: object) -> None:
        with self._lock:
            self.counts[event] += 1
            self._line.show(self._words())
            self._file.write(json.dumps({"event": event, "time_us": time.time_ns() // 1000, **values}) + "\n")
            self._file.flush()

    def _words(self) -> str:
        """How far it is, for a person."""
        counts = self.counts
        if not counts["session"]:
            return "no session yet"
        out = f", {counts['window_skipped']} left out" if counts["window_skipped"] else ""
        away = " · the tap is away" if counts["tap_lost"] > counts["tap_back"] else ""
        return f"{counts['preview']} previews · {counts['window']} windows{out}{away}"

    def close(self) -> None:
        self._line.close()
        self._file.close()


class _Adversary:
    """Two threads: the reader records and previews, the main thread refines windows."""

    def __init__(self, options: LiveOptions, known: Known, reader: TapReader) -> None:
        self.options, self.engine, self.known, self.reader = options, known.engine, known, reader
        self.windows: queue.Queue[Window | None] = queue.Queue()
        self.windower = Windower(options.frames, options.stride)
        for folder in ("preview", "window"):
            (options.out / folder).mkdir(parents=True, exist_ok=True)
        self.log = _Log(options.out / "live.jsonl")
        self.session: str | None = None
        self.writer: RecordingWriter | None = None
        self.error: BaseException | None = None
        self.ready: dict[int, float] = {}
        self.attack = options.named
        self.there, self.frames = True, 0
        self._strangers: set[str] = set()
        self._stop = threading.Event()
        self._ended = False

    def _open(self, message: split_inference_pb2.SessionOpen) -> None:
        wanted = self.options.session or self.session
        if wanted and message.session_id != wanted:
            if message.session_id not in self._strangers:
                self._strangers.add(message.session_id)
                self.log.write("ignored", session=message.session_id)
            return
        if self.session is not None:
            return
        try:
            session = Session.from_open(message)
        except ValueError as error:
            raise UserError(
                f"the session {message.session_id} describes nothing that can be attacked: {error}"
            ) from error
        if (wrong := _unfit(self.known, session.about)) is not None:
            raise UserError(wrong, code=1)
        self.session = message.session_id
        self.writer = RecordingWriter(self.options.out / "recording", session)
        self.log.write("session", session=message.session_id, defense=session.about.defense)

    def _frame(self, tapped: tap_pb2.TappedFrame) -> None:
        if self.writer is None or tapped.session_id != self.session:
            return
        arrived = time.monotonic()
        frame = split_inference_pb2.Frame.FromString(tapped.frame)
        if not self.windower.fresh(frame.sequence):
            return
        self.writer.append(tapped)
        self.frames += 1
        try:
            arrays = [
                tensors.decode(tensor, spec, max_bytes=256 * 2**20)
                for tensor, spec in zip(frame.features, self.known.specs, strict=True)
            ]
        except (tensors.WireError, ValueError) as error:
            # what the server refuses too; the stream goes on
            self.log.write("unreadable", sequence=frame.sequence, reason=str(error))
            return
        features = tuple(torch.from_numpy(np.array(a, copy=True)).unsqueeze(0) for a in arrays)
        observation = Observation(frame.sequence, frame.capture_time_us, arrived, features)
        image = self.engine.preview(observation) if self.options.preview else None
        if image is not None:
            write_png(self.options.out / "preview" / f"{frame.sequence:06d}.png", to_pixels(image))
            self.log.write(
                "preview", sequence=frame.sequence, lag_ms=1e3 * (time.monotonic() - arrived), dropped=tapped.dropped
            )
        if (window := self.windower.add(observation)) is not None:
            self.ready[window.index] = window.completed_at
            self.windows.put(window)

    def read(self) -> None:
        """Body of the reader thread."""
        try:
            for event in self.reader.events():
                kind = event.WhichOneof("event")
                if kind == "session":
                    self._open(event.session)
                elif kind == "frame":
                    self._frame(event.frame)
                elif kind == "end" and event.end.session_id == self.session:
                    break
        except BaseException as error:
            self.error = error
        finally:
            self._ended = True
            if (window := self.windower.flush()) is not None:
                # nobody could know before that it would stay incomplete, so its time runs from here
                self.ready[window.index] = time.monotonic()
                self.windows.put(window)
            self.windows.put(None)

    def stop(self, *_: object) -> None:
        """Read no further frames; what has arrived is still refined."""
        self._stop.set()
        self.reader.close()

    def solve(self) -> None:
        """Refine windows until the reader is done."""
        period = self.options.frames * self.options.stride
        while (window := self.windows.get()) is not None:
            # behind by more than a window: the newest one is worth more than a queue of stale ones
            newer = self._drain_to_newest(window)
            if newer is None:
                break
            window = newer
            ready = self.ready[window.index]
            # once the stream has ended nothing follows that a window could be in the way of
            deadline = (time.monotonic() if self._ended else ready) + period * (1 - self.options.margin)
            engine, attack = self.engine, self.attack  # both may be others for the next window
            result = engine.refine(window, deadline=max(deadline, time.monotonic() + 0.2 * period))
            for frame, image in zip(window.frames, to_pixels(result.images), strict=True):
                write_png(self.options.out / "window" / f"{frame.sequence:06d}.png", image)
            now = time.monotonic()
            limit = self.ready.get(window.index + 1, ready + period)
            self.log.write(
                "window",
                window=window.index,
                sequences=[f.sequence for f in window.frames],
                complete=window.complete,
                lag_ms=1e3 * (now - window.completed_at),
                seconds=result.seconds,
                on_time=now <= limit,
                iterations=result.iterations,
                model_evaluations=result.model_evaluations,
                loss=result.loss,
                attack=attack,
            )

    def take(self, known: Known, options: LiveOptions) -> None:
        """Solve windows from the next one on with another engine for the same session.

        Args:
            known: with the engine.
            options: that it was made by.

        Raises:
            UserError: it does not fit the session.
        """
        if (known.digest, known.defense, list(known.specs)) != (
            self.known.digest,
            self.known.defense,
            list(self.known.specs),
        ):
            raise UserError("that attack was made for other weights or another defence than this session's")
        self.engine, self.attack = known.engine, options.named
        self.log.write("attack", attack=self.attack, prompt=options.prompt)

    def tell(self, status: operator_pb2.OperatorStatus) -> None:
        """Fill in how the stream stands."""
        status.frames, status.connected = self.frames, self.there and self.session is not None

    def outcome(self) -> dict[str, object]:
        """How much came of it, and where it lies."""
        counts = self.log.counts
        return {
            "session": self.session,
            "previews": counts["preview"],
            "windows": counts["window"],
            "windows_skipped": counts["window_skipped"],
            "out": str(self.options.out),
        }

    def _drain_to_newest(self, window: Window) -> Window | None:
        while not self._stop.is_set() and not self.windows.empty():
            following = self.windows.get()
            if following is None:
                # the stream ended: refine what we hold, then stop
                self.windows.put(None)
                return window
            self.log.write("window_skipped", window=window.index, sequences=[f.sequence for f in window.frames])
            window = following
        return window


def _unfit(known: Known, about: SessionDescription) -> str | None:
    """Why a session cannot be attacked with what is known, in one sentence; ``None`` where it can."""
    if (about.target, about.split) != (known.target, known.split):
        return (
            f"the session runs {about.target} at {about.split}, this adversary was set up for {known.target} at "
            f"{known.split}: start it with --target {about.target} --split {about.split}"
        )
    if about.head_digest != known.digest:
        return (
            f"the session's F1 has weights with digest {about.head_digest[:12]}…, ours {known.digest[:12]}…: "
            f"{known.remedy}"
        )
    if known.defense not in (None, about.defense):
        return f"the session's defence is {about.defense}, this adversary was made for {known.defense}: {known.remedy}"
    if [(f.shape, f.layout) for f in about.features] != [(f.shape, f.layout) for f in known.specs]:
        return (
            f"the session sends {show(about.features)}, this adversary takes {show(known.specs)}: give it the "
            "session's defence with --defense"
        )
    return None


@subnormals_flushed()
def run_live(options: LiveOptions, know: Callable[[LiveOptions], Known]) -> int:
    """Attack a running server's tap until its stream ends, SIGTERM or SIGINT.

    Args:
        options: how to run.
        know: of the threat model: ``know`` of :mod:`adversary.live.whitebox` or :mod:`adversary.live.blackbox`.

    Prints ``{"event": "ready", "weights": digests}`` on standard output once models are loaded and the tap was
    reached, and ``{"event": "ended", …}`` at the end: how many previews and windows there are, and where.

    Returns:
        Exit status: 0 after SIGTERM or the end of the stream, 130 after SIGINT.

    Raises:
        UserError: unknown names, weights that do not fit the session, a tap that is not there or was lost.
    """
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    _lower_priority(options.nice)

    def warm(wanted: LiveOptions) -> Known:
        made = know(wanted)
        _warm_up(made, wanted)
        return made

    reader = TapReader(
        options.tap, session_id=options.session, credentials=options.credentials, patience=options.patience
    )
    known = know(options)
    pace = _warm_up(known, options)
    if pace.warning:
        print(f"warning: {pace.warning}", file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    reader.connect()
    adversary = _Adversary(options, known, reader)
    adversary.log.write("setup", **_setup(known, options), warning=pace.warning)

    def on_change(there: bool) -> None:
        adversary.there = there
        adversary.log.write("tap_back" if there else "tap_lost")

    reader.on_change = on_change
    interrupted = threading.Event()

    def on_signal(number: int, _: object) -> None:
        if number == signal.SIGINT:
            interrupted.set()
        adversary.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    thread = threading.Thread(target=adversary.read, name="tap", daemon=True)
    thread.start()
    ready = {"event": "ready", "weights": dict(known.weights), "warning": pace.warning}
    announce(ready, f"ready: waiting for {known.target} at {known.split} at the tap {options.tap}")
    try:
        with served(Steering(options, warm, adversary.take, adversary.tell), options.operator):
            adversary.solve()
    finally:
        adversary.stop()
        thread.join(timeout=5)
        if adversary.writer is not None:
            adversary.writer.close()
        adversary.log.write("end", skipped=adversary.log.counts["window_skipped"])
        adversary.log.close()
    error = adversary.error
    if isinstance(error, grpc.RpcError):
        raise UserError(f"the tap {options.tap} broke off: {error}", code=1)
    if error is not None:
        raise error
    done = adversary.outcome()
    announce(
        {"event": "ended", **done},
        f"the stream has ended: {done['previews']} previews, {done['windows']} windows in {options.out}; page and "
        f"video: `splitsight report {options.out} --truth FOLDER`, FOLDER being what the edge's --truth wrote",
    )
    return 130 if interrupted.is_set() else 0


def _setup(known: Known, options: LiveOptions) -> dict[str, Any]:
    """What the adversary is and knows, for whoever reads its folder later."""
    attack = known.engine.attack
    return {
        "target": known.target,
        "split": known.split,
        "attack": f"{attack.name}:{attack.setting}",
        "threat": known.threat,
        "prior": options.prior,
        "frames": options.frames,
        "stride_s": options.stride,
        "seed": options.seed,
        "preview": options.preview,
        "weights": dict(known.weights),
    }


def _warm_up(known: Known, options: LiveOptions) -> Pace:
    """A throw-away window, so that the first real one meets warm caches and a measured step time, and what it took.

    One that took longer than the time between windows is solved again, since the first one also loads and plans.
    """
    engine, zeros = known.engine, tuple(torch.zeros(1, *spec.shape) + 0.1 for spec in known.specs)
    frames = [Observation(-1, 0, time.monotonic(), zeros) for _ in range(options.frames)]
    for frame in frames:
        engine.preview(frame)
    period, window = options.frames * options.stride, Window(-1, frames, True)
    result = engine.refine(window, deadline=time.monotonic() + min(0.5, period))
    if period < result.seconds < _AGAIN * period:
        result = engine.refine(window, deadline=time.monotonic())
    engine.forget()
    attack = engine.attack
    return Pace(f"{attack.name}:{attack.setting}", options.frames, result.seconds, result.model_evaluations, period)
