"""How far a run is, and how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from scenarios.run.plan import Unit
from scenarios.run.store import Store

__all__ = ["Estimate", "Reporter", "duration"]

_LINE_S = 30.0


def duration(seconds: float) -> str:
    """For people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Estimate:
    """What is left, from what units of the same cell took; a cell that has not begun counts as the mean of the others.

    Args:
        units: all of the run.
        workers: how many share the rest.
    """

    def __init__(self, units: Sequence[Unit], workers: int = 1) -> None:
        self._units = {unit.name: unit for unit in units}
        self._workers = workers
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._left = dict(self._units)

    @property
    def done(self) -> int:
        """Units that are."""
        return len(self._units) - len(self._left)

    def add(self, unit: str, seconds: float | None) -> None:
        """A unit is done.

        Args:
            unit: its name.
            seconds: that its attack took; ``None`` where it was left out.
        """
        if self._left.pop(unit, None) is not None and seconds is not None:
            owner = self._units[unit]
            self._seconds[owner.cell].append(seconds / len(owner.indices))

    def pending(self) -> Iterable[str]:
        """Names of the units that are not done."""
        return list(self._left)

    @property
    def seconds_left(self) -> float | None:
        """``None`` until the first unit is done."""
        known = {cell: sum(s) / len(s) for cell, s in self._seconds.items()}
        if not known:
            return None
        typical = sum(known.values()) / len(known)
        rest = sum(known.get(unit.cell, typical) * len(unit.indices) for unit in self._left.values())
        return rest / self._workers


class Reporter:
    """A bar on a terminal, elsewhere a line now and then; both on standard error.

    Args:
        title: of the run.
        units: all of it.
        store: with the parts that are done.
        workers: how many share the work.
    """

    def __init__(self, title: str, units: Sequence[Unit], store: Store, workers: int = 1) -> None:
        self.title, self._store = title, store
        self._estimate = Estimate(units, workers)
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, TextColumn("{task.fields[rest]}"), console=console, disable=not self._terminal)
        self._task = self._bar.add_task(title, total=len(units), rest="")
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def refresh(self) -> int:
        """Look at what is done by now, by whomever; returns how many units are left."""
        skipped = self._store.skipped()
        for unit in self._estimate.pending():
            if self._store.done(unit):
                with self._store.part(unit).open("rb") as file:  # pyarrow takes names in UTF-8 only
                    table = pq.read_table(file, columns=["seconds"])
                self._estimate.add(unit, float(sum(table.column("seconds").to_pylist())))
            elif unit.split("-")[0] in skipped:
                self._estimate.add(unit, None)
        self._show()
        return len(list(self._estimate.pending()))

    def step(self, unit: Unit, done: int, planned: int) -> None:
        """Where the unit in hand is."""
        if self._terminal:
            self._bar.update(self._task, description=f"{self.title}: {unit.name}, step {done}/{planned}")

    def _show(self) -> None:
        left = self._estimate.seconds_left
        rest = f"about {duration(left)} left" if left else ""
        self._bar.update(self._task, completed=self._estimate.done, rest=rest)
        if not self._terminal and time.monotonic() - self._said > _LINE_S:
            self._said = time.monotonic()
            total = self._estimate.done + len(list(self._estimate.pending()))
            words = f"{self.title}: {self._estimate.done} of {total} units done"
            print(f"{words}, {rest}" if rest else words, file=sys.stderr, flush=True)
