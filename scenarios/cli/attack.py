"""``splitsight attack|run``: reconstruct what is on disk, one method or a whole table."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import (
    AutoSplit,
    Device,
    Evaluators,
    Fps,
    Frames,
    GalleryFeatures,
    GalleryOption,
    GallerySize,
    InputSize,
    Inversion,
    Prior,
    Ray,
    Seed,
    Stride,
    Target,
    Threads,
    Weights,
    changed,
)
from scenarios.cli.output import progress
from splitsight.errors import UserError
from splitsight.specification import specify

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
@guarded("scenarios.attack", "splitsight.targets")
def attack(
    method: Annotated[str, typer.Argument(help="Attack; see `splitsight list attacks`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for index.html, summary.json, rows.parquet, grid.png, reconstructions/; default: "
            "runs/METHOD-TIMESTAMP."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of PNG/JPEG, or a Parquet file in Hugging Face image format.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="Video file, image folder, camera index or URL.")] = None,
    recording: Annotated[Path | None, typer.Option(help="Folder that a live adversary recorded.")] = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: AutoSplit = None,
    defense: Annotated[
        str | None,
        typer.Option(help="What the edge does to the features; see `splitsight list defenses`; default: nothing."),
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive/--not-told", help="Whether the attacker knows the defence, or believes that there is none."
        ),
    ] = True,
    static: Annotated[
        int, typer.Option(min=1, help="With --images: each is sent so many times, and the attacker averages.")
    ] = 1,
    prior: Prior = "small",
    limit: Annotated[int | None, typer.Option(min=1, help="Images or frames at most; default: all.")] = None,
    seed: Seed = 0,
    setting: Annotated[str | None, typer.Option(help="Named setting of the method; default: the method's own.")] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Wall-clock seconds for the whole run; default: none.")
    ] = None,
    frames: Frames = 4,
    stride: Stride = 0.5,
    fps: Fps = 2.0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text prior; repeat it and each is tried, the lowest final loss kept; default: none."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="With --prompt: α of the negentropy, 1 to 2; default: the setting's.")
    ] = None,
    lambda_txt: Annotated[
        float | None, typer.Option(help="With --prompt: weight of the negentropy; default: the setting's, 10.")
    ] = None,
    lambda_c: Annotated[
        float | None, typer.Option(help="Weight of temporal smoothing; default: the setting's.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another value for one of the setting's, as JSON; repeatable."
        ),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="For --recording: folder of originals to score with (the edge's --truth).")
    ] = None,
    gallery: GalleryOption = None,
    gallery_size: GallerySize = 1000,
    gallery_features: GalleryFeatures = "pixels",
    weights: Weights = None,
    inversion: Inversion = None,
    network: Annotated[
        Path | None, typer.Option(help="Network of a black-box method, a file; default: the one in the cache.")
    ] = None,
    evaluator: Evaluators = None,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Reconstruct images from their features: of still images, a video, or a recording."""
    from scenarios.attack import run_attack
    from scenarios.splits.auto import AUTO, usual_split

    if not prompt and (alpha is not None or lambda_txt is not None):
        raise UserError("--alpha and --lambda-txt weigh a text prior: give --prompt with them")
    with progress(f"{method} at {split}") as report:
        done = run_attack(
            method,
            images=images,
            video=video,
            recording=recording,
            target=specify(target, input_size),
            # a recording says itself where its features were tapped
            split=AUTO if split is None and recording is not None else usual_split(split, target),
            defense=defense,
            adaptive=adaptive,
            static=static,
            limit=limit,
            seed=seed,
            setting=setting,
            time_budget=time_budget,
            out=out or Path("runs") / f"{method}-{datetime.now():%Y%m%d-%H%M%S}",
            prior=prior,
            threads=threads,
            device=device,
            frames=frames,
            stride=stride,
            fps=fps,
            prompts=prompt,
            changes=changed(change or [], alpha=alpha, lambda_txt=lambda_txt, smoothing=lambda_c),
            truth=truth,
            gallery=gallery,
            gallery_size=gallery_size,
            gallery_features=gallery_features,
            weights=weights,
            inversion=inversion,
            network=network,
            evaluators=evaluator or [],
            command="splitsight " + shlex.join(sys.argv[1:]),
            progress=report,
        )
    print((done.out / "summary.json").read_text() if as_json else done.says)


@commands.command("run")
@guarded("scenarios.run.run", "splitsight.targets")
def run_scenario(
    scenario: Annotated[str, typer.Argument(help="Scenario; see `splitsight list scenarios`. Or a .yaml file.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Images or clips that no model was trained on; default: the scenario's own, if any."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, gone on with if it is there; default: runs/SCENARIO.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The scenario's quick form: shows that it works.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Images, or windows of each clip, at most; default: the scenario's.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the work; default: 1, with --ray one a core of the cluster."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each; default: the cores, shared out.")
    ] = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of all draws of the attacks; default: the scenario's.")] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="What the edge does to the features in every cell; see `splitsight list defenses`; default: the "
            "scenario's."
        ),
    ] = None,
    evaluator: Annotated[
        list[str] | None,
        typer.Option(help="Independent classifier, a name or a folder, or none; repeatable; default: the scenario's."),
    ] = None,
    judge: Annotated[str | None, typer.Option(hidden=True, help="Former name of --evaluator.")] = None,
    rivals: Annotated[
        Path | None,
        typer.Option(help="For clips: images to tell a frame from, a folder or Parquet; default: other clips' frames."),
    ] = None,
    train_data: Annotated[
        Path | None,
        typer.Option(
            help="Where black-box networks are missing: pictures to ask the oracle about, as `splitsight train "
            "inversion --data` takes them; default: the scenario's own, if any."
        ),
    ] = None,
    ray: Ray = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Run a scenario: a whole table of attacks, measured, with a report. Goes on where it was stopped."""
    from scenarios.run.run import RunOptions
    from scenarios.run.run import run_scenario as run

    if judge is not None:
        print("splitsight: the option --judge is now called --evaluator", file=sys.stderr)
    folder = run(
        RunOptions(
            scenario=scenario,
            out=out,
            data=data,
            rivals=rivals,
            train_data=train_data,
            evaluators=[*(evaluator or []), *([judge] if judge else [])],
            quick=quick,
            limit=limit,
            seed=seed,
            defense=defense,
            workers=workers,
            threads=threads,
            device=device,
            overwrite=overwrite,
            ray=ray,
        )
    )
    print((folder / "summary.json").read_text() if as_json else folder / "index.html")
