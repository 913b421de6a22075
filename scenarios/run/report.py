"""What a run leaves beside its parts: ``rows.parquet``, ``summary.json``, grids and ``index.html``.

Everything is made from the run's folder, so that the report of a run that was cut short, or a report with other
comparisons, is made by running it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenarios.run.figures import by_cell, cell_summaries, comparisons, measured, score_sets
from scenarios.run.page import render
from scenarios.run.plan import cell_id
from scenarios.run.spec import Scenario
from scenarios.run.store import Store
from scenarios.run.work import Bench, slug
from splitsight.data import decode_image, encode_png, to_tensor
from splitsight.devices import device_name
from splitsight.errors import UserError
from splitsight.files import write_parquet
from splitsight.metrics import Batch, measure
from splitsight.metrics.perceptual import inception_missing
from splitsight.pictures import Panel, panels, spread
from splitsight.summary import Environment, MethodSummary, ScenarioSummary, Summary, environment, write_summary

__all__ = ["picture", "write_report"]

_COLUMNS = 6
_SIDE = 160


def picture(store: Store, name: str) -> np.ndarray | None:
    """An image of a run, ``(H, W, 3)`` uint8; ``None`` where it is missing or damaged."""
    try:
        return decode_image((store.folder / name).read_bytes(), name)
    except (OSError, UserError):
        return None


def _panel(store: Store, row: Mapping[str, Any] | None) -> Panel:
    if row is None:
        return Panel(None, "")
    title = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
    seen = ["recognised"] if row["recognised"] else []
    if row["match_rank"] is not None:
        seen.append(f"place {row['match_rank']}")
    return Panel(picture(store, row["reconstruction"]), title, " · ".join(seen))


def _grids(store: Store, scenario: Scenario, rows: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """One picture a split: originals above what each cell made of them."""
    found = {}
    cells = list(zip(scenario.cells, by_cell(scenario, rows), strict=True))
    for split in dict.fromkeys(cell.split for cell in scenario.cells):
        here = [(cell, {row["index"]: row for row in own}) for cell, own in cells if cell.split == split and own]
        if not here:
            continue
        shared = sorted(set.intersection(*(set(own) for _, own in here))) or sorted(here[0][1])
        shown = [shared[i] for i in spread(len(shared), _COLUMNS)]
        first = [next(own[index] for _, own in here if index in own) for index in shown]
        title = f"{scenario.targets(split)} split at {split}"
        originals = [Panel(picture(store, row["original"]), row["name"]) for row in first]
        bands = [panels(originals, f"originals, {title}", side=_SIDE)]
        bands += [
            panels([_panel(store, own.get(index)) for index in shown], cell.name, side=_SIDE) for cell, own in here
        ]
        place = store.write(f"grid-{slug(split)}.png", encode_png(np.concatenate(bands)))
        found[title] = place
    return found


def _of_originals(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What depends on an image's class, where that is known, of the originals: about the most there is to reach."""
    known = list(dict.fromkeys(row["index"] for row in rows if row["class_label"] is not None))
    wanted = [metric for metric in bench.metrics if "label" in metric.needs]
    if not known or not wanted:
        return {}
    images = to_tensor(bench.inputs.images[known])
    plain = Batch(reconstruction=images, original=images, label=torch.from_numpy(bench.inputs.labels[known]))
    found = {}
    for metric in wanted:
        evaluator = next((e for e in bench.evaluators if e.name == metric.evaluator), None)
        batch = plain
        if evaluator is not None:
            # without classes in common it can only be asked whether it sees the same, which it does of originals
            if bool(((labels := bench.labels_of(evaluator.name, known)) < 0).all()):
                continue
            batch = replace(plain, evaluator=evaluator, label=labels)
        values = measure([metric], batch).get(metric.column, [])
        mean = metric.interval([metric.value(v) for v in values])["mean"]
        found |= {} if mean is None else {metric.name: mean}
    return found


def write_report(store: Store, bench: Bench, config: Mapping[str, Any]) -> Summary:
    """Write the report of what is done by now.

    Args:
        store: of the run.
        bench: its models and data.
        config: as in ``config.yaml``.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: a part of the run is damaged, or a comparison is not clear.
    """
    scenario = bench.scenario
    table = store.rows([unit.name for unit in bench.units], bench.schema)
    rows = table.to_pylist()
    skipped = store.skipped()
    planned: dict[str, int] = {}
    for unit in bench.units:
        planned[cell_id(unit.cell)] = planned.get(cell_id(unit.cell), 0) + len(unit.indices)
    missing = [metric.missing() for metric in bench.metrics] + [inception_missing()]
    notes = list(dict.fromkeys(note for note in missing if note is not None))
    classifiers: dict[str, Any] = {} if inception_missing() else {"inception_score": None}
    classifiers |= {f"inception_score_{evaluator.name}": evaluator.logits for evaluator in bench.evaluators}
    scores, originals = score_sets(scenario, store, rows, classifiers, bench.evaluators)
    features = f"{bench.evaluators[0].name}-penultimate" if bench.evaluators else ""
    cells = cell_summaries(scenario, rows, scores, planned=planned, features=features)
    run = ScenarioSummary(
        name=config["run"]["name"],
        title=scenario.title,
        quick=config["run"]["quick"],
        complete=len(rows) == sum(n for cell, n in planned.items() if cell not in skipped),
        cells=cells,
        originals=originals | _of_originals(bench, rows),
        comparisons=comparisons(scenario, rows),
        skipped=skipped,
        notes=notes,
    )
    base = {*MethodSummary.model_fields, *(metric.name for metric in measured(cells))}
    splits = list(dict.fromkeys(cell.split for cell in cells))
    name = "{0.label}" if len(splits) == 1 else "{0.label} at {0.split}"
    summary = Summary(
        target=scenario.targets(),
        split=", ".join(splits),
        methods={name.format(cell): MethodSummary(**cell.model_dump(include=base)) for cell in cells},
        scenario=run,
        environment=Environment.model_validate(
            environment(bench.digests, device_name(bench.models.device))
            | {"run": config["run"], "threads": torch.get_num_threads()}
        ),
    )
    write_parquet(store.folder / "rows.parquet", table)
    write_summary(store.folder / "summary.json", summary)
    names = {cell_id(i): f"{cell.name} at {cell.split}" for i, cell in enumerate(scenario.cells)}
    page = render(store.folder, scenario, summary, rows, _grids(store, scenario, rows), config, names)
    store.write("index.html", page.encode())
    return summary
