"""``splitsight calibrate|defend``: what a defence has to know before it is used, and what it withstands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import Device, Prior, Ray, Seed, Split, Target, Weights

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


@commands.command()
@guarded("scenarios.defend.command", "splitsight.targets")
def defend(
    out: Annotated[
        Path, typer.Option(help="Folder for index.html, summary.json, rows.parquet; one that is there is gone on with.")
    ],
    target: Target = "resnet18",
    split: Annotated[
        list[str] | None, typer.Option(help="Split point; see `splitsight list splits`; repeatable; default: L8.")
    ] = None,
    defenses: Annotated[
        str,
        typer.Option(
            help="NAME:KEY=VALUE,… with a ; between two; all; or dp: ε = 1 to 16 a frame, with and without training."
        ),
    ] = "all",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images that no model was trained on, a folder of PNG/JPEG or a Parquet file; with labels, utility is "
            "accuracy. Default: frames of the package's clip."
        ),
    ] = None,
    train_data: Annotated[
        Path | None,
        typer.Option(help="Pictures that attackers learn from; default: images of --images that are not attacked."),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:SETTING]", help="Attack; repeatable; default: the strongest for their time."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images for attacks that optimise; default: 32, or 4 with --quick.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=2, help="Images for attacks of one pass; default: 256, or 64 with --quick.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Of training each network that an attacker needs; default: 4, or seconds with --quick."),
    ] = None,
    static: Annotated[
        int | None, typer.Option(min=1, help="Frames of a scene that stands still, which are averaged; default: 16.")
    ] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(help="Independent classifier, a name or a folder, or none; repeatable; default: mbconv."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small form that ends in minutes: shows that it works.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work; default: one a core.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each; default: the cores, shared out.")
    ] = None,
    prior: Prior = "small",
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = "cpu",
    ray: Ray = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Evaluate defences: utility, and what attackers rebuild who know them or do not. Goes on where it was stopped."""
    from scenarios.defend.command import DefendOptions
    from scenarios.defend.command import defend as run

    folder = run(
        DefendOptions(
            out=out,
            target=target,
            weights=weights,
            splits=tuple(dict.fromkeys(split or ["L8"])),
            defenses=defenses,
            images=images,
            train_data=train_data,
            attacks=tuple(attack or ()),
            limit=limit,
            count=count,
            minutes=minutes,
            static=static,
            evaluators=tuple(evaluator or ("mbconv",)),
            prior=prior,
            quick=quick,
            seed=seed,
            workers=workers,
            threads=threads,
            device=device,
            overwrite=overwrite,
            ray=ray,
        )
    )
    print((folder / "summary.json").read_text() if as_json else folder / "index.html")
