"""``splitsight train``: make the embedded models again, and train defences."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import (
    Ca,
    ClientCert,
    ClientKey,
    Device,
    InputSize,
    Prior,
    Seed,
    Split,
    Stride,
    Target,
    Threads,
    TokenFile,
    Weights,
    changed,
)
from scenarios.cli.output import progress
from splitsight.errors import UserError
from splitsight.specification import specify

__all__ = ["train"]

train = typer.Typer(
    help="Train the embedded models again, or a defence; resumes in --out, keeps to its budget.", no_args_is_help=True
)


class Part(StrEnum):
    """What of a prior to train."""

    autoencoder = "autoencoder"
    denoiser = "denoiser"
    pixels = "pixels"
    all = "all"


class Network(StrEnum):
    """Kinds of denoiser."""

    unet = "unet"
    transformer = "transformer"


class Schedule(StrEnum):
    """Learning rates."""

    one_cycle = "one-cycle"
    stable = "stable"


Data = Annotated[
    Path,
    typer.Option(
        help="Training data, of which a part is held out: a Parquet file in Hugging Face image format, or a folder of "
        "them, with classes.tsv beside it; for a prior also a folder of PNG/JPEG."
    ),
]
TrainOut = Annotated[Path, typer.Option(help="Folder of the run; a run that is there is resumed.")]
Minutes = Annotated[float | None, typer.Option(help="Time budget in minutes, over resumed runs; default: none.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Budget in optimiser steps; default: none.")]


@train.command("target")
@guarded("splitsight.targets.training", "splitsight.targets", "splitsight.recipes")
def train_target(
    data: Data,
    out: TrainOut,
    name: Annotated[
        str, typer.Argument(help="Which: `splitsight list targets` names them; those trained here have a recipe.")
    ] = "resnet18",
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    start: Annotated[
        Path | None, typer.Option(help="Earlier weights to go on from, a file; default: random ones.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Target whose logits a classifier learns from beside the labels; default: none."),
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Larger photographs, a Parquet file, for a detector's backgrounds.")
    ] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16/--float32", help="Precision of the network's products while it is trained.")
    ] = False,
) -> None:
    """Train a target network.

    On a CPU, --minutes are those in which the training computes.
    """
    from splitsight.targets.training import train_target_command

    _budget(minutes, steps)
    print(
        train_target_command(
            name,
            data=data,
            out=out,
            minutes=minutes,
            steps=steps,
            device=device,
            seed=seed,
            threads=threads,
            start=start,
            teacher=teacher,
            photos=photos,
            bfloat16=bfloat16,
        )
    )


@train.command("evaluator")
@guarded("splitsight.evaluators.training", "splitsight.targets")
def train_evaluator(
    data: Data,
    out: TrainOut,
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train the evaluator: the independent classifier that measures what reconstructions give away."""
    from splitsight.evaluators.training import train_evaluator_command

    _budget(minutes, steps)
    print(
        train_evaluator_command(
            data=data, out=out, minutes=minutes, steps=steps, device=device, seed=seed, threads=threads
        )
    )


# the former name; typer says on stderr that it is deprecated
train.command("judge", hidden=True, deprecated=True)(train_evaluator)


@train.command("prior")
@guarded("adversary.training", "splitsight.targets")
def train_prior(
    data: Data,
    out: TrainOut,
    part: Annotated[Part, typer.Option(help="What of it.")] = Part.all,
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    start: Annotated[
        str | None, typer.Option(help="Earlier prior whose denoiser is gone on from, a name or folder; default: none.")
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(help="Prior whose autoencoder is kept, a name or folder; default: the one trained in --out."),
    ] = None,
    photos: Annotated[
        list[Path] | None,
        typer.Option(
            help="Larger photographs for the denoiser, a Parquet file with *classes.tsv beside it; repeatable."
        ),
    ] = None,
    network: Annotated[Network, typer.Option(help="Kind of denoiser.")] = Network.unet,
    schedule: Annotated[
        Schedule, typer.Option(help="Learning rate: one-cycle, or stable until the budget's last 15 %.")
    ] = Schedule.one_cycle,
    average: Annotated[
        float, typer.Option(min=0, max=1, help="Decay of the moving average of the denoiser's weights.")
    ] = 0.9995,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16/--float32", help="Precision of the denoiser's products while it is trained.")
    ] = False,
    fits: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images a split of ResNet-18 whose live fits --part pixels learns from, too, going on from --start; "
            "default: none.",
        ),
    ] = None,
) -> None:
    """Train the generative prior: autoencoder, denoiser of latents with text encoder, denoiser of pixels.

    On a CPU, --minutes are those in which the denoisers' training computes.
    """
    from adversary.priors._settings import Settings
    from adversary.training import train_prior_command

    _budget(minutes, steps)
    print(
        train_prior_command(
            data=data,
            out=out,
            minutes=minutes,
            steps=steps,
            device=device,
            seed=seed,
            threads=threads,
            part=part.value,
            start=start,
            autoencoder=autoencoder,
            fits=fits,
            settings=Settings(
                photos=photos or [],
                network=network.value,
                schedule=schedule.value,
                average=average,
                bfloat16=bfloat16,
            ),
        )
    )


@train.command("defense")
@guarded("splitsight.defenses.training.command", "splitsight.targets")
def train_defense(
    name: Annotated[str, typer.Argument(help="Which defence; `splitsight list defenses` names them.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Pictures: a folder of PNG/JPEG, a Parquet file in Hugging Face image format or a folder of them; a "
            "part is held out. Labels are only measured with."
        ),
    ],
    out: TrainOut,
    target: Target = "resnet18",
    split: Split = "L8",
    weights: Weights = None,
    defense: Annotated[
        str, typer.Option(help="For aware: the defences to train behind, NAME:KEY=VALUE,…, joined by +.")
    ] = "identity",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value for one of the method's settings; repeatable."),
    ] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 64,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a defence, or with aware the halves behind one, by distillation from the undefended network."""
    from splitsight.defenses.training.command import DefenseOptions, train_defense_command

    _budget(minutes, steps)
    options = DefenseOptions(
        name=name,
        data=data,
        out=out,
        target=target,
        split=split,
        weights=weights,
        defense=defense,
        changes=changed(change or []),
        minutes=minutes,
        steps=steps,
        batch=batch,
        device=device,
        seed=seed,
        threads=threads,
    )
    print(train_defense_command(options))


@train.command("inversion")
@guarded("adversary.blackbox.command")
def train_inversion(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures: a folder of PNG/JPEG, a Parquet file in Hugging Face image format or a folder of them; "
            "with --oracle and --frames also a folder of videos. A part is put aside to measure with."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; a run that is there is resumed. Default: the cache, where attacks find the "
            "network."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Network that is split, named as for `splitsight attack`; default: resnet18, or with --oracle "
            "whatever answers."
        ),
    ] = None,
    input_size: InputSize = None,
    split: Annotated[
        str | None, typer.Option(help="Split point; default: the middle one, or with --oracle whatever answers.")
    ] = None,
    prior: Prior = "small",
    weights: Annotated[
        Path | None, typer.Option(help="With F1 at hand: the target's weights; default: the embedded ones.")
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="With F1 at hand: what the edge does to the features, NAME:KEY=VALUE,…; default: nothing. With "
            "--oracle, whatever answers."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time budget in minutes, over resumed runs; default: 30, or with --oracle none."),
    ] = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    start: Annotated[Path | None, typer.Option(help="Earlier network to go on from, a file; default: none.")] = None,
    width: Annotated[
        int | None,
        typer.Option(min=8, help="With F1 at hand: channels of the network; default: those of --start, else 80."),
    ] = None,
    also: Annotated[
        Path | None,
        typer.Option(
            help="With F1 at hand: further pictures, smaller than the target takes, enlarged to make up half of each "
            "batch; default: none."
        ),
    ] = None,
    features_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With F1 at hand: weight in the loss of how far the answer's features are from those that it was made "
            "from; more is sharper and further off in pixels; default: 0.",
        ),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(help="Black-box: learn from what this oracle answers, HOST:PORT, and from nothing else of F1."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Black-box: folder of the query pairs, kept and reused; default: one in the cache."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Black-box: which method's network; `splitsight list attacks` names them.")
    ] = "net-db",
    queries: Annotated[int, typer.Option(min=1, help="Black-box: pictures to train on.")] = 4096,
    test_queries: Annotated[
        int, typer.Option(min=1, help="Black-box: pictures to measure with, asked about too.")
    ] = 1024,
    unasked: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Black-box, for methods that use them: further pictures of --data, at most, to learn from without "
            "asking about them; default: 8192.",
        ),
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="Black-box: named setting of the training; default: the method's first one.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Black-box: another value for one of the setting's; repeatable."
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Black-box: train net-dmb with captions (equation 12).")
    ] = False,
    frames: Annotated[int, typer.Option(min=1, help="Black-box: frames of a window (K); 1 for single images.")] = 1,
    mixing: Annotated[
        bool, typer.Option("--mixing/--no-mixing", help="Black-box: mix the frames (equation 13), or the control.")
    ] = True,
    stride: Stride = 0.5,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: ClientCert = None,
    key: ClientKey = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for an oracle that is away.")] = 10.0,
) -> None:
    """Train an inversion network: the preview's, with F1 at hand, or with --oracle a black-box attacker's."""
    if target is not None or input_size is not None:
        target = specify(target or "resnet18", input_size)
    if oracle is None and pairs is None:
        from adversary.training import train_inversion_command

        if data is None:
            raise UserError(
                "training with F1 at hand needs --data, a folder of images; without F1, give --oracle HOST:PORT"
            )
        print(
            train_inversion_command(
                data=data,
                out=out,
                minutes=minutes,
                steps=steps,
                device=device,
                seed=seed,
                threads=threads,
                target=target or "resnet18",
                split=split,
                prior=prior,
                weights=weights,
                defense=defense or "identity",
                start=start,
                width=width,
                also=also,
                features_weight=features_weight or 0.0,
            )
        )
        return
    from adversary.blackbox.command import PairOptions, train_pairs_command
    from splitsight.wire.credentials import ClientCredentials

    of_f1 = {"start": start, "width": width, "also": also, "features-weight": features_weight}
    for name, given in {**of_f1, "weights": weights, "defense": defense}.items():
        if given is not None:
            raise UserError(
                f"--{name} goes with training that has F1 at hand: leave it out (a black-box run resumes in --out)"
            )
    options = PairOptions(
        method=method,
        oracle=oracle,
        data=data,
        pairs=pairs,
        queries=queries,
        test_queries=test_queries,
        unasked=unasked,
        out=out,
        prior=prior,
        setting=setting,
        changes=changed(change or []),
        frames=frames,
        mixing=mixing,
        stride=stride,
        text=text,
        target=target,
        split=split,
        credentials=ClientCredentials.read("client", token_file, ca, cert, key),
        patience=patience,
        minutes=minutes,
        steps=steps,
        device=device,
        seed=seed,
        threads=threads,
    )
    print(train_pairs_command(options, lambda: progress(f"queries for {method}")))


def _budget(minutes: float | None, steps: int | None) -> None:
    if minutes is None and steps is None:
        raise UserError("a training run needs a budget: give --minutes or --steps")
