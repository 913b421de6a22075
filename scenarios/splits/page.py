"""``index.html`` of a split evaluation: the answer, what an attacker sees at each point, and the figures behind it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scenarios.splits import plots
from scenarios.splits.figures import HEADLINES, PERCEPTUAL, Figures, Verdict
from scenarios.splits.report import Report
from scenarios.splits.told import ASSUMED, TITLES
from scenarios.splits.words import utility_name
from scenarios.style import STYLE
from splitsight.metrics import METRICS
from splitsight.pictures import spread
from splitsight.summary import Interval, Summary

__all__ = ["render"]

_SHARES = tuple(name for name in HEADLINES if METRICS.get(name).kind == "share")
_STRIP = 11
"""Points in the strip of pictures, beside the original, at most."""


@dataclass(frozen=True)
class _Thumb:
    name: str
    source: str
    says: list[str]
    chosen: bool = False


@dataclass(frozen=True)
class _Cell:
    text: str
    range: str = ""


@dataclass(frozen=True)
class _Row:
    cells: list[_Cell]
    chosen: bool
    thumb: str = ""


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _interval(i: Interval | None, measure: str) -> _Cell:
    if i is None or i.mean is None:
        return _Cell("–")
    return _Cell(*METRICS.get(measure).texts(i.mean, i.low, i.high))


def _plain(i: Interval | None, digits: int = 3, share: bool = False) -> _Cell:
    if i is None or i.mean is None:
        return _Cell("–")
    shown = [f"{100 * v:.1f} %" if share else f"{v:.{digits}g}" for v in (i.mean, i.low, i.high) if v is not None]
    return _Cell(shown[0], f"{shown[1]}, {shown[2]}" if len(shown) == 3 and shown[1] != shown[2] else "")


def _pictures(
    out: Path, rows: Sequence[Mapping[str, Any]], figures: Sequence[Figures], measure: str | None
) -> dict[str, Path]:
    """By split, the first image as the strongest attacker there reconstructed it."""
    places = {(r["split"], r["attack"]): r["reconstruction"] for r in rows if r["part"] == "attack" and r["image"] == 0}
    found = {}
    for f in figures:
        best = None if measure is None else f.strongest(measure)
        if best is not None and (place := places.get((f.point.name, best[0]))):
            found[f.point.name] = out / place
    return found


def _strip(out: Path, report: Report, verdict: Verdict, pictures: Mapping[str, Path]) -> list[_Thumb]:
    """The original, then points along depth: the chosen one always, of the others an even choice."""
    original, measure = out / "originals" / "0000.png", verdict.measure
    if not pictures or measure is None or not original.is_file():
        return []
    chosen = {a.recommendation.split for a in report.answers if a.recommendation}
    known = [f for f in report.figures if f.point.name in pictures]
    # the family's own names and the chosen point first, then others evenly
    kept = {f.point.name for f in known if f.point.name in chosen}
    for f in [f for f in known if f.point.at]:
        if len(kept) < _STRIP:
            kept.add(f.point.name)
    rest = [f for f in known if f.point.name not in kept]
    kept |= {rest[i].point.name for i in spread(len(rest), max(0, _STRIP - len(kept)))} if len(kept) < _STRIP else set()
    thumbs = [_Thumb("original", _data(original), [])]
    for f in known:
        name, best = f.point.name, f.strongest(measure)
        if name in kept and best is not None:
            told = [(METRICS.get(m), f.attacks[best[0]].get(m)) for m in HEADLINES if m in (measure, *_SHARES)]
            says = [f"{m.text(i.mean)} {m.title}" for m, i in told if i is not None]
            thumbs.append(_Thumb(name, _data(pictures[name]), says, name in chosen))
    return thumbs


def _table(report: Report, pictures: Mapping[str, Path]) -> tuple[list[str], list[_Row]]:
    measures = plots.plotted(report.figures)
    attacks = list(dict.fromkeys(a for f in report.figures for a in f.attacks))
    utility = report.figures[0].utility_name
    seen = {m for f in report.figures for known in f.attacks.values() for m in known}
    further = [name for name in PERCEPTUAL if name in seen]
    head = ["point", "shape", "KiB", "edge, ms", "cloud, ms"]
    head += [f"{a.verdict.profile.name}: {what}" for a in report.answers for what in ("network, ms", "total, ms")]
    head.append(utility_name(utility))
    head += [f"{attack}: {METRICS.get(m).heading}" for attack in attacks for m in [*measures, *further]]
    rows = []
    chosen = {a.recommendation.split for a in report.answers if a.recommendation}
    for f in report.figures:
        name = f.point.name
        times = [a.verdict.latency.get(name) for a in report.answers]
        parts = [None if times[0] is None else getattr(times[0], side) for side in ("edge_ms", "cloud_ms")]
        parts += [None if t is None else getattr(t, key) for t in times for key in ("network_ms", "total_ms")]
        front = any(name in a.verdict.front for a in report.answers)
        cells = [
            _Cell(name + (" ◆" if front else ""), f.point.at),
            _Cell(" + ".join(s.show for s in f.point.tensors)),
            _Cell(f"{f.point.bytes / 1024:,.1f}"),
            *(_Cell("–" if p is None else f"{p:.1f}") for p in parts),
            _plain(f.utility, share=True),
        ]
        for attack in attacks:
            known = f.attacks.get(attack)
            missing = (attack, name) in report.missing
            cells += [
                _Cell("no network" if missing and m == measures[0] else "–")
                if known is None
                else _interval(known.get(m), m)
                for m in [*measures, *further]
            ]
        rows.append(_Row(cells, name in chosen, _data(pictures[name]) if name in pictures else ""))
    return head, rows


def _told(report: Report) -> tuple[list[str], list[list[_Cell]]]:
    names = list(dict.fromkeys(name for f in report.figures for name in f.told))
    rows = [[_Cell(f.point.name), *(_plain(f.told.get(name)) for name in names)] for f in report.figures]
    return ["point", *(TITLES.get(name, name) for name in names)], rows


def _ranked(report: Report) -> tuple[list[str], list[list[_Cell]]]:
    """Rank correlations: a row a measure without an attack, a column a metric of the strongest attack."""
    columns = list(dict.fromkeys(c.attacked for c in report.correlations))
    by = {(c.told, c.attacked): c for c in report.correlations}
    rows = []
    for told in dict.fromkeys(c.told for c in report.correlations):
        found = [by.get((told, attacked)) for attacked in columns]
        cells = [_Cell("–") if c is None else _Cell(f"{c.rho:.2f}", f"{c.low:.2f}, {c.high:.2f}") for c in found]
        rows.append([_Cell(TITLES.get(told, told)), *cells])
    return ["Spearman’s ρ with", *(METRICS.get(name).title for name in columns)], rows


def _grouped(entries: Mapping[tuple[str, str], Any]) -> list[tuple[str, list[str], str]]:
    """Attack, its points, and what is said of them, points of which the same is said together."""
    found: dict[tuple[str, str], list[str]] = {}
    for (attack, split), said in entries.items():
        for text in [said] if isinstance(said, str) else said:
            # a command is the same but for the point
            plain = text.replace(f"--split {quote(split)}", "--split POINT").replace(
                f"--split {split}", "--split POINT"
            )
            plain = plain.replace(f" at {split}", "")
            found.setdefault((attack, plain), []).append(split)
    return [(attack, splits, text) for (attack, text), splits in found.items()]


def render(out: Path, report: Report, summary: Summary, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        out: the folder, with originals and reconstructions.
        report: what was found.
        summary: its figures.
        rows: of all units.

    Returns:
        HTML without any reference to another host.
    """
    from plotly.offline import get_plotlyjs

    first = report.answers[0].verdict
    pictures = _pictures(out, rows, report.figures, first.measure)
    sections = []
    for answer in report.answers:
        sections.append(
            {
                "network": answer.verdict.profile,
                "depth": plots.depth(report.figures, answer.verdict),
                "plane": plots.plane(report.figures, answer.verdict),
            }
        )
    head, table = _table(report, pictures)
    told_head, told = _told(report)
    options, bench = report.bench.options, report.bench
    differences = [f.difference for f in report.figures if f.difference is not None]
    environment = Environment(
        loader=PackageLoader("scenarios.splits", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        style=STYLE,
        plotly=get_plotlyjs(),
        target=summary.target,
        quick=options.quick,
        answers=report.answers,
        strip=_strip(out, report, first, pictures),
        images=bench.pictures.source,
        gallery=len(bench.pictures.inputs.rivals(0)) + 1,
        evaluators=[e.name for e in bench.evaluators],
        sections=sections,
        head=head,
        table=table,
        told_head=told_head,
        told=told,
        ranked=_ranked(report),
        assumed=ASSUMED,
        noisy=options.defense != "identity",
        attackers=report.attackers,
        missing=_grouped(report.missing),
        remarks=_grouped(report.remarks),
        left_out=report.left_out,
        notes=report.notes,
        difference=max(differences, default=None),
        defense=options.defense,
        codec=f"{options.codec.dtype}, {options.codec.compression}",
        slowdown=options.edge_slowdown,
        limits=[f"{limit.option}{limit.value:g}" for limit in options.limits],
        command=options.command,
        weights=summary.environment.weights,
        environment=json.dumps(summary.to_dict()["environment"], indent=2, ensure_ascii=False),
    )
