"""What the live adversary did, one event a line in ``live.jsonl``, and in one line for a person."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TextIO

from splitsight.terminal import LiveLine

__all__ = ["Log"]


class Log:
    """Events in a file, and how many of each.

    Attributes:
        counts: events so far, by name.
        left_out: frames that there was no time for, by tier.

    Args:
        path: of the file, which is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w")
        self._lock = threading.Lock()
        self._line = LiveLine()
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def write(self, event: str, **values: object) -> None:
        """Add an event, which is on the disk's way at once."""
        with self._lock:
            self.counts[event] += 1
            self._line.show(self._words())
            self._file.write(json.dumps({"event": event, "time_us": time.time_ns() // 1000, **values}) + "\n")
            self._file.flush()

    def leave_out(self, tier: str, sequences: list[int], **values: object) -> None:
        """Say that there was no time for some frames."""
        self.left_out[tier] += len(sequences)
        self.write(f"{tier}_skipped", sequences=sequences, **values)

    @property
    def slow(self) -> str:
        """What was left out, to be added to a sentence."""
        return "".join(f", {n} frames without a {tier}" for tier, n in self.left_out.items())

    def _words(self) -> str:
        """How far it is, for a person."""
        counts = self.counts
        if not counts["session"]:
            return "no session yet"
        slow = " · too slow here" + self.slow if self.left_out else ""
        away = " · the tap is away" if counts["tap_lost"] > counts["tap_back"] else ""
        return f"{counts['preview']} previews · {counts['window']} windows{slow}{away}"

    def close(self) -> None:
        """End the line and the file."""
        self._line.close()
        self._file.close()
