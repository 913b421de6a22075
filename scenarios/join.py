"""Join what the edge knows (the true frames) with what the adversary made of them.

This is the only place where ground truth and reconstructions meet: the edge writes ``truth/`` and
``edge.jsonl``, the adversary ``preview/``, ``window/`` and ``live.jsonl``; neither reads the other's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

__all__ = ["TIERS", "FrameRow", "Join", "Lines", "left_out", "quick_psnr", "read_png"]

TIERS = ("preview", "window")
"""Reconstruction tiers, from the first to the best."""


class Lines:
    """Follows a JSON-lines file that another process appends to.

    A line counts once its newline is there; lines that are not JSON objects are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Objects that were completed since the last call; none while the file does not exist."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return
        end = data.rfind(b"\n") + 1
        self._at += end
        for line in data[:end].splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def read_png(path: Path) -> np.ndarray | None:
    """``(h, w, 3)`` uint8 RGB, or ``None`` where there is no readable image (yet)."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def quick_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of two uint8 images; for the running display, the report uses :mod:`splitsight.metrics`."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def left_out(skipped: Mapping[str, int]) -> str:
    """:meth:`Join.skipped` in words; empty for nothing."""
    return " and ".join(f"{n} frames without a {tier}" for tier, n in skipped.items())


@dataclass
class FrameRow:
    """Everything known about one frame.

    Attributes:
        sequence: number on the wire, from 0.
        capture_time_us: microseconds since the Unix epoch, edge clock.
        says: what the cloud answered, in words.
        prediction: the one class that stands for the answer; empty where none does.
        probability: of that class, in [0, 1].
        top: ranked labels of the answer, where its task has any, ``[{"index", "name", "probability"}, …]``.
        answer: all of it, by the task's own keys.
        rtt_ms: from sending to the answer.
        bytes: of the encoded frame on the wire.
        epsilon: of the stream up to this frame; NaN where the defence guarantees nothing.
        lag_ms: per tier, from when the adversary had this frame (for a window: its last frame) to the image's file.
        measured: by metric (:func:`splitsight.metrics.image_metrics`), then per tier.
        rank: per tier, the place of the true frame among a gallery by similarity, 1 for found first.
        skipped: tiers that had no time for it.
        judged: tiers that were measured in full, for a report.
        window: number of the window it was refined in, −1 for none.
        on_time: whether that window was done before the next one was complete.
        iterations: of that window.
        model_evaluations: of that window.
        window_seconds: compute time of that window.
    """

    sequence: int
    capture_time_us: int | None = None
    answered: bool = False
    says: str = ""
    prediction: str = ""
    probability: float = math.nan
    top: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    rtt_ms: float = math.nan
    bytes: int = 0
    epsilon: float = math.nan
    lag_ms: dict[str, float] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    rank: dict[str, int] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    judged: set[str] = field(default_factory=set)
    window: int = -1
    on_time: bool = False
    iterations: int = 0
    model_evaluations: int = 0
    window_seconds: float = math.nan

    @property
    def psnr(self) -> dict[str, float]:
        """Per tier, dB."""
        return self.measured.setdefault("psnr", {})

    @property
    def stepped(self) -> bool:
        """Whether its window's solver had time for anything but to start."""
        return bool(self.iterations or self.model_evaluations)

    def best_tier(self) -> str | None:
        """The best tier that has an image for this frame."""
        return next((tier for tier in reversed(TIERS) if tier in self.lag_ms), None)


class Join:
    """The state of a run, read from its folder; call :meth:`poll` as often as wanted.

    Args:
        folder: the run's, with ``edge.jsonl``, ``live.jsonl``, ``truth/``, ``preview/``, ``window/``.
        truth: where the originals are, if not there.
        edge: file of the edge's answers, if not there.
    """

    def __init__(self, folder: Path, *, truth: Path | None = None, edge: Path | None = None) -> None:
        self.folder = folder
        self.truth, self.edge = truth or folder / "truth", edge or folder / "edge.jsonl"
        self.frames: dict[int, FrameRow] = {}
        self.windows: dict[int, dict[str, Any]] = {}
        self.skipped_windows = 0
        self._edge, self._live = Lines(self.edge), Lines(folder / "live.jsonl")
        self._psnr_pending: set[tuple[int, str]] = set()

    def again(self) -> Join:
        """The same folders, read from the beginning; polled once."""
        fresh = Join(self.folder, truth=self.truth, edge=self.edge)
        fresh.poll()
        return fresh

    def image(self, kind: str, sequence: int) -> np.ndarray | None:
        """``truth``, ``preview`` or ``window`` image of a frame, ``(h, w, 3)`` uint8 RGB."""
        return read_png((self.truth if kind == "truth" else self.folder / kind) / f"{sequence:06d}.png")

    def row(self, sequence: int) -> FrameRow:
        """The row of a frame, made on first mention."""
        return self.frames.setdefault(sequence, FrameRow(sequence))

    def poll(self) -> bool:
        """Read what is new.

        Returns:
            Whether anything was.
        """
        news = False
        for event in self._edge.new():
            news |= self._answered(event)
        for event in self._live.new():
            news |= self._reconstructed(event)
        for sequence, tier in list(self._psnr_pending):
            truth, image = self.image("truth", sequence), self.image(tier, sequence)
            if truth is not None and image is not None:
                if image.shape != truth.shape:  # a prior makes images of its own size
                    image = cv2.resize(image, truth.shape[1::-1], interpolation=cv2.INTER_LINEAR)
                self.frames[sequence].psnr[tier] = quick_psnr(truth, image)
                self._psnr_pending.discard((sequence, tier))
        return news

    def _answered(self, event: dict[str, Any]) -> bool:
        if "sequence" not in event or event.get("event", "answer") != "answer":
            return False
        row = self.row(int(event["sequence"]))
        row.answered = True
        row.capture_time_us = event.get("capture_time_us")
        row.rtt_ms = float(event.get("rtt_ms", math.nan))
        row.bytes = int(event.get("bytes", 0))
        row.epsilon = float(event.get("epsilon", math.nan))
        row.answer = event.get("answer") or {}
        row.top = row.answer.get("top", [])
        row.says = str(event.get("says", ""))
        if best := event.get("best"):
            row.prediction, row.probability = str(best["name"]), float(best["probability"])
        return True

    def _reconstructed(self, event: dict[str, Any]) -> bool:
        kind = event.get("event")
        if kind == "preview":
            self._tier(int(event["sequence"]), "preview", float(event["lag_ms"]))
        elif kind == "window":
            number = int(event["window"])
            self.windows[number] = event
            for sequence in event["sequences"]:
                row = self._tier(int(sequence), "window", float(event["lag_ms"]))
                row.window, row.on_time = number, bool(event.get("on_time", False))
                row.iterations = int(event.get("iterations", 0))
                row.model_evaluations = int(event.get("model_evaluations", 0))
                row.window_seconds = float(event.get("seconds", event["lag_ms"] / 1e3))
        elif kind in ("preview_skipped", "window_skipped"):
            for sequence in event.get("sequences", []):
                self.row(int(sequence)).skipped.add(kind.removesuffix("_skipped"))
            self.skipped_windows += kind == "window_skipped"
        else:
            return False
        return True

    def _tier(self, sequence: int, tier: str, lag_ms: float) -> FrameRow:
        row = self.row(sequence)
        row.lag_ms[tier] = lag_ms
        self._psnr_pending.add((sequence, tier))
        return row

    def agreement(self, other: Join) -> list[bool]:
        """For each frame that both runs have an answer of which names a class: is it the same?"""
        pairs = [(row, other.frames[n]) for n, row in sorted(self.frames.items()) if n in other.frames]
        return [a.prediction == b.prediction for a, b in pairs if a.prediction and b.prediction]

    def skipped(self) -> dict[str, int]:
        """Frames that a tier had no time for, by tier; those tiers that have any."""
        counted = {tier: sum(tier in row.skipped for row in self.frames.values()) for tier in TIERS}
        return {tier: n for tier, n in counted.items() if n}

    def rows(self) -> list[FrameRow]:
        """All frames, in order."""
        return [self.frames[key] for key in sorted(self.frames)]

    def captured(self) -> int:
        """Frames the edge took from the source, answered or not."""
        return sum(1 for path in self.truth.glob("*.png")) if self.truth.is_dir() else 0
