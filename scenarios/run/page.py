"""``index.html`` of a scenario: tables, plots and grids on one page, readable offline."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from scenarios.run import plots
from scenarios.run.figures import measured
from scenarios.run.spec import Scenario
from scenarios.style import STYLE
from splitsight.metrics import Metric, metrics_named
from splitsight.summary import CellSummary, Interval, ScenarioSummary, Summary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["render"]

_INLINE_LIMIT = 24 * 2**20


@dataclass(frozen=True)
class _Cell:
    text: str
    range: str = ""
    win: bool = False


@dataclass
class _Row:
    cells: list[_Cell]
    kind: str = ""


@dataclass
class _Table:
    title: str
    head: list[str]
    rows: list[_Row] = field(default_factory=list)
    note: str = ""


@dataclass
class _Plot:
    title: str
    html: str
    note: str = ""


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _measured(interval: Interval | None, metric: Metric, *, sign: bool = False) -> _Cell:
    if interval is None or interval.mean is None:
        return _Cell("–")
    shown, span = metric.texts(interval.mean, interval.low, interval.high, sign=sign)
    excluded = interval.low is not None and interval.high is not None and (interval.low > 0 or interval.high < 0)
    return _Cell(shown, span, sign and span != "" and excluded)


def _tables(scenario: Scenario, run: ScenarioSummary) -> list[_Table]:
    shown = measured(run.cells)
    scores = list(dict.fromkeys(name for cell in run.cells for name in cell.scores))
    head = ["method", "images", *(m.heading for m in shown), *(s.replace("_", " ") for s in scores)]
    head += ["s an image", "steps", "evaluations"]
    tables = []
    for split in dict.fromkeys(cell.split for cell in run.cells):
        table = _Table(f"{scenario.targets(split)} at {split}", head)
        cells = [cell for cell in run.cells if cell.split == split]
        for cell in cells:
            table.rows.append(
                _Row(
                    [
                        _Cell(cell.label),
                        _Cell(str(cell.n) if cell.n >= cell.planned else f"{cell.n} of {cell.planned}"),
                        *(_measured(cell.interval(m.name), m) for m in shown),
                        *(_Cell(_number(cell.scores.get(s), 3 if s.startswith("kernel") else 2)) for s in scores),
                        # networks answer in milliseconds
                        _Cell(_number(cell.seconds_per_image, 3 if (cell.seconds_per_image or 1) < 0.1 else 2)),
                        _Cell(_number(cell.iterations, 0)),
                        _Cell(_number(cell.model_evaluations, 0)),
                    ]
                )
            )
        table.rows += _originals(run, shown, scores)
        table.rows += _paper(scenario, split, shown, len(scores) + 3)
        table.note = _note(scenario, cells, table)
        tables.append(table)
    return tables


def _originals(run: ScenarioSummary, shown: Sequence[Metric], scores: Sequence[str]) -> list[_Row]:
    """What the evaluator says of the originals themselves: about the most there is to reach."""
    if not run.originals:
        return []
    cells = [_Cell("the originals themselves"), _Cell("")]
    cells += [_known(run.originals, m) for m in shown]
    cells += [_Cell(_number(run.originals.get(s), 2)) for s in scores]
    return [_Row([*cells, _Cell(""), _Cell(""), _Cell("")], "base")]


def _known(figures: Mapping[str, float], metric: Metric, *, sign: bool = False) -> _Cell:
    """A figure without an interval; an empty cell where there is none."""
    return _Cell(metric.text(figures[metric.name], sign=sign) if metric.name in figures else "")


def _paper(scenario: Scenario, split: str, shown: Sequence[Metric], empty: int) -> list[_Row]:
    rows = []
    for entry in scenario.paper:
        if entry.split == split:
            cells = [_Cell(f"the paper: {entry.label}"), _Cell("")]
            cells += [_known(entry.figures, m) for m in shown]
            rows.append(_Row([*cells, *[_Cell("")] * empty], "paper"))
    return rows


_CLIPS = "Frames of a clip count as one observation, their mean; with a single clip, those of a window."


def _note(scenario: Scenario, cells: Sequence[CellSummary], table: _Table) -> str:
    parts = ["Means over images with 95 % intervals (Student’s; Wilson’s for parts)."]
    if scenario.data.kind == "clips":
        parts = ["Means with 95 % intervals.", _CLIPS]
        if any(cell.recognised for cell in cells):
            parts.append("Recognised: the evaluator calls it what it calls the original, whose class nobody knows.")
    matches = [cell.match for cell in cells if cell.match is not None]
    if matches:
        gallery = matches[0].gallery
        parts.append(
            f"Found first, in five: the original’s place among {gallery} images in the evaluator’s features; "
            f"a guess finds {100 / gallery:.1f} % first."
        )
    if any(cell.scores for cell in cells):
        parts.append("Inception scores and distances of sets depend on the number of images: compare equal ones.")
    if any(row.kind == "paper" for row in table.rows):
        parts.append("Shaded rows are the paper’s own figures, for its models and images.")
    return " ".join(parts)


def _comparisons(run: ScenarioSummary) -> _Table | None:
    if not run.comparisons:
        return None
    names = dict.fromkeys(name for c in run.comparisons for name in c.differences)
    shown = [m for m in metrics_named(names) if m.name in names]
    table = _Table("Differences on the same images", ["", "where", "pairs", *(m.heading for m in shown)])
    for c in run.comparisons:
        place = (
            c.split
            + (f", {c.defense}" if c.defense not in ("", UNDEFENDED) else "")
            + (f", {c.clip}" if c.clip else "")
        )
        gains = [_measured(c.differences.get(m.name), m, sign=True) for m in shown]
        table.rows.append(_Row([_Cell(c.name), _Cell(place), _Cell(str(c.n)), *gains]))
        if c.paper:
            figures = [_known(c.paper, m, sign=True) for m in shown]
            note = c.paper.get("note", "")
            table.rows.append(_Row([_Cell("the paper reports"), _Cell(note), _Cell(""), *figures], "paper"))
    table.note = (
        "Paired: the mean of the differences image by image with its 95 % interval; bold where that excludes zero. "
        "Parts are in percentage points."
        + (
            " Shaded: the paper’s own figures, for its models and data."
            if any(c.paper for c in run.comparisons)
            else ""
        )
    )
    return table


def _plots(run: ScenarioSummary, rows: Sequence[Mapping[str, Any]]) -> list[_Plot]:
    found = []
    loss = plots.curves(run.cells, rows)
    if loss:
        note = "Mean over images of the loss that each method lowers; methods differ in it."
        if any(cell.method.startswith("net-") for cell in run.cells):
            note += " Of a network: the loss of its training, of the last part where it has several."
        found.append(_Plot("Loss", loss, note))
    found += [_Plot(f"Over {key}", html) for key, html in plots.sweeps(run.cells)]
    if html := plots.plane(run.cells):
        note = "To the right: closer to the original on average. Upwards: more recognisable, or more like real images."
        found.append(_Plot("Distortion against perception", html, note))
    if html := plots.time(run.cells):
        found.append(_Plot("Quality against time", html))
    return found


def _source(path: Path, root: Path) -> str:
    """A data URI where the file is of a size that a page can carry, else its place beside the page."""
    if path.stat().st_size > _INLINE_LIMIT:
        return str(path.relative_to(root))
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(
    out: Path,
    scenario: Scenario,
    summary: Summary,
    rows: Sequence[Mapping[str, Any]],
    grids: Mapping[str, Path],
    config: Mapping[str, Any],
    names: Mapping[str, str],
) -> str:
    """The page of a run.

    Args:
        out: the run's folder.
        scenario: what was computed.
        summary: its figures, with the section ``scenario``.
        rows: of the run.
        grids: title → picture.
        config: as in ``config.yaml``.
        names: how a reader knows a cell, by identifier.

    Returns:
        HTML without any reference to another host.
    """
    from plotly.offline import get_plotlyjs

    run = summary.scenario
    assert run is not None
    planned = sum(cell.planned for cell in run.cells)
    tables = _tables(scenario, run)
    if (differences := _comparisons(run)) is not None:
        tables.append(differences)
    tiles = [
        (str(len({row["image"] for row in rows})), "images"),
        (str(len(run.cells)), "cells: methods, settings and splits"),
        (str(len(rows)), "rows, each in rows.parquet"),
        (f"{sum(row['seconds'] for row in rows) / 60:.1f} min", "of attacking"),
    ]
    environment = Environment(
        loader=PackageLoader("scenarios.run", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        style=STYLE,
        plotly=get_plotlyjs(),
        run=run,
        about=scenario.about,
        source=scenario.source,
        done=len(rows),
        planned=planned,
        tiles=tiles,
        tables=tables,
        names=names,
        plots=_plots(run, rows),
        grids=[{"title": title, "source": _source(path, out)} for title, path in grids.items()],
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        environment=json.dumps(summary.to_dict()["environment"], indent=2),
    )
