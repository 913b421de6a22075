"""Ctrl-C at any time, and a quick end.

Until a command has something to put in order, Ctrl-C ends the process at once: an exception that is raised while a
library is being imported may be swallowed there, turned into another one, or printed. While a command works
(:func:`interruptible`) Ctrl-C is the ``KeyboardInterrupt`` that its clean-up waits for.

Nothing here can catch what comes before the first line of this package: while the interpreter itself starts (some tens
of milliseconds) Ctrl-C still ends it, but with the interpreter's own traceback; or it is lost, where it comes within a
callback of which the interpreter prints and drops whatever is raised, and has to be pressed again.

At the end the process leaves without dismantling the interpreter. With PyTorch loaded that takes a second of CPU time,
and the second of an edge that is done would be the one in which an adversary refines its last window.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["INTERRUPTED", "ends_with", "interruptible", "leave_at_once", "leave_quickly"]

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells have it."""

_status = 1


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process, without a word; not where it was started with Ctrl-C ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block Ctrl-C raises ``KeyboardInterrupt``; does nothing without :func:`leave_at_once` before it."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)


def leave_quickly() -> None:
    """End the process, when its time has come, without dismantling the interpreter.

    To be called first of all: functions registered with :mod:`atexit` run in reverse order, so that all others run
    before. :func:`ends_with` sets the exit status.
    """
    atexit.register(_end)


def ends_with(status: int) -> None:
    """The exit status of a process that leaves quickly; 1 where nobody says, as after an uncaught exception."""
    global _status
    _status = status


def _end() -> None:
    status = _status
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # nobody reads it any more, or it was closed
            status = status or 120  # as the interpreter itself would
    os._exit(status)
