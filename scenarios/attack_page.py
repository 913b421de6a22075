"""``index.html`` of ``splitsight attack``: the grid and the figures on one page, readable offline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scenarios.page import STYLE, inlined, matching, methods_table
from splitsight.files import write_text
from splitsight.metrics import Metric, metrics_named
from splitsight.summary import Summary

__all__ = ["write_page"]


def _images(rows: Sequence[Mapping[str, Any]], shown: Sequence[Metric]) -> str:
    ranked = any(row.get("rank") is not None for row in rows)
    titles = ["image", *(metric.heading for metric in shown), "loss", "s", *(["place of the original"] * ranked)]
    lines = []
    for row in rows:
        file = f"reconstructions/{row['name']}.png"
        cells = [f'<a href="{escape(file)}">{escape(row["name"])}</a>']
        cells += [escape(metric.text(metric.value(row.get(metric.column)))) for metric in shown]
        cells += [f"{row['loss']:.4g}", f"{row['seconds']:.2f}", *([str(row["rank"])] if ranked else [])]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def write_page(out: Path, summary: Summary, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Write the page.

    Args:
        out: the folder of the run, with its ``grid.png``.
        summary: of the run.
        rows: of its ``rows.parquet``.
        config: resolved options.
    """
    plain = summary.to_dict()
    columns = [column for column in rows[0] if any(row.get(column) is not None for row in rows)]
    shown = [m for m in metrics_named(columns) if m.column in columns and (m.hit is None or m.plotted)]
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitsight attack: {escape(summary.target)} at {escape(summary.split)}</title>
<style>{STYLE}main{{max-width:1280px}}</style></head><body><main>
<h1>What the features show</h1>
<p class="lead">{escape(summary.target)} was cut at {escape(summary.split)}; its first part’s output, behind the defence
{escape(str(config["defense"]))}, is all that {escape(str(config["method"]))} was given of {len(rows)} images.</p>
<figure><img alt="Originals, where known, above reconstructions" src="{inlined(out / "grid.png")}"></figure>
<h2>Figures</h2>
<div class="card scroll">{methods_table(plain)}</div>
<p class="lead">Means over images with 95 % intervals.{matching(plain)}</p>
<div class="card"><details><summary>All {len(rows)} images</summary>{_images(rows, shown)}</details></div>
<h2>Run and environment</h2><div class="card">
<details><summary>Options</summary><pre>{escape(json.dumps(dict(config), indent=2, default=str))}</pre></details>
<details><summary>Environment</summary><pre>{escape(json.dumps(plain["environment"], indent=2, default=str))}</pre>
</details></div></main></body></html>
"""
    write_text(out / "index.html", text)
