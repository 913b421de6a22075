"""The live adversary as a process: tap → recording, previews, windows.

What it knows beforehand (:class:`~adversary.live.options.Known`) is made by :mod:`adversary.live.whitebox`, with F1,
or by :mod:`adversary.live.blackbox`, without; nothing here can build a target. It sees features only. What it writes
under ``out``:

* ``recording/``: the tapped frames (see :mod:`splitsight.recording`),
* ``preview/000000.png``, ``window/000000.png``: its two tiers, by sequence number,
* ``live.jsonl``: one event a line (``preview``, ``window``, ``preview_skipped``, ``window_skipped``, ``session``,
  ``end``, …). ``lag_ms`` counts from when the frame, or the last one of the window, was read from the tap, until its
  image is a file.

Every frame is recorded. Where the machine is too slow for all of them, the tiers leave frames out rather than fall
behind (:mod:`adversary.live.backlog`), and say which.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import torch

from adversary.live.backlog import Backlog
from adversary.live.log import Log
from adversary.live.options import Known, LiveOptions
from adversary.live.pace import Pace
from adversary.live.steering import Steering
from adversary.live.windows import Observation, Window, Windower
from adversary.tap import TapReader
from splitsight.data import to_pixels, write_png
from splitsight.errors import UserError
from splitsight.numerics import subnormals_flushed
from splitsight.recording import RecordingWriter, Session
from splitsight.terminal import announce
from splitsight.wire import tensors
from splitsight.wire.operator import served
from splitsight.wire.sessions import SessionDescription, show
from splitsight.wire.v1 import operator_pb2, split_inference_pb2, tap_pb2

__all__ = ["run_live"]

_WAITS_S = 5.0
"""How long a frame may wait for its preview while newer ones come; a window gives way to the next one at once."""
_AGAIN = 5.0
"""Periods that a warm-up may take to be repeated; what takes longer is too slow by any measure."""


def _lower_priority(by: int) -> None:
    """Step back behind the edge and the server.

    Linux schedules the sessions of a desktop against each other first (``sched_autogroup``), and niceness only
    counts within one; so a process that leads its own session lowers that session too.
    """
    os.nice(by)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such file without autogroups
            Path("/proc/self/autogroup").write_text(str(by))


class _Adversary:
    """Three threads: one reads the tap and records, one makes previews, the main one refines windows."""

    def __init__(self, options: LiveOptions, known: Known, reader: TapReader) -> None:
        self.options, self.engine, self.known, self.reader = options, known.engine, known, reader
        self.windows, self.singles = Backlog[Window](0), Backlog[Observation](_WAITS_S)
        self.windower = Windower(options.frames, options.stride)
        for folder in ("preview", "window"):
            (options.out / folder).mkdir(parents=True, exist_ok=True)
        self.log = Log(options.out / "live.jsonl")
        self.session: str | None = None
        self.writer: RecordingWriter | None = None
        self.error: BaseException | None = None
        self.ready: dict[int, float] = {}
        self.attack = options.named
        self.there, self.frames, self.dropped = True, 0, 0
        self._strangers: set[str] = set()
        self._ended = False
        self._left_over: int | None = None

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
        self.dropped = tapped.dropped
        if self.options.preview and (late := self.singles.put(observation)):
            self.log.leave_out("preview", [f.sequence for f in late])
        if (window := self.windower.add(observation)) is not None:
            self._refine_next(window, window.completed_at)

    def _refine_next(self, window: Window, ready: float) -> None:
        self.ready[window.index] = ready
        for late in self.windows.put(window):
            self.log.leave_out("window", [f.sequence for f in late.frames], window=late.index)

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
                self._left_over = window.index
                self._refine_next(window, time.monotonic())
            self.windows.close()
            self.singles.close()

    def preview(self) -> None:
        """Body of the thread that makes previews."""
        try:
            while (frame := self.singles.take()) is not None:
                if (image := self.engine.preview(frame)) is not None:
                    write_png(self.options.out / "preview" / f"{frame.sequence:06d}.png", to_pixels(image))
                    lag = 1e3 * (time.monotonic() - frame.arrived)
                    self.log.write("preview", sequence=frame.sequence, lag_ms=lag, dropped=self.dropped)
        except BaseException as error:
            self.error = self.error or error
            self.stop()

    def stop(self, *_: object) -> None:
        """Read no further frames; what waits is still reconstructed."""
        self.reader.close()

    def solve(self) -> None:
        """Make previews and refine windows until the reader is done."""
        previews = threading.Thread(target=self.preview, name="preview", daemon=True)
        previews.start()
        self._solve()
        previews.join()

    def _solve(self) -> None:
        period = self.options.frames * self.options.stride
        while (window := self.windows.take()) is not None:
            ready = self.ready[window.index]
            # once the stream has ended nothing follows that a window could be in the way of
            begin = time.monotonic() if self._ended else ready
            deadline = begin + period * (1 - self.options.margin)
            engine, attack = self.engine, self.attack  # both may be others for the next window
            result = engine.refine(window, deadline=max(deadline, time.monotonic() + 0.2 * period))
            for frame, image in zip(window.frames, to_pixels(result.images), strict=True):
                write_png(self.options.out / "window" / f"{frame.sequence:06d}.png", image)
            now = time.monotonic()
            # frames left over at the end make a window before its time, and take none of the last one's
            follows = None if window.index + 1 == self._left_over else self.ready.get(window.index + 1)
            self.log.write(
                "window",
                window=window.index,
                sequences=[f.sequence for f in window.frames],
                complete=window.complete,
                lag_ms=1e3 * (now - window.completed_at),
                seconds=result.seconds,
                on_time=now <= (begin + period if follows is None else follows),
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
            "frames_skipped": dict(self.log.left_out),
            "out": str(self.options.out),
        }


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
    warning = "; ".join(filter(None, (pace.warning, known.caveat)))
    if warning:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    reader.connect()
    adversary = _Adversary(options, known, reader)
    adversary.log.write("setup", **_setup(known, options), warning=warning)

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
    ready = {"event": "ready", "weights": dict(known.weights), "warning": warning}
    announce(ready, f"ready: waiting for {known.target} at {known.split} at the tap {options.tap}")
    try:
        with served(Steering(options, warm, adversary.take, adversary.tell), options.operator):
            adversary.solve()
    finally:
        adversary.stop()
        thread.join(timeout=5)
        if adversary.writer is not None:
            adversary.writer.close()
        adversary.log.write("end", skipped=dict(adversary.log.left_out))
        adversary.log.close()
    error = adversary.error
    if isinstance(error, grpc.RpcError):
        raise UserError(f"the tap {options.tap} broke off: {error}", code=1)
    if error is not None:
        raise error
    done = adversary.outcome()
    announce(
        {"event": "ended", **done},
        f"the stream has ended: {done['previews']} previews, {done['windows']} windows{adversary.log.slow} in "
        f"{options.out}; page and video: `splitsight report {options.out} --truth FOLDER`, FOLDER being what the "
        "edge's --truth wrote",
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
