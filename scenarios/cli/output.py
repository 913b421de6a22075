"""What commands print: progress on a terminal, tables, and how text degrades where the encoding lacks a character."""

from __future__ import annotations

import codecs
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scenarios.processes import PREFIX

__all__ = ["prepare_streams", "progress", "table"]


def prepare_streams() -> None:
    """Make standard output and error take any text, and say on the latter what splitsight warns of.

    A character that the stream's encoding lacks becomes ``?``, and a byte of a file name that is not UTF-8 goes out as
    it came in, so that a printed path can be used again.
    """
    codecs.register_error("splitsight", _degraded)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="splitsight")
    logger = logging.getLogger("splitsight")
    if not logger.handlers:
        logger.addHandler(_Said())


class _Said(logging.Handler):
    """One sentence on standard error, as errors are said."""

    def emit(self, record: logging.LogRecord) -> None:
        print(PREFIX + " ".join(record.getMessage().split()), file=sys.stderr, flush=True)


def _degraded(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    kept = (c.encode("utf-8", "surrogateescape") if "\udc80" <= c <= "\udcff" else b"?" for c in lost)
    return b"".join(kept), error.end


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, nothing elsewhere; what it yields takes (done, total, what is going on)."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=f"{title}: {what}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: its head, and rows of as many cells."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for column in head:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))  # as it is: brackets are no markup
    Console().print(shown)
