"""``splitsight list``: what there is."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import InputSize, Weights
from scenarios.cli.output import table
from splitsight.specification import specify

__all__ = ["commands"]

commands = typer.Typer()


class Kind(StrEnum):
    """What `list` lists."""

    targets = "targets"
    splits = "splits"
    attacks = "attacks"
    defenses = "defenses"
    priors = "priors"
    tasks = "tasks"
    metrics = "metrics"
    networks = "networks"
    scenarios = "scenarios"


@commands.command("list")
@guarded()
def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    target: Annotated[str, typer.Option(help="Whose splits; named as for `splitsight attack`.")] = "resnet18",
    input_size: InputSize = None,
    weights: Weights = None,
    tensors: Annotated[int, typer.Option(min=1, help="Of splits: tensors that may cross, at most.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is of a kind."""
    from scenarios.listing import entries

    rows = entries(kind.value, specify(target, input_size), tensors, weights)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"no {kind.value}", file=sys.stderr)
        return
    shown = [[", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()] for row in rows]
    table(tuple(rows[0]), shown)
