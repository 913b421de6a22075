"""The state of a run as plain data, and its curves."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from scenarios.join import TIERS, FrameRow, left_out
from scenarios.web.state import Board
from splitsight.errors import UserError
from splitsight.recording import Session

if TYPE_CHECKING:
    from scenarios.web.joined import JoinedPart, JoinedRun
    from scenarios.web.run import WebRun, _Part

__all__ = ["Numbers", "recordings", "stated"]

_EVERY_S = 1.0
_WORDS = {"cloud": "Cloud server", "adversary": "Adversary", "edge": "Edge"}
_BEHIND_S = 15.0
"""Longest that an adversary may be behind before the page says so; a window takes a few seconds."""


class Numbers:
    """Plots the figures of one part as they come.

    Args:
        board: of the page.
        part: whose figures.
        origin: ``time.monotonic()`` of the time 0 of the plots.
    """

    def __init__(self, board: Board, part: _Part | JoinedPart, origin: float) -> None:
        self._board, self._part, self._origin = board, part, origin
        self._epoch = time.time() - (time.monotonic() - origin)
        self.began = time.monotonic()
        self.answered_at = -math.inf
        self._frames = -1
        self._seen: dict[str, int] = dict.fromkeys(TIERS, -1)
        self._told = 0.0
        self._bytes = 0
        self._cpu: dict[int, psutil.Process] = {}

    def update(self) -> None:
        """Plot what is new."""
        now = time.monotonic()
        rows = self._part.join.frames
        for sequence in range(self._frames + 1, len(rows)):
            row = rows.get(sequence)
            if row is None or not row.answered:
                break
            self._frames, self.answered_at = sequence, now
            at = self._at(row)
            self._board.plot("rtt", "round trip, ms", at, row.rtt_ms)
            self._board.plot("bytes", "KiB a frame", at, row.bytes / 1024)
            if not math.isnan(row.epsilon):
                self._board.plot("epsilon", "ε spent", at, row.epsilon)
        for tier in TIERS:
            last = self._seen[tier]
            for sequence in range(last + 1, len(rows)):
                row = rows.get(sequence)
                if row is not None and tier in row.psnr:
                    self._seen[tier] = sequence
                    at = self._at(row)
                    self._board.plot("quality", f"{tier}, dB", at, row.psnr[tier])
                    self._board.plot("lag", f"{tier}, s", at, row.lag_ms[tier] / 1e3)
        if now - self._told >= _EVERY_S:
            self._slow(now)

    def _at(self, row: FrameRow) -> float:
        """When a frame was filmed: what is known of it later stands where it belongs."""
        filmed = time.time_ns() // 1000 if row.capture_time_us is None else row.capture_time_us
        return filmed / 1e6 - self._epoch

    def _slow(self, now: float) -> None:
        watch, elapsed, at = self._part.watch, now - self._told, now - self._origin
        if self._told:
            self._board.plot("tap", "KiB a second", at, (watch.bytes - self._bytes) / 1024 / elapsed)
        self._bytes, self._told = watch.bytes, now
        for role, child in self._part.processes.items():
            with suppress(psutil.Error):
                process = self._cpu.setdefault(child.process.pid, psutil.Process(child.process.pid))
                if (used := process.cpu_percent()) > 0:
                    self._board.plot("cpu", f"{_WORDS[role].lower()}, %", at, used)
        judge = self._part.judge
        if judge is not None and (share := judge.agreement()) is not None:
            self._board.plot("accuracy", "answers as without split, %", at, 100 * share)


def recordings(out: Path) -> list[dict[str, str]]:
    """Recordings of this run and of those beside it: folder, and what was recorded; the newest first."""
    folders = [*out.glob("recording"), *out.glob("part-*/recording"), *out.parent.glob("*/recording")]
    found: dict[Path, float] = {}
    for folder in folders:
        with suppress(OSError):
            found[folder.resolve()] = (folder / "session.json").stat().st_mtime
    listed = []
    for folder in sorted(found, key=lambda f: -found[f])[:20]:
        with suppress(OSError, ValueError, UserError):
            about = Session.from_json((folder / "session.json").read_text(encoding="utf-8")).about
            run = folder.parent
            name = run.name if run.parent == out.parent else f"{run.parent.name}/{run.name}"
            listed.append({"folder": str(folder), "about": f"{name}: {about.target} at {about.split}, {about.defense}"})
    return listed


def stated(run: WebRun | JoinedRun) -> dict[str, Any]:
    """What the page says, in plain data (it is also what ``/live/status.json`` answers)."""
    o, part = run.options, run.part
    status: dict[str, Any] = {
        "phase": run.phase,
        "problem": run.problem,
        "target": o.target,
        "split": o.split,
        "defense": o.defense,
        "threat": o.threat,
        "attack": o.solver,
        "prompt": o.prompt,
        "previews": o.preview,
        "source": o.video or "",
        "fps": o.fps,
        "frames_per_window": o.frames,
        "out": str(run.out),
        "part": len(run.parts),
        "seconds": round(time.monotonic() - run.began, 1),
        "processes": {},
        "paused": False,
        "speed": 1.0,
        "busy": False,
        "recordings": run.recordings(),
        "sweep": run.comparison.says,
        "reports": run.reports(),
        "export": run.exporting,
    }
    if run.monitor is not None:
        status["processes"] = {role: _process(run, role) for role in _WORDS}
        edge, adversary = run.monitor.said.get("edge"), run.monitor.said.get("adversary")
        if edge is not None:
            status |= {"paused": edge.paused, "speed": edge.speed, "source": edge.source, "sent": edge.frames}
        if adversary is not None:
            status |= {"attack": adversary.attack, "prompt": adversary.prompt, "busy": adversary.busy}
            status["attack_problem"] = adversary.problem
    if part is None:
        return status
    status["defense"] = part.session.defense
    status["warning"] = part.warning
    rows = part.join.rows()
    answered = [row for row in rows if row.answered]
    status["frames"] = len(answered)
    status["says"] = answered[-1].says if answered else ""
    status["windows"] = {
        "done": len(part.join.windows),
        "skipped": part.join.skipped_windows,
        "frames_skipped": part.join.skipped(),
        "on_time": sum(bool(w.get("on_time")) for w in part.join.windows.values()),
    }
    status["guarantee"] = part.privacy()
    status["tap"] = {"frames": part.watch.frames, "dropped": part.watch.dropped}
    seen = next((row.sequence for row in reversed(rows) if row.lag_ms), 0)
    status["behind_s"] = round(max(0, (answered[-1].sequence if answered else 0) - seen) / o.fps, 1)
    if status["behind_s"] > _BEHIND_S and not run.problem:
        status["problem"] = (
            f"The adversary is {status['behind_s']:.0f} s behind the stream: this machine has too little time for it. "
            "Close what else runs, or start with fewer frames a second (--fps)."
        )
    tallies = {tier: run.judge.tally(tier) for tier in TIERS}
    status["quality"] = {
        tier: {
            "judged": t.judged,
            "recognised": t.recognised,
            "first": t.first,
            "gallery": run.judge.gallery_size,
            "psnr": next((row.psnr[tier] for row in reversed(rows) if tier in row.psnr), None),
        }
        for tier, t in tallies.items()
        if t is not None
    }
    return status


def _process(run: WebRun | JoinedRun, role: str) -> dict[str, Any]:
    """How a process is, in one word and in a sentence that says what to do."""
    part, monitor = run.part, run.monitor
    assert monitor is not None
    child = None if part is None else part.processes.get(role)
    told: dict[str, Any] = {}
    if child is not None:
        told = {"pid": child.process.pid}
        if not child.alive:
            ended = child.process.returncode == 0 and child.expected_to_end
            return told | {"state": "ended" if ended else "lost", "says": "has ended" if ended else "is gone"}
    elif not run.cannot:
        return {"state": "starting", "says": "is being started"}
    if not monitor.asked(role):
        return told | {"state": "unknown", "says": f"is not asked how it is: the page was started without --{role}"}
    if quiet := monitor.silent(role):
        remedy = "it has ended or is gone, start it where it ran" if run.cannot else "wait, or press “Start again”"
        return told | {"state": "silent", "says": f"has not answered for {quiet:.0f} s: {remedy}"}
    said = monitor.said.get(role)
    if role == "edge" and said is not None and not said.connected:
        return told | {"state": "waiting", "says": f"has no connection, {said.unanswered} frames wait"}
    if role == "adversary" and said is not None and not said.connected:
        return told | {"state": "waiting", "says": "waits for the tap"}
    slow = left_out(part.join.skipped()) if role == "adversary" and part is not None else ""
    return told | {"state": "running", "says": f"runs; this machine is too slow for it, {slow}" if slow else "runs"}
