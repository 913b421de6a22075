"""``docs/results.md`` and the table in the README, made from committed rows: ``python -m scenarios.results_page``.

Every number there is computed here from ``scenarios/results/NAME.parquet``, one file a scenario, with the code
that also makes a run's own report; nothing is typed by hand, and a test holds both to the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from scenarios.defend import committed
from scenarios.run.figures import cell_summaries, comparisons, measured
from scenarios.run.rows import read_rows
from scenarios.run.spec import PaperRow, Scenario, load_scenario, read_scenario
from splitsight.files import write_text
from splitsight.metrics import Metric, metrics_named
from splitsight.summary import CellSummary, ComparisonSummary, Interval

__all__ = ["PAGE", "README", "RESULTS", "page", "with_table"]

PAGE = Path("docs/results.md")
"""From the root of the repository."""

README = Path("README.md")

RESULTS = Path(__file__).parent / "results"
"""Rows of one run a file."""

_SHOWN = ("psnr", "ssim", "recognised", "matched_top1", "own_answer")
_INTRODUCTION = (
    "Each table is of one scenario's committed rows: means over images that no model was trained on. A cell says PSNR"
    " in dB and SSIM, then the part of images that an independent classifier puts into the right class, then how "
    "often the original is the first of a thousand images, or of as many as are said, by that classifier's features. "
    "PSNR and SSIM reward a blur; what a person would ask are the last two. Where a fifth figure follows, it is how "
    "often the attacked network itself gives the reconstruction the answer that it gives the original. Rows say which"
    " weights made them; figures of other weights are not comparable."
)
_ROLES = {"target_digest": "target", "prior_digest": "prior", "evaluator_digest": "evaluator"}
_GALLERY = 1000


def _scenario(path: Path) -> tuple[Scenario, list[dict[str, Any]]]:
    data, name = read_scenario(path.stem)
    return load_scenario(data, name=name), read_rows(path).to_pylist()


def _metrics(names: Sequence[str]) -> list[Metric]:
    return [metric for metric in metrics_named(names) if metric.name in names]


def _cell(summary: CellSummary, eq14: bool, names: Sequence[str]) -> str:
    shown = [(metric, summary.interval(metric.name)) for metric in _metrics(names)]
    texts = [metric.text(value.mean, unit=metric.kind == "share") for metric, value in shown if value is not None]
    own = summary.interval("psnr_eq14") if eq14 else None
    theirs = "" if own is None or own.mean is None else f" ({own.mean:.1f})"
    return f"{' / '.join(texts[:2])}{theirs}{''.join(f' · {text}' for text in texts[2:])}"


def _table(heading: str, cells: Sequence[CellSummary], text: Callable[[CellSummary], str]) -> Iterator[str]:
    """A row a method, a column a split point, and the number of images."""
    splits = list(dict.fromkeys(cell.split for cell in cells))
    labels = list(dict.fromkeys((cell.label, cell.prompt, cell.defense) for cell in cells))
    several = len({defense for _, _, defense in labels}) > 1
    yield f"| {heading} | {' | '.join(splits)} | images |"
    yield "| --- |" + " --- |" * (len(splits) + 1)
    for label, prompt, defense in labels:
        own = {c.split: c for c in cells if (c.label, c.prompt, c.defense) == (label, prompt, defense)}
        behind = f", {defense}" if several else ""
        counts = sorted({cell.n for cell in own.values()})
        row = [text(own[split]) if split in own else "" for split in splits]
        yield f"| {label}{behind} | {' | '.join(row)} | {' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} |"


def _figures(scenario: Scenario, cells: Sequence[CellSummary], names: Sequence[str] = _SHOWN) -> Iterator[str]:
    splits = list(dict.fromkeys(cell.split for cell in cells))
    # the paper's measure stands beside ours only where there is something of the paper to compare with
    eq14 = any("psnr_eq14" in row.figures and row.split in splits for row in scenario.paper)
    heading = "PSNR / SSIM" + " (PSNR eq. 14)" * eq14 + " · recognised · found first"
    heading += " · own answer kept" * (
        "own_answer" in names and any(cell.interval("own_answer") is not None for cell in cells)
    )
    yield from _table(heading, cells, lambda cell: _cell(cell, eq14, names))
    theirs = [row for row in scenario.paper if row.split is None or row.split in splits]
    for label in dict.fromkeys(row.label for row in theirs):
        rows = [row for row in theirs if row.label == label]
        row = ["; ".join(filter(None, (_paper(one, split) for one in rows))) for split in splits]
        yield f"| *{label}, the paper's* | {' | '.join(row)} | |"


def _mean(cell: CellSummary, name: str) -> str:
    (metric,) = (metric for metric in metrics_named([name]) if metric.name == name)
    value = cell.interval(name)
    return metric.text(None if value is None else value.mean)


def _further(cells: Sequence[CellSummary]) -> Iterator[str]:
    """What each further evaluator says."""
    asked = [metric for metric in measured(cells) if metric.evaluator]
    for name in dict.fromkeys(metric.evaluator for metric in asked):
        own = [metric for metric in asked if metric.evaluator == name and metric.plotted]
        heading = " · ".join(metric.title.removesuffix(f" ({name})") for metric in own)

        def text(cell: CellSummary, own: Sequence[Metric] = own) -> str:
            found = [(metric, cell.interval(metric.name)) for metric in own]
            return " · ".join(metric.text(None if value is None else value.mean) for metric, value in found)

        yield f"As `{name}` sees the same reconstructions:"
        yield ""
        yield from _table(heading, cells, text)
        yield ""


def _paper(row: PaperRow, split: str) -> str:
    if row.split not in (None, split):
        return ""
    return ", ".join(f"{name} {value:g}" for name, value in row.figures.items())


def _difference(metric: Metric, value: Interval | None) -> str:
    if value is None or value.mean is None:
        return ""
    points = " points" if metric.kind == "share" else ""
    mean, low, high = (metric.text(v, sign=True, unit=False) for v in (value.mean, value.low, value.high))
    return f"{mean}{points}" + (f" [{low}, {high}]" if value.low is not None else "")


def _compared(found: Sequence[ComparisonSummary]) -> Iterator[str]:
    whole = [one for one in found if one.clip is None]
    shown = [m for m in _metrics(_SHOWN) if any(m.name in one.differences for one in whole)]
    if not whole or not shown:
        return
    yield "Paired differences on the same images, with 95 % intervals:"
    yield ""
    theirs = any(one.paper for one in whole)
    titles = [metric.title for metric in shown] + ["the paper's"] * theirs
    yield "| of, over | at | pairs | " + " | ".join(titles) + " |"
    yield "| --- | --- | --- |" + " --- |" * len(titles)
    for one in whole:
        where = one.split + (f", {one.defense}" if one.defense not in ("", "identity") else "")
        values = [_difference(metric, one.differences.get(metric.name)) for metric in shown]
        if theirs:
            values.append(", ".join(f"{name} {value}" for name, value in (one.paper or {}).items() if value))
        yield f"| {one.name} | {where} | {one.n} | {' | '.join(values)} |"


def _weights(rows: Sequence[Mapping[str, Any]]) -> str:
    """The models' digests; where rows are of several versions, which are of which."""
    said = []
    for column, role in _ROLES.items():
        made: dict[str, dict[str, dict[str, None]]] = {}
        for row in rows:
            if row.get(column):
                made.setdefault(row[column][:12], {}).setdefault(row["label"], {})[row["split"]] = None
        # targets differ because a scenario asks for several
        told = role != "target" and len(made) > 1
        parts = [f"`{digest}`" + f" ({_cells(made[digest])})" * told for digest in sorted(made)]
        if parts:
            said.append(f"{role} {', '.join(parts)}")
    return "; ".join(said)


def _cells(made: Mapping[str, Mapping[str, None]]) -> str:
    return ", ".join(f"{label} at {' '.join(splits)}" for label, splits in made.items())


def _section(path: Path) -> Iterator[str]:
    scenario, rows = _scenario(path)
    cells = cell_summaries(scenario, rows, {}, planned={}, features="evaluator")
    yield f"## {scenario.title}"
    yield ""
    about = f"{scenario.about[:1].upper()}{scenario.about[1:]}. " if scenario.about else ""
    source = f"As in {scenario.source} of the paper. " if scenario.source else ""
    yield f"{about}{source}`splitsight run {path.stem}`, rows in `scenarios/results/{path.name}`."
    yield ""
    yield from _figures(scenario, cells)
    yield ""
    sizes = sorted({row["gallery"] for row in rows} - {None})
    if sizes and sizes != [_GALLERY]:
        yield f"Found first: of {sizes[0]}{f' to {sizes[-1]}' if sizes[1:] else ''} images."
        yield ""
    yield from _further(cells)
    if any(cell.interval("grid_lines") is not None for cell in cells):
        yield (
            "Lines at F1's stride in the spectrum of the error, over its neighbours, dB (`splitsight/metrics/grid.py`; "
            "0 for an error without a grid, nothing where the features' positions are too few to tell, or rows are "
            "older than the measure):"
        )
        yield ""
        yield from _table("grid lines", cells, lambda cell: _mean(cell, "grid_lines"))
        yield ""
    if (lines := list(_compared(comparisons(scenario, rows)))) != []:
        yield from lines
        yield ""
    yield f"Weights (SHA-256): {_weights(rows)}."
    yield ""


_DEFENCES = (
    "What each defence leaves of the network's use, and what the strongest attack for its time obtains; *found first* "
    "and *recognised* are the most that any attack reaches on the same images. Attackers were "
    "told the defence and its parameters, never its draws, but where it says *not told*. *Black-box* has only asked an "
    "oracle; *still scene* averages 16 frames of one; *told gains* is what being told was worth in SSIM. *Words*: what "
    "a probe reads of colours and backgrounds without any picture (balanced accuracy, 0.5 is a guess); the class is "
    "what the server computes. ε is a frame's, where it is proven; bytes are packed by zstd. † another defence keeps "
    "as much and gives away as little."
)


def _defences(path: Path) -> Iterator[str]:
    found, runs = committed.read(path)
    for split in dict.fromkeys(one.split for one in found):
        yield f"## Defences of {path.stem} at {split}"
        yield ""
        here = [one for one in found if one.split == split]
        yield f"{_DEFENCES} {committed.sizes_of(here, runs)} Rows in `scenarios/results/defend/{path.name}`."
        yield ""
        yield from committed.table(here, split)
        yield ""


def _privacy(path: Path) -> Iterator[str]:
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"splitsight.about"])
    yield f"## Differential privacy of {about['target']}'s features at {about['split']}"
    yield ""
    yield (
        f"`splitsight bench privacy --split {about['split']}`, rows in `scenarios/results/defend/{path.name}`: noise "
        "on features that are clipped at their median norm C, ε of a frame (δ = 1e-5 for Gaussian noise) and of a "
        f"stream of {about['stream']:,} frames; the drawn noise's deviation over what theory says, and the p-value "
        f"of a χ² test that they are equal; and the ε that a distinguisher shows at least, with 95 % confidence from "
        f"{about['draws']:,} draws of each of two known frames: the farthest that the clip allows, the farthest of "
        f"{len(about['names'])} real ones; and, as half the noise is for a sensitivity of C where it is 2C, "
        "what that gives away: more than the claim wherever so few draws can show as much."
    )
    yield ""
    yield "| noise | ε | scale / C | ε of the stream | drawn / said | p | shown | real frames | half the noise |"
    yield "|" + " --- |" * 9
    for row in table.to_pylist():
        cells = [
            row["law"],
            f"{row['epsilon']:g}",
            f"{row['scale_over_clip']:.3f}",
            f"{row['stream_epsilon']:,.1f}",
            f"{row['measured'] / row['expected']:.5f}",
            f"{row['p']:.2f}",
            *(f"{row[f'shown_{name}']:.2f}" for name in ("worst", "real", "wrong")),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _averaging(path: Path) -> Iterator[str]:
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"splitsight.about"])
    rows = table.to_pylist()
    counts = sorted({row["frames"] for row in rows} - {0})
    yield f"## A scene that stands still, {about['target']} at {about['split']}"
    yield ""
    yield (
        f"`splitsight bench averaging --split {about['split']}`, rows in `scenarios/results/defend/{path.name}`: what "
        f"{about['attack']} rebuilds of {len(about['names'])} images from the mean of T frames, each with noise of its "
        "own. PSNR in dB; in brackets the error of the mean features over what σ/√T predicts."
    )
    yield ""
    yield "| noise | " + " | ".join(f"T = {count}" for count in counts) + " |"
    yield "|" + " --- |" * (len(counts) + 1)
    for defense in dict.fromkeys(row["defense"] for row in rows if row["frames"]):
        cells = []
        for count in counts:
            own = [row for row in rows if (row["defense"], row["frames"]) == (defense, count)]
            psnr = sum(row["psnr"] for row in own) / len(own)
            cells.append(f"{psnr:.2f} ({sum(row['error'] / row['predicted'] for row in own) / len(own):.3f})")
        yield f"| `{defense}` | {' | '.join(cells)} |"
    plain = [row["psnr"] for row in rows if not row["frames"]]
    yield f"| none | {sum(plain) / len(plain):.2f} |" + " |" * (len(counts) - 1)
    yield ""


_KINDS = {"privacy": _privacy, "averaging": _averaging}


def page() -> str:
    """The page, in Markdown."""
    lines = [
        "# Results",
        "",
        "<!-- Made by `python -m scenarios.results_page` from scenarios/results: run it, do not edit this. -->",
        "",
        _INTRODUCTION,
        "",
    ]
    for path in sorted(RESULTS.glob("*.parquet")):
        if not path.stem.startswith("bench-"):
            lines += _section(path)
    for path in sorted(committed.FOLDER.glob("*.parquet")):
        lines += _KINDS.get(path.stem.partition("-")[0], _defences)(path)
    return "\n".join(lines).rstrip() + "\n"


def with_table(text: str) -> str:
    """A text with figures of the scenario that its marker ``<!-- results: NAME -->`` names, up to the end marker."""
    match = re.search(r"(<!-- results: (\S+) -->\n).*?(?=<!-- end of results -->)", text, re.DOTALL)
    assert match is not None, "the marker is gone"
    scenario, rows = _scenario(RESULTS / f"{match[2]}.parquet")
    cells = cell_summaries(scenario, rows, {}, planned={}, features="evaluator")
    # one screen has room for what the text above the table explains
    lines = _figures(scenario, cells, _SHOWN[:-1])
    return text[: match.end(1)] + "\n" + "\n".join(lines) + "\n\n" + text[match.end() :]


if __name__ == "__main__":
    write_text(PAGE, page())
    write_text(README, with_table(README.read_text(encoding="utf-8")))
