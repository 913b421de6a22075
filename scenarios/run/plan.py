"""From cells to units of work."""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.run.inputs import Inputs
from scenarios.run.spec import Scenario

__all__ = ["Unit", "cell_id", "plan"]


@dataclass(frozen=True)
class Unit:
    """What is computed and filed at once.

    Attributes:
        name: identifies it within the run.
        cell: position of its cell in the scenario.
        indices: images.
        window: its number; ``None`` for still images.
    """

    name: str
    cell: int
    indices: tuple[int, ...]
    window: int | None = None


def cell_id(cell: int) -> str:
    """A cell's identifier within a run."""
    return f"c{cell:03d}"


def plan(scenario: Scenario, inputs: Inputs) -> list[Unit]:
    """All units, first ones of all cells first, so that a run that is cut short has something of each."""
    units = []
    for i, cell in enumerate(scenario.cells):
        if inputs.windows:
            groups = [(n, tuple(window)) for n, window in enumerate(inputs.windows)][: cell.count]
        else:
            images = range(len(inputs.images))[: cell.count]
            batch = cell.batch or scenario.batch
            groups = [(None, tuple(images[k : k + batch])) for k in range(0, len(images), batch)]
        for k, (window, indices) in enumerate(groups):
            units.append((k, Unit(f"{cell_id(i)}-{k:04d}", i, indices, window)))
    return [unit for _, unit in sorted(units, key=lambda item: (item[0], item[1].cell))]
