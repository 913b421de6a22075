"""What several evaluations of one target found, in one small file, and the table that is made of it.

``python -m scenarios.defend.committed NAME RUN…`` takes the rows and measures of runs of ``splitsight defend``, also of
such as have not ended, into ``scenarios/results/defend/NAME.parquet``; :mod:`scenarios.results_page` makes the page.
Runs of one file have the same target, images and sizes: what two of them have both computed is taken from the first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from scenarios.defend.figures import summaries
from scenarios.run.plan import cell_id
from scenarios.run.rows import read_rows
from scenarios.run.spec import Scenario
from splitsight.files import write_parquet
from splitsight.summary import DefenseAttack, DefenseSummary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["FOLDER", "collect", "read", "sizes_of", "table"]

FOLDER = Path(__file__).parents[1] / "results" / "defend"

_MEASURES = b"splitsight.defenses"
_PLACE = ("split", "defense", "method", "setting", "adaptive", "static")
_KEPT = (*_PLACE, "index", "psnr", "ssim", "match_rank", "gallery", "seconds")
_PER_EVALUATOR = "recognised"
_DEFAULT = "default"
"""Setting of a cell that names none."""
_FOLDER_OF_WEIGHTS = re.compile(r"weights=[^,+]*/([^/,+]+)\.safetensors")

Row = dict[str, Any]


def _named(defense: str) -> str:
    """A defence without the place of its weights on the machine that computed."""
    return _FOLDER_OF_WEIGHTS.sub(r"weights=\1", defense)


def collect(runs: Sequence[Path], out: Path) -> int:
    """File what these runs have.

    Args:
        runs: folders of ``splitsight defend``.
        out: file to write.

    Returns:
        Rows in it.

    Raises:
        UserError: a part of a run is damaged.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    measures: dict[tuple[str, str], Row] = {}
    sizes = []
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        trained = config.get("train") or {}
        sizes.append(
            {
                "quick": config["run"]["quick"],
                "minutes": None if config["run"]["quick"] else trained.get("minutes"),
                "initial_minutes": trained.get("initial_minutes"),
                "gallery": config["data"]["gallery"],
            }
        )
        for file in sorted((run / "measures").glob("*.json")):
            one = json.loads(file.read_text(encoding="utf-8"))
            one["defense"] = _named(one["defense"])
            measures.setdefault((one["split"], one["defense"]), one)
        for part in sorted((run / "parts").glob("*.parquet")):
            for row in read_rows(part).to_pylist():
                kept = {k: v for k, v in row.items() if k in _KEPT or k.partition(":")[0] == _PER_EVALUATOR}
                kept["defense"] = _named(kept["defense"])
                kept["setting"] = None if kept["setting"] == _DEFAULT else kept["setting"]
                rows.setdefault(tuple(kept[k] for k in (*_PLACE, "index")), kept)
    found = pa.Table.from_pylist(list(rows.values()))
    floats = {name: pa.float32() for name in found.column_names if found[name].type == pa.float64()}
    found = found.cast(pa.schema([(f.name, floats.get(f.name, f.type)) for f in found.schema]))
    about = {_MEASURES: json.dumps({"measures": list(measures.values()), "runs": sizes})}
    write_parquet(out, found.replace_schema_metadata(about))
    return len(found)


def read(path: Path) -> tuple[list[DefenseSummary], list[Row]]:
    """Figures of every defence that was measured, by split, and the sizes of the runs.

    Args:
        path: as :func:`collect` wrote it.
    """
    found = pq.read_table(path)
    about = json.loads(found.schema.metadata[_MEASURES])
    rows, cells = [], {}
    for row in found.to_pylist():
        place = tuple(row[key] for key in _PLACE)
        cells.setdefault(place, len(cells))
        rows.append({**row, "cell": cell_id(cells[place])})
    planned = [dict(zip(_PLACE, place, strict=True)) for place in cells]
    scenario = Scenario.model_validate({"title": path.stem, "cells": planned})
    order = sorted(about["measures"], key=lambda one: (one["split"], one["defense"] != UNDEFENDED))
    return summaries(scenario, rows, order, {}), about["runs"]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _best(one: DefenseSummary, *, black_box: bool) -> DefenseAttack | None:
    """The strongest attack on single frames by who was told."""
    known = [
        a
        for a in one.attacks.values()
        if a.adaptive and a.static == 1 and (a.threat == "black-box") == black_box and a.ssim is not None
    ]
    return max(known, key=lambda a: a.ssim or 0.0, default=None)


def _ssim(attack: DefenseAttack | None) -> str:
    return "" if attack is None or attack.ssim is None else f"{attack.ssim:.3f}"


def _still(one: DefenseSummary) -> str:
    known = [a.ssim for a in one.attacks.values() if a.static > 1 and a.ssim is not None]
    return f"{max(known):.3f}" if known else ""


def _line(one: DefenseSummary) -> str:
    top, gain = one.strongest, one.adapting
    most = {} if top is None else top.most
    recognised = [most.get("recognised"), *(v for k, v in most.items() if k.startswith(f"{_PER_EVALUATOR}:"))]
    cells = [
        f"`{one.defense}`" + (" †" if one.dominated else ""),
        _percent(one.utility.accuracy),
        "" if top is None else f"{top.ssim:.3f} / {top.psnr:.1f}",
        "" if top is None else top.attack,
        _percent(most.get("matched_top1")),
        " / ".join(map(_percent, recognised)),
        _ssim(_best(one, black_box=True)),
        _still(one),
        "" if gain is None or gain.mean is None else f"{gain.mean:+.3f}",
        "" if one.attribute is None else f"{one.attribute.value:.2f}",
        "" if one.epsilon is None else f"{one.epsilon:g}",
        f"{one.bytes_zstd:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(found: Sequence[DefenseSummary], split: str) -> Iterator[str]:
    """Lines of Markdown, one a defence at a split, by what the strongest attacker obtains.

    Args:
        found: as :func:`read` gives them.
        split: which.
    """
    here = [one for one in found if one.split == split and one.strongest is not None]
    heads = ["defence", "accuracy", "SSIM / dB", "of the attack", "found first", "recognised", "black-box SSIM"]
    heads += ["still scene SSIM", "told gains", "words", "ε", "bytes"]
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)
    for one in sorted(here, key=lambda one: (one.defense != UNDEFENDED, -(one.strongest.ssim if one.strongest else 0))):
        yield _line(one)


def sizes_of(found: Sequence[DefenseSummary], runs: Sequence[Mapping[str, Any]]) -> str:
    """What was computed, in a sentence or two."""
    counts = sorted({a.n for one in found for a in one.attacks.values()})
    minutes = sorted({run[key] for run in runs for key in ("minutes", "initial_minutes") if run[key]})
    text = (
        f"Attacked were {counts[0]} images by attacks that optimise and {counts[-1]} by networks; the strongest is "
        "chosen on those that all attacked."
    )
    if minutes:
        text += (
            f" Networks were trained for {' to '.join(f'{m:g}' for m in dict.fromkeys([minutes[0], minutes[-1]]))} "
            "minutes of computing, from the one for undefended features on where shapes allow."
        )
    if any(run["quick"] for run in runs):
        text += " No black-box network was trained on what a defence lets through."
    return f"{text} Originals are among {runs[0]['gallery']:,} images."


if __name__ == "__main__":
    name, *runs = sys.argv[1:]
    print(collect([Path(run) for run in runs], FOLDER / f"{name}.parquet"))
