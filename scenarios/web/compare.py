"""The split-point slider: one frame, and what is made of it wherever the network might be cut."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.join import quick_psnr, read_png
from scenarios.web.pictures import jpeg
from scenarios.web.state import Board, Picture
from scenarios.web.sweep import Sweep
from splitsight.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from scenarios.demo import DemoOptions, DemoRun
    from scenarios.web.judge import Judge

__all__ = ["Comparison"]


class Comparison:
    """Asks for reconstructions at each split point, and puts them on the board as they come.

    Attributes:
        says: how far it is, for people.
    """

    def __init__(self) -> None:
        self.says = ""
        self._sweep = Sweep(self._told)
        self._lock = threading.Lock()
        self._asked: tuple[Any, ...] | None = None
        self._of = 0
        self._frame: tuple[np.ndarray, Judge, Board] | None = None
        self._found: list[str] = []

    def newest(self, part: DemoRun | None, judge: Judge, board: Board) -> None:
        """Have the newest frame of a stream reconstructed at each split point; see :meth:`ask`.

        Raises:
            UserError: there is no frame yet.
        """
        last = None if part is None else max((n for n, r in part.join.frames.items() if r.answered), default=None)
        if part is None or last is None:
            raise UserError("there is no frame yet: wait for the first one")
        file = part.join.truth / f"{last:06d}.png"
        self.ask(file, last, part.options, part.session.defense, judge, board)

    def ask(self, file: Path, sequence: int, o: DemoOptions, defense: str, judge: Judge, board: Board) -> None:
        """Begin; a frame that was asked for last under the same conditions is not computed again.

        Args:
            file: the frame, PNG.
            sequence: its number.
            o: target, weights, threat and prior.
            defense: what is done to the features.
            judge: of what comes out.
            board: where it is shown.
        """
        asked = (file, o.target, o.weights, o.threat, defense, o.prior)
        with self._lock:
            if asked == self._asked or (truth := read_png(file)) is None:
                return
            self._asked, self._frame, self._of = asked, (truth, judge, board), self._of + 1
            old = {f"sweep-at-{split}": None for split in self._found}
            self._found = []
            self.says = f"frame {sequence} is being reconstructed at each split point"
        words = f"Original, frame {sequence}"
        board.show(**{**old, "sweep-original": Picture(jpeg(truth), words)})
        self._sweep.ask(
            of=self._of,
            frame=str(file),
            target=o.target,
            weights=None if o.weights is None else str(o.weights),
            threat=o.threat,
            defense=defense,
            prior=o.prior,
        )

    def _told(self, answer: dict[str, Any]) -> None:
        with self._lock:
            if self._frame is None or answer.get("of", self._of) != self._of:
                return  # another frame was asked for meanwhile
            truth, judge, board = self._frame
            if "problem" in answer:
                self.says, self._asked = answer["problem"], None
                return
            if "done" in answer:
                self.says = "" if answer["done"] else "no split point of this target has a preview network here"
                return
            self._found.append(answer["split"])
        if (image := read_png(Path(answer["file"]))) is None:
            return
        verdict = judge.now(image, truth)
        decibels = f"PSNR {quick_psnr(truth, image):.1f} dB" if image.shape == truth.shape else ""
        detail = " ".join(filter(None, ["" if verdict is None else verdict.sentence, decibels]))
        title = f"Reconstruction of what leaves at {answer['split']} (preview)"
        board.show(**{f"sweep-at-{answer['split']}": Picture(jpeg(image), title, detail)})

    def close(self) -> None:
        """End what computes."""
        self._sweep.close()
