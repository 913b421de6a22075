"""``index.html`` of ``splitsight attack``: pictures and figures on one page, readable offline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scenarios.explained import diagram, glossary, who_knew
from scenarios.headline import headline
from scenarios.page import framed, matching, methods_table
from scenarios.style import DARK, NARROW, STYLE
from splitsight.files import write_text
from splitsight.metrics import Metric, metrics_named
from splitsight.pictures import Panel
from splitsight.summary import Summary
from splitsight.wire.sessions import UNDEFENDED

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
    head = "".join(f"<th scope='col'>{escape(title)}</th>" for title in titles)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All images"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _plain(data: Mapping[str, Any]) -> str:
    return escape(json.dumps(dict(data), indent=2, default=str))


def _shown(columns: Sequence[Sequence[Panel]]) -> str:
    """Each original beside its reconstruction."""
    rows = []
    for panels in columns:
        figures = [
            f"<figure><img alt='{escape(p['title'])}' src='{p['image']}'><figcaption><b>{escape(p['title'])}</b>"
            f"<span>{escape(p['detail'] or '')}</span></figcaption></figure>"
            for p in framed(panels)
        ]
        rows.append(f"<div class='pair'>{''.join(figures)}</div>")
    return f"<div class='pairs'>{''.join(rows)}</div>"


def _next(out: Path, summary: Summary, config: Mapping[str, Any], points: Sequence[str]) -> str:
    """What to type to change one thing; nothing where the command is not known."""
    if not (command := config.get("command")):
        return ""
    found: list[tuple[str, Sequence[str], str]] = []
    here = list(points).index(summary.split) if summary.split in points else len(points)
    if not config.get("recording") and here + 1 < len(points):
        deeper = points[here + 1]
        found.append((deeper, ["--split", deeper], "a deeper cut: how much is left to see?"))
    if not config.get("recording") and config["defense"] == UNDEFENDED:
        found.append(("noise", ["--defense", "gaussian:ratio=0.5"], "noise on the features: what does it hide?"))
    if not config.get("evaluators"):
        found.append(("asked", ["--evaluator", "mbconv"], "is it recognised? A classifier looks at the result"))
    lines = []
    for name, more, why in found:
        changed = f"{command} {shlex.join([*more, '--out', f'{out}-{name}'])}"
        lines.append(f"<li>{escape(why)}<pre tabindex='0'>{escape(changed)}</pre></li>")
    return f"<h2>What to try next</h2><ul class='next'>{''.join(lines)}</ul>" if lines else ""


def write_page(
    out: Path,
    summary: Summary,
    rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    columns: Sequence[Sequence[Panel]],
    points: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        out: the folder of the run.
        summary: of the run.
        rows: of its ``rows.parquet``.
        config: resolved options.
        columns: originals, where known, and reconstructions that are shown.
        points: split points of the target, where it is known.
    """
    plain = summary.to_dict()
    names = [column for column in rows[0] if any(row.get(column) is not None for row in rows)]
    shown = [m for m in metrics_named(names) if m.column in names and (m.hit is None or m.plotted)]
    head = headline(plain)
    asked = head is not None and (head.found is not None or head.recognised is not None)
    said = f'<p class="says"><b>{escape(head.says)}</b></p>' if head is not None and asked else ""
    defense = str(config["defense"])
    defended = "without a defence" if defense == UNDEFENDED else f"behind the defence {escape(defense)}"
    setup = " · ".join([f"{summary.target} at {summary.split}", config["threat"], config["method"]])
    command = (
        f"<p class='lead'>This run:</p><pre tabindex='0'>{escape(config['command'])}</pre>"
        if config.get("command")
        else ""
    )
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitsight attack: {escape(summary.target)} at {escape(summary.split)}</title>
<style>{STYLE}{DARK}{NARROW}.pairs{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:16px}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:8px}}.pair:has(figure:only-child){{grid-template-columns:1fr}}
.pair figure{{background:none;border-radius:0}}.pair img{{border-radius:8px;aspect-ratio:1}}</style></head><body><main>
<h1>What the features show</h1>
<p class="lead">{escape(summary.target)} was cut at {escape(summary.split)}; its first part’s output, {defended},
is all that {escape(str(config["method"]))} was given of {len(rows)} images.</p>
{said}<p class="at"><b>{escape(setup)}</b></p>
{_shown(columns)}
<h2>What happened here</h2>
{diagram(summary.target, summary.split, str(config["defense"]))}
<p class="lead">{who_knew(config["threat"])}</p>
<h2>Figures</h2>
<div class="card">{methods_table(plain)}</div>
<p class="lead">Means over images with 95 % intervals.{matching(plain)} PSNR and SSIM compare pixels and reward a blur:
they compare attacks on the same images at the same split, and neither images nor splits.</p>
<div class="card"><details><summary>All {len(rows)} images</summary>{_images(rows, shown)}</details></div>
{_next(out, summary, config, points)}{command}
<p class="lead">Beside this page: <a href="grid.png">grid.png</a> (the pictures as one),
<a href="summary.json">summary.json</a>, <a href="rows.parquet">rows.parquet</a> (one row an image).</p>
<h2 id="words">Words</h2>{glossary()}
<h2>Run and environment</h2><div class="card">
<details><summary>Options</summary><pre tabindex="0">{_plain(config)}</pre></details>
<details><summary>Environment</summary><pre tabindex="0">{_plain(plain["environment"])}</pre>
</details></div></main></body></html>
"""
    write_text(out / "index.html", text)
