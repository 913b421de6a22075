"""What an evaluation leaves beside its parts: ``rows.parquet``, ``summary.json``, grids and ``index.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenarios.defend.figures import MEASURE, attack_name, summaries
from scenarios.defend.page import render
from scenarios.run.figures import by_cell
from scenarios.run.report import picture
from scenarios.run.spec import Cell, Scenario
from scenarios.run.store import Store
from scenarios.run.work import Bench, slug
from splitsight.data import encode_png
from splitsight.devices import device_name
from splitsight.files import write_parquet
from splitsight.pictures import Panel, panels, spread
from splitsight.summary import DefenseSummary, Environment, Summary, environment, write_summary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["write_report"]

_COLUMNS = 6
_SIDE = 112

Row = Mapping[str, Any]


def write_report(
    store: Store, bench: Bench, config: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]
) -> list[DefenseSummary]:
    """Write the report of what is done by now.

    Args:
        store: of the run.
        bench: its models and data.
        config: as in ``config.yaml``.
        measures: of each split and defence, out of :func:`scenarios.defend.measure.measure`.

    Returns:
        One a split and defence.

    Raises:
        UserError: a part of the run is damaged.
    """
    scenario = bench.scenario
    table = store.rows([unit.name for unit in bench.units], bench.schema)
    rows = table.to_pylist()
    found = summaries(scenario, rows, measures, store.skipped())
    summary = Summary(
        target=scenario.target,
        split=", ".join(dict.fromkeys(one.split for one in found)),
        defenses=found,
        environment=Environment.model_validate(
            environment(bench.digests, device_name(bench.models.device))
            | {"run": config["run"], "threads": torch.get_num_threads()}
        ),
    )
    write_parquet(store.folder / "rows.parquet", table)
    write_summary(store.folder / "summary.json", summary)
    planned = sum(len(unit.indices) for unit in bench.units if f"c{unit.cell:03d}" not in store.skipped())
    page = render(summary, scenario, _grids(store, scenario, rows, found), config, complete=len(rows) >= planned)
    store.write("index.html", page.encode())
    return found


def _grids(
    store: Store, scenario: Scenario, rows: Sequence[Row], found: Sequence[DefenseSummary]
) -> dict[tuple[str, str], Path]:
    """A picture a split and defence: originals, undefended, the best attacker not told, the best who was."""
    cells = list(zip(scenario.cells, by_cell(scenario, rows), strict=True))
    grids = {}
    for split in dict.fromkeys(one.split for one in found):
        here = [(cell, own) for cell, own in cells if cell.split == split and own]
        if not here:
            continue
        shared = sorted(set.intersection(*({row["index"] for row in own} for _, own in here)))
        plain = [(cell, own) for cell, own in here if cell.defense == UNDEFENDED]
        reference = _best(plain, told=True)
        for one in found:
            if one.split == split and one.defense != UNDEFENDED:
                mine = [(cell, own) for cell, own in here if cell.defense == one.defense]
                bands = [("undefended", reference), *((w, _best(mine, told=t)) for w, t in _SIDES.items())]
                grids[split, one.defense] = _grid(store, one, here[0][1], shared, bands)
    return grids


_SIDES = {"attacker not told": False, "attacker told": True}


def _best(cells: Sequence[tuple[Cell, Sequence[Row]]], *, told: bool) -> tuple[str, Sequence[Row]] | None:
    """The attack of one side with the highest SSIM on the images that all attacks on the defence have in common."""
    shared = set.intersection(*({row["index"] for row in own} for _, own in cells)) if cells else set()
    means = {}
    for cell, own in cells:
        values = [row[MEASURE] for row in own if row["index"] in shared]
        if cell.adaptive == told and values and None not in values:
            means[attack_name(cell)] = sum(values) / len(values), own
    best = max(means, key=lambda name: means[name][0], default=None)
    return None if best is None else (best, means[best][1])


def _grid(
    store: Store,
    one: DefenseSummary,
    originals: Sequence[Row],
    shared: Sequence[int],
    bands: Sequence[tuple[str, tuple[str, Sequence[Row]] | None]],
) -> Path:
    shown = [shared[i] for i in spread(len(shared), _COLUMNS)]
    by_index = {row["index"]: row for row in originals}
    first = [Panel(picture(store, by_index[i]["original"]), by_index[i]["name"]) for i in shown]
    parts = [panels(first, f"originals, {one.split}, {one.defense}", side=_SIDE)]
    for name, band in bands:
        if band is not None:
            own = {row["index"]: row for row in band[1]}
            row = [_panel(store, own.get(i)) for i in shown]
            parts.append(panels(row, f"{name}: {band[0]}", side=_SIDE))
    return store.write(f"grids/{slug(one.split)}-{slug(one.defense)}.png", encode_png(np.concatenate(parts)))


def _panel(store: Store, row: Row | None) -> Panel:
    if row is None:
        return Panel(None, "")
    rank = row["match_rank"]
    detail = "" if rank is None else f"place {rank}"
    return Panel(picture(store, row["reconstruction"]), f"{row['psnr']:.1f} dB · {row['ssim']:.2f}", detail)
