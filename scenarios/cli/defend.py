"""``splitsight calibrate``: what a defence has to know before it can be used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import Split, Target, Weights

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
@guarded("scenarios.calibrate", "splitsight.targets")
def calibrate(
    defense: Annotated[
        str,
        typer.Argument(
            metavar="DEFENSE", help="Such as dfil:target=10, fsinfo:target=-1 or pac:budget=100; see docs/defenses.md."
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="Folder of PNG/JPEG, or Parquet: like what is to be protected, not what is tested on.")
    ],
    target: Target = "resnet18",
    split: Split = "L8",
    weights: Weights = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most; a Jacobian takes seconds an image.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for what fits into no parameter; default: in $SPLITSIGHT_HOME/defenses.")
    ] = None,
) -> None:
    """Measure what a defence has to know of the features on images; prints it as --defense takes it."""
    from scenarios.calibrate import calibrate as measured

    chain = measured(defense, images, target=target, split=split, weights=weights, limit=limit, out=out)
    print(chain)
    for said in chain.guarantees():
        print(said, file=sys.stderr)
