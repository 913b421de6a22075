"""``splitsight splits``: where a network can be cut, and where it should be."""

from __future__ import annotations

import json
import shlex
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from scenarios.cli.guard import guarded
from scenarios.cli.options import (
    Codec,
    CodecOption,
    Compression,
    CompressionOption,
    Defense,
    Device,
    GallerySize,
    InputSize,
    Prior,
    Seed,
    Target,
    Threads,
    Weights,
)
from scenarios.cli.output import progress, table
from splitsight.errors import UserError
from splitsight.specification import specify, target_name

__all__ = ["commands"]

commands = typer.Typer()

_ATTACKS = "--attacks"


class _BareAttacks(TyperCommand):
    """Takes ``--attacks`` without a value, for the default ones."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Give it the value that it stands for."""
        whole: list[str] = []
        for argument, after in zip_longest(args, args[1:]):
            whole.append(argument)
            if argument == _ATTACKS and (after is None or after.startswith("-")):
                whole.append("default")
        return super().parse_args(ctx, whole)


def _listed(values: list[str] | None) -> list[str] | None:
    """Repeated options and comma lists alike."""
    if not values:
        return None
    found = [one.strip() for value in values for one in value.split(",") if one.strip()]
    return found or None


@commands.command("splits", cls=_BareAttacks)
@guarded("scenarios.splits.run", "splitsight.targets")
def splits(
    target: Target = "resnet18",
    input_size: InputSize = None,
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for index.html, summary.json, rows.parquet, gone on with if it is there; default, if anything "
            "is evaluated: runs/splits-TARGET."
        ),
    ] = None,
    points: Annotated[
        list[str] | None, typer.Option("--splits", metavar="A,B,…", help="Points to evaluate; default: all.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="What is looked at: folder of PNG/JPEG, Parquet file in Hugging Face image format, or a video; "
            "default: frames of the clip that comes with the package."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images at most; default: 32, with --quick 4.")] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Images that each original is to be told from, a folder or a Parquet file; default: the other images "
            "of --images, where there are a hundred."
        ),
    ] = None,
    gallery_size: GallerySize = 1000,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            _ATTACKS,
            metavar="[NAME[:SETTING],…]",
            help="Who attacks; see `splitsight list attacks`. Default, and without a value: best:sharp (white-box) and "
            "net-best:sharp (black-box). none: nobody.",
        ),
    ] = None,
    defense: Defense = "identity",
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Networks between edge and cloud, a report for each: names of `splitsight list networks`, or YAML "
            "files; repeatable, or joined by commas; default: wifi.",
        ),
    ] = None,
    edge_slowdown: Annotated[
        float, typer.Option(help="How many times longer the edge device takes than this machine.")
    ] = 1.0,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Of the recommended point: milliseconds from a frame to its answer.")
    ] = None,
    max_leakage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=VALUE",
            help="Of the recommended point: what the strongest attack obtains, as ssim=0.4, matched_top1=0.2 (a metric "
            "of `splitsight list metrics`), or sensitivity, dfil, fsinfo; repeatable.",
        ),
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Of the recommended point: utility, a part of 1.")] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(help="Independent classifier, a name or a folder, or none; repeatable; default: mbconv."),
    ] = None,
    prior: Prior = "small",
    inversion: Annotated[
        Path | None, typer.Option(help="Inversion networks, a folder of them; default: the package's and the cache's.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few points, four images: shows within minutes that it works, and no more.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation in --out.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the points as JSON; if anything is evaluated, the recommendation.")
    ] = False,
) -> int:
    """Where should a network be split? Alone, every point of it; with --attacks, a report that says which to take."""
    from scenarios.splits.run import evaluate
    from scenarios.splits.spec import SplitOptions, parse_limits
    from splitsight.wire.tensors import CodecSpec

    whole = specify(target, input_size)
    limits = parse_limits(max_latency_ms, max_leakage or [], min_accuracy)
    given = (out, points, images, limit, gallery, attacks, network, limits, evaluator, quick)
    if not any(given) and (defense, edge_slowdown) == ("identity", 1.0):
        return _show(whole, weights, as_json)
    name = target_name(whole)
    options = SplitOptions(
        target=whole,
        weights=weights,
        out=out or Path("runs") / f"splits-{_folder(name)}{'-quick' if quick else ''}",
        splits=_listed(points),
        images=images,
        limit=limit,
        gallery=gallery,
        gallery_size=gallery_size,
        attacks=attacks or ["default"],
        defense=defense,
        codec=CodecSpec(dtype.value, compression.value),
        networks=_listed(network) or ["wifi"],
        edge_slowdown=edge_slowdown,
        limits=limits,
        evaluators=evaluator or ["mbconv"],
        prior=prior,
        inversion=inversion,
        quick=quick,
        seed=seed,
        threads=threads,
        device=device,
        overwrite=overwrite,
        command="splitsight " + shlex.join(sys.argv[1:]),
    )
    with progress(f"splits of {name}") as report:
        found = evaluate(options, report)
    page, answers = options.out / "index.html", {a.verdict.profile.name: a for a in found.answers}
    if as_json:
        plain = {k: a.recommendation and a.recommendation.model_dump() for k, a in answers.items()}
        print(json.dumps(plain if len(plain) > 1 else next(iter(plain.values())), indent=2, ensure_ascii=False))
    else:
        for answer in answers.values():
            if (chosen := answer.recommendation) is not None:
                print(f"split at {chosen.split}: {answer.says}")
        print(page)
    if refused := [a.says for a in answers.values() if a.recommendation is None]:
        raise UserError("; ".join(refused))
    return 0


def _folder(name: str) -> str:
    from splitsight.names import safe_names

    return safe_names([name.replace(":", "-").replace("@", "-")])[0]


def _show(target: str, weights: Path | None, as_json: bool) -> int:
    """Every point, and what is known of it before anything is run."""
    from scenarios.listing import split_entries
    from splitsight import targets

    loaded = targets.load(target, weights)
    rows = split_entries(loaded)
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    if not any(row["at"] for row in rows):
        rows = [{key: value for key, value in row.items() if key != "at"} for row in rows]
    shown = [[", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()] for row in rows]
    table(tuple(rows[0]), shown)
    side = loaded.input_size
    print(f"{len(rows)} points of {loaded.name}, images of {side}×{side}")
    print("Latency, leakage and a recommendation: the same command with --attacks.")
    return 0
