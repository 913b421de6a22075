"""What commands print: progress on a terminal, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

__all__ = ["progress", "table"]


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
        shown.add_column(column)
    for row in rows:
        shown.add_row(*map(Text, row))  # as it is: brackets are no markup
    Console().print(shown)
