"""What a process of its own prints: events as JSON for a program, words for a person at a terminal."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
from typing import Any, TextIO

__all__ = ["LiveLine", "announce"]


def announce(event: dict[str, Any], words: str) -> None:
    """Print a line on standard output: ``words`` where that is a terminal, else the event as JSON."""
    with contextlib.suppress(OSError):  # whoever started us need not listen
        print(words if sys.stdout.isatty() else json.dumps(event), flush=True)


class LiveLine:
    """One line of a terminal, written again and again in its place; nothing at all where the stream is none.

    Args:
        stream: standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._on = self._stream.isatty()
        self._lock = threading.Lock()
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line; what is wider than the terminal is cut off."""
        if not self._on:
            return
        with self._lock, contextlib.suppress(OSError):
            self._stream.write(f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            self._stream.flush()
            self._shown = True

    def close(self) -> None:
        """Leave the last text where it is and go to the next line; may be called twice."""
        with self._lock, contextlib.suppress(OSError):
            if self._shown:
                self._stream.write("\n")
                self._stream.flush()
            self._shown = False
