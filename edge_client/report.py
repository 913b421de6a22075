"""What an edge leaves behind: answers as JSON lines, ground truth as PNGs, and a summary at the end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edge_client.link import Answered
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.files import write_json
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Report"]

_TRUTH = re.compile(r"\d{6,}\.png")


class Report:
    """Written frame by frame, so that it can be read while the edge runs and after it was killed.

    Args:
        lines: file for one JSON object an answered frame, replaced if it exists; ``None`` for none. The
            summary goes beside it, with the suffix ``.summary.json``.
        truth: folder for ``000000.png`` …, the model's inputs by sequence number; ``None`` for none. Such files
            that are there already are removed.

    Raises:
        UserError: a place cannot be written.
    """

    def __init__(self, lines: Path | None, truth: Path | None) -> None:
        self.lines = lines
        self.truth = truth
        self._file, self._whole = None, 0  # bytes of whole lines
        try:
            if truth is not None:
                truth.mkdir(parents=True, exist_ok=True)
                for old in truth.iterdir():  # of an earlier, longer run
                    if _TRUTH.fullmatch(old.name):
                        old.unlink()
            if lines is not None:
                lines.parent.mkdir(parents=True, exist_ok=True)
                self._file = lines.open("wb", buffering=0)
        except OSError as error:
            raise _problem(lines if truth is None or truth.is_dir() else truth, error) from error

    def add_truth(self, sequence: int, image: np.ndarray) -> None:
        """Stores a model input, ``(S, S, 3)`` uint8 RGB, under its sequence number.

        Raises:
            UserError: the disk is full or gone.
        """
        if self.truth is None:
            return
        write_png(self.truth / f"{sequence:06d}.png", image)

    def add_answer(self, done: Answered) -> None:
        """Appends one answered frame.

        Raises:
            UserError: the disk is full or gone.
        """
        if self._file is None:
            return
        line = {
            "sequence": done.answer.sequence,
            "capture_time_us": done.sent.frame.capture_time_us,
            "sent_us": done.sent.sent_us,
            "answered_us": done.answered_us,
            "rtt_ms": round(done.rtt_ms, 3),
            **_said(done.answer),
            "bytes": done.sent.bytes,
            "attempts": done.sent.attempts,
            **done.sent.extra,
            "queue_ms": done.answer.queue_us / 1000,
            "compute_ms": done.answer.compute_us / 1000,
            "batch_size": done.answer.batch_size,
        }
        try:
            data = json.dumps(line).encode() + b"\n"
            if self._file.write(data) != len(data):  # unbuffered: a disk that fills up takes a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._whole += len(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # so that every line that is left can be read
                self._file.truncate(self._whole)
            raise _problem(self.lines, error) from error

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the summary and closes; may be called once.

        Raises:
            UserError: the disk is full or gone.
        """
        self.close()
        if self.lines is None:
            return
        write_json(self.lines.with_suffix(".summary.json"), summary)

    def close(self) -> None:
        """Closes the lines; may be called twice."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise _problem(self.lines, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self._file is not None:
            # What ended the run matters more than a disk that is full a second time.
            with contextlib.suppress(OSError):
                self._file.close()


def _said(answer: pb.Answer) -> dict[str, Any]:
    """What the cloud answered: in words, the one class that stands for it (if any), and all of it."""
    from splitsight.tasks import read_answer  # brings the tasks, and with them PyTorch

    if (reading := read_answer(answer)) is None:
        return {"says": "", "best": None, "answer": {}}
    best = reading.best()
    return {"says": reading.headline(), "best": None if best is None else best.to_dict(), "answer": reading.to_dict()}


def _problem(path: Path | None, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk of {path} is full: free some space; what was written so far is readable", code=1)
    return UserError(f"{path} cannot be written ({error.strerror}): give another place", code=1)
