"""Which frame the page shows: the newest at once, and the refined ones a little later, in the order they were filmed.

A window comes as K refined frames together, some seconds after they were filmed. They are shown one after another at
the rate of the stream, so that what is refined plays as a stream of its own, behind the other; pictures say how far.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from scenarios.join import FrameRow, Join
from scenarios.web.judge import Judge
from scenarios.web.pictures import jpeg
from scenarios.web.state import Board, Picture
from scenarios.web.watch import Watch

__all__ = ["PANELS", "VIEWS", "Screen"]

VIEWS = {"newest": "preview", "refined": "window"}
"""What may be watched, and the tier that it shows."""
PANELS = ("original", "features", "reconstruction")


class Screen:
    """Puts frames of one stream on the board.

    Args:
        board: of the page.
        join: of the run's folder, polled by the caller.
        watch: of the tap.
        judge: what is said of reconstructions.
        attack: what refines windows now.
        period: seconds from frame to frame.
        now: seconds on a clock that never goes back.

    Attributes:
        period: may change.
    """

    def __init__(
        self,
        board: Board,
        join: Join,
        watch: Watch,
        judge: Judge,
        attack: Callable[[], str],
        period: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board, self._join, self._watch, self._judge = board, join, watch, judge
        self._attack, self.period, self._now = attack, period, now
        self._shown: dict[str, int] = dict.fromkeys(VIEWS, -1)
        self._windows = 0
        self._queue: deque[int] = deque()
        self._next_at = 0.0
        self._compared = -1
        self._submitted: set[tuple[str, int]] = set()

    def update(self) -> None:
        """Show what is new."""
        rows = self._join.frames
        for window in [w for n, w in self._join.windows.items() if n >= self._windows]:
            self._queue.extend(window["sequences"])
            for sequence in window["sequences"]:
                self._submit("window", sequence)
            self._windows = window["window"] + 1
        newest = next((n for n in reversed(rows) if "preview" in rows[n].lag_ms), None)
        if newest is None:
            newest = next((n for n in reversed(rows) if rows[n].answered), None)
        if newest is not None:
            self._show("newest", rows[newest])
        self._compare()
        if self._queue and self._now() >= self._next_at:
            # what piled up while nothing could be shown is passed over, but for the last window
            while len(self._queue) > 8:
                self._queue.popleft()
            self._next_at = self._now() + self.period
            self._shown["refined"] = self._queue.popleft()
        if (refined := rows.get(self._shown["refined"])) is not None:
            self._show("refined", refined)

    def _compare(self) -> None:
        """Ask whether the cloud's newest answer is the right one."""
        last = max((n for n in list(self._join.frames)[-8:] if self._join.frames[n].answered), default=-1)
        if last <= self._compared or not (said := self._join.frames[last].prediction):
            return
        if (truth := self._join.image("truth", last)) is not None:
            self._compared = last
            self._judge.compare(said, truth)

    def _show(self, view: str, row: FrameRow) -> None:
        tier, sequence = VIEWS[view], row.sequence
        truth = self._join.image("truth", sequence)
        image = self._join.image(tier, sequence) if tier in row.lag_ms else None
        if truth is None and image is None:
            return
        self._shown[view] = sequence
        if tier in row.lag_ms:
            self._submit(tier, sequence)
        features = self._watch.picture(sequence)
        sent = f"{row.bytes / 1024:.1f} KiB" if row.bytes else ""
        pictures = {
            "original": None
            if truth is None
            else Picture(jpeg(truth), f"Original, frame {sequence}", f"Cloud says: {row.says}" if row.says else ""),
            "features": None if features is None else Picture(features, f"What left the device, {sent or 'features'}"),
            "reconstruction": None if image is None else Picture(jpeg(image), *self._words(tier, row, image)),
        }
        self._board.show(**{f"{view}-{name}": picture for name, picture in pictures.items()})

    def _submit(self, tier: str, sequence: int) -> None:
        """Have a reconstruction judged, once."""
        if (tier, sequence) in self._submitted:
            return
        truth, image = self._join.image("truth", sequence), self._join.image(tier, sequence)
        if image is not None and truth is not None:
            self._submitted = {k for k in self._submitted if k[1] > sequence - 200} | {(tier, sequence)}
            self._judge.submit(tier, sequence, image, truth)

    def _words(self, tier: str, row: FrameRow, image: np.ndarray) -> tuple[str, str]:
        lag = row.lag_ms[tier] / 1e3
        after = f"{1e3 * lag:.0f} ms" if lag < 1 else f"{lag:.1f} s"
        what = "at once (preview)" if tier == "preview" else f"refined ({self._attack()})"
        said = self._judge.verdict(tier, row.sequence)
        # frames may pass faster than they are judged
        last = self._judge.latest(tier) if said is None else None
        verdict = said.sentence if said is not None else f"Frame {last[0]}: {last[1].sentence}" if last else ""
        decibels = f"PSNR {row.psnr[tier]:.1f} dB" if tier in row.psnr else ""
        return f"Reconstruction {what}, after {after}", " ".join(filter(None, [verdict, decibels]))
