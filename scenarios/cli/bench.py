"""``splitsight bench``: what parts of the testbed cost, and what an attack is worth."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import (
    Codec,
    CodecOption,
    Compression,
    CompressionOption,
    Defense,
    Device,
    Frames,
    InputSize,
    OneThread,
    Prior,
    Seed,
    Split,
    Target,
    Threads,
    Video,
    Weights,
    changed,
)
from scenarios.cli.output import progress, table
from splitsight.errors import UserError
from splitsight.files import write_json
from splitsight.specification import specify

__all__ = ["bench"]

bench = typer.Typer(help="Measure what parts of the testbed cost.", no_args_is_help=True)


@bench.command("tap")
@guarded("cloud_server.bench", "splitsight.targets")
def bench_tap(
    out: Annotated[Path | None, typer.Option(help="File for the result as JSON; default: none.")] = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    weights: Weights = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; each measures every condition once.")] = 40,
    requests: Annotated[int, typer.Option(min=2, help="Requests a condition and round.")] = 25,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 40.0,
    threads: OneThread = 1,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What the tap costs: latency with no subscriber, one that reads, one that hangs, in interleaved rounds."""
    from cloud_server.bench import bench_tap as measure

    with progress("bench tap") as report:
        result = measure(
            target=specify(target, input_size),
            split=split,
            weights=weights,
            rounds=rounds,
            requests=requests,
            rate=rate,
            threads=threads,
            seed=seed,
            progress=lambda done, total: report(done, total, "rounds"),
        )
    if _given(result, out, as_json):
        return
    rows = []
    for arm, figures in result["arms"].items():
        ratios = result["ratios"].get(arm, {})
        cells = [
            f"{r['ratio']:.4f} [{r['low']:.4f}, {r['high']:.4f}]" for r in (ratios.get(q) for q in ("p50", "p99")) if r
        ]
        rows.append([arm, str(figures["n"]), f"{figures['p50_ms']:.3f}", f"{figures['p99_ms']:.3f}", *cells])
    table(("subscriber", "requests", "p50, ms", "p99, ms", "p50 ratio to none", "p99 ratio to none"), rows)


@bench.command("serve")
@guarded("cloud_server.bench_serve", "cloud_server.soak", "splitsight.targets")
def bench_serve(
    out: Annotated[Path | None, typer.Option(help="File for the result as JSON; default: none.")] = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    weights: Weights = None,
    sessions: Annotated[
        list[int] | None, typer.Option(min=1, help="Concurrent sessions; repeatable; default: 1, 2, 4 and 16.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; each measures everything once.")] = 10,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 1.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Frames that the server computes together.")] = 16,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Frames of one session that may wait for an answer.")] = 8,
    threads: OneThread = 1,
    soak: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MINUTES",
            help="Instead: paced sessions for so long; memory, errors and latency of each minute.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="With --soak: frames a second of all sessions together.")] = 40.0,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Frames a second and round trips of saturating sessions, as a part of what F2 alone does on the same cores.

    Interleaved rounds; the server is a process of its own, the clients share the other one. The last columns say how
    many cores the clients had, and what part it is of what F2 would give in what they left.
    """
    if soak is not None:
        _soak(
            soak, rate, (sessions or [4])[0], out, as_json, specify(target, input_size), split, weights, threads, seed
        )
        return
    from cloud_server.bench_serve import SESSIONS
    from cloud_server.bench_serve import bench_serve as measure

    with progress("bench serve") as report:
        result = measure(
            target=specify(target, input_size),
            split=split,
            weights=weights,
            sessions=sessions or SESSIONS,
            rounds=rounds,
            seconds=seconds,
            threads=threads,
            max_batch=max_batch,
            max_in_flight=max_in_flight,
            seed=seed,
            progress=lambda done, total: report(done, total, "rounds"),
        )
    if _given(result, out, as_json):
        return
    rows = [[f"F2 alone, batches of {result['batch']}", f"{result['bound_fps']:.1f}", *[""] * 6]]
    for row in result["sessions"]:
        part = row["part"]
        rows.append(
            [
                str(row["sessions"]),
                f"{row['fps']:.1f}",
                f"{part['ratio']:.3f} [{part['low']:.3f}, {part['high']:.3f}]",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['batch']:.2f}",
                f"{row['clients']:.2f}",
                f"{row['part_left']['ratio']:.3f}",
            ]
        )
    head = ("sessions", "frames a second", "part of F2 alone", "p50, ms", "p99, ms", "frames a batch")
    table((*head, "clients' cores", "part of what they left"), rows)


def _soak(
    minutes: int,
    rate: float,
    sessions: int,
    out: Path | None,
    as_json: bool,
    target: str,
    split: str,
    weights: Path | None,
    threads: int,
    seed: int,
) -> None:
    from cloud_server.soak import soak as measure

    with progress("bench serve --soak") as report:
        result = measure(
            target=target,
            split=split,
            weights=weights,
            minutes=minutes,
            sessions=sessions,
            rate=rate,
            threads=threads,
            seed=seed,
            progress=lambda done, total: report(done, total, "minutes"),
        )
    if _given(result, out, as_json):
        return
    names = ("answers", "errors", "p50_ms", "p99_ms", "server_mib", "clients_mib", "server_cores")
    rows = [[str(i + 1), *(str(row[name]) for name in names)] for i, row in enumerate(result["minutes"])]
    table(("minute", *(name.replace("_", ", ") for name in names)), rows)
    growth = "" if result["growth_mib"] is None else f", memory grew by {result['growth_mib']} MiB in the last third"
    print(f"{result['answers']} answers, {result['errors']} errors{growth}")


@bench.command("faults")
@guarded("scenarios.faults.run", "cloud_server.bench", "splitsight.targets")
def bench_faults(
    out: Annotated[Path, typer.Option(help="Folder for faults.jsonl; a run there goes on.")],
    fault: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeatable; default: all, see docs/faults.md.")
    ] = None,
    fps: Annotated[float, typer.Option(min=1, help="Frames a second of the edges.")] = 10.0,
    outage: Annotated[float, typer.Option(min=0.5, help="Seconds that a fault lasts which ends.")] = 3.0,
    answer_timeout: Annotated[
        float, typer.Option(min=0.5, help="Seconds after which an edge takes a missing answer for a lost connection.")
    ] = 20.0,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    video: Video = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What is lost, said and how soon all is well again when servers, adversaries, links, clocks and disks fail.

    Real processes on this machine, one fault after another. Full disks need the right to mount a small one (root);
    without it they are left out, which their rows say.
    """
    from scenarios.faults.run import run_faults
    from scenarios.faults.stage import Pace

    with progress("bench faults") as report:
        rows = run_faults(
            out=out,
            only=fault or (),
            pace=Pace(fps=fps, outage=outage, answer_timeout=answer_timeout),
            target=specify(target, input_size),
            split=split,
            video=video,
            progress=lambda done, total: report(done, total, "faults"),
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    cells = [
        [
            row["fault"],
            *(str(row.get(name, "")) for name in ("frames", "acknowledged_lost", "unanswered", "recover_s", "code")),
            row.get("said") or row["note"],
        ]
        for row in rows
    ]
    table(("fault", "frames", "answers lost", "frames lost", "back after, s", "exit code", "said"), cells)


@bench.command("link")
@guarded("scenarios.link", "splitsight.targets")
def bench_link(
    out: Annotated[
        Path, typer.Option(help="Folder for rows.parquet, halves.parquet, summary.json; a measurement there goes on.")
    ],
    target: Target = "resnet18",
    splits: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Split points; default: all that the target names.")
    ] = None,
    networks: Annotated[
        str, typer.Option(metavar="A,B,…", help="Networks of `splitsight list networks`, or YAML files.")
    ] = "wifi,lte,wan",
    frames: Annotated[int, typer.Option(min=10, help="Frames measured for each pair.")] = 60,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Split at which the overhead is measured, on an unshaped connection; default: the first."),
    ] = None,
    video: Video = None,
    weights: Weights = None,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    defense: Defense = "identity",
    threads: OneThread = 1,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Latency of real processes over emulated networks, against what is predicted from both halves and the network.

    One frame in flight at a time. Needs a machine with two cores that does nothing else.
    """
    from scenarios.link import Setup
    from scenarios.link import bench_link as measure
    from splitsight import targets

    points = splits.split(",") if splits else targets.load(target, weights).points()
    with progress("bench link") as report:
        result = measure(
            Setup(target, weights, video, dtype.value, compression.value, defense, threads, seed),
            splits=points,
            networks=networks.split(","),
            out=out,
            frames=frames,
            calibrate=calibrate,
            progress=report,
        )
    if as_json:
        print(json.dumps(result, indent=2))
        return
    rows = []
    for pair in result["pairs"]:
        said, ratio = pair["predicted"], pair["ratio"]
        parts = [f"{said[key]:.1f}" for key in ("edge_ms", "network_ms", "cloud_ms", "overhead_ms", "total_ms")]
        share = f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
        rows.append([pair["split"], pair["network"], *parts, f"{pair['measured']['median_ms']:.1f}", share])
    head = (
        "split",
        "network",
        "edge, ms",
        "network",
        "cloud",
        "overhead",
        "predicted",
        "measured",
        "measured/predicted",
    )
    table(head, rows)
    near, pairs = result["within"]
    print(f"{near} of {pairs} pairs within {100 * result['aim']:.0f} %; {out / 'summary.json'}")
    if result["disturbed"]:
        print(
            "the halves alone took longer than real processes did: the machine was busy, measure again on a quiet one"
        )


def _given(result: dict[str, Any], out: Path | None, as_json: bool) -> bool:
    """Write a result to its file and to the terminal as JSON where that was asked for; whether the latter was."""
    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result, indent=2))
    return as_json


class Objective(StrEnum):
    """What tuning maximises."""

    fidelity = "fidelity"
    psnr = "psnr"
    ssim = "ssim"
    match = "match"


StillImages = Annotated[Path, typer.Option(help="Folder of PNG/JPEG, or a Parquet file in Hugging Face image format.")]
Inversions = Annotated[
    Path | None,
    typer.Option(help="Inversion network, a file or a folder of them; default: the package's and the cache's."),
]


@bench.command("tune")
@guarded("scenarios.tuning", "splitsight.targets")
def bench_tune(
    method: Annotated[str, typer.Argument(help="Attack; see `splitsight list attacks`.")],
    images: StillImages,
    out: Annotated[Path, typer.Option(help="Folder for trials.parquet and best.json; a tuning there is gone on with.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Split point; repeatable; default: all that the target names.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Values tried, the setting as it ships among them.")] = 16,
    limit: Annotated[int, typer.Option(min=1, help="Images attacked in each trial.")] = 8,
    tail: Annotated[bool, typer.Option("--tail/--head", help="Take the last images of --images, or the first.")] = True,
    objective: Annotated[
        Objective,
        typer.Option(help="What is maximised: fidelity is PSNR + 20·SSIM; match the reciprocal rank of the original."),
    ] = Objective.fidelity,
    match_features: Annotated[
        str,
        typer.Option(help="Where images are compared: target (the attacked network's penultimate layer) or pixels."),
    ] = "target",
    setting: Annotated[str | None, typer.Option(help="Setting to tune; default: the method's own choice.")] = None,
    frames: Frames = 4,
    defense: Defense = "identity",
    merge: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Put the result into this file of tuned settings; 'package' is the one that attacks read, "
            "adversary/attacks/tuned.json. Default: nowhere.",
        ),
    ] = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    prior: Prior = "small",
    inversions: Inversions = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print best.json.")] = False,
) -> None:
    """Choose a method's tuned setting on validation images, with equal effort for each method.

    Give every method the same --images, --limit, --split and --trials. Images that were tuned on must not be reported
    on: with one held-out shard, cut it in two.
    """
    from adversary.attacks.base import TUNED
    from scenarios.tuning import merge as put
    from scenarios.tuning import tune

    with progress(f"tune {method}") as report:
        result = tune(
            method,
            images=images,
            out=out,
            splits=split,
            defense=defense,
            count=trials,
            limit=limit,
            tail=tail,
            objective=objective.value,
            match_features=match_features,
            setting=setting,
            frames=frames,
            seed=seed,
            target=specify(target, input_size),
            weights=weights,
            prior=prior,
            inversions=inversions,
            threads=threads,
            device=device,
            progress=report,
        )
    if merge is not None:
        put(result, TUNED if merge == "package" else Path(merge))
    if as_json:
        print((out / "best.json").read_text())
        return
    chosen = {"any": result["any"], **result["splits"]}
    table(
        ("split", "trial", objective.value, "as shipped", "changes"),
        [
            [where, str(best["trial"]), f"{best['score']:.3f}", f"{best['first']:.3f}", json.dumps(best["changes"])]
            for where, best in chosen.items()
        ],
    )


@bench.command("averaging")
@guarded("scenarios.defend.averaging", "splitsight.targets")
def bench_averaging(
    images: StillImages,
    out: Annotated[Path, typer.Option(help="Folder for averaging.parquet, summary.json, index.html; gone on with.")],
    split: Split = "L8",
    defenses: Annotated[
        str, typer.Option(help="Noise that is drawn for each frame, with a ; between two.")
    ] = "noise:ratio=0.5;noise:ratio=1;noise:ratio=2",
    frames: Annotated[str, typer.Option(help="Numbers of frames.")] = "1,2,4,8,16,32,64",
    attack: Annotated[
        str, typer.Option(metavar="NAME[:SETTING]", help="White-box attack, which is told the defence.")
    ] = "best:faithful",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value for one of the setting's; repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images; the last ones of --images.")] = 16,
    target: Target = "resnet18",
    prior: Prior = "small",
    inversions: Inversions = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """What a scene that stands still gives away through noise: quality against the number of frames, beside σ/√T."""
    import torch

    from scenarios.defend.averaging import averaging

    if threads:
        torch.set_num_threads(threads)
    with progress("averaging") as report:
        averaging(
            images=images,
            out=out,
            target=target,
            weights=weights,
            split=split,
            defenses=[text.strip() for text in defenses.split(";") if text.strip()],
            frames=_counts(frames),
            attack=attack,
            changes=changed(change or []),
            limit=limit,
            prior=prior,
            inversions=inversions,
            seed=seed,
            device=device,
            progress=report,
        )
    print((out / "summary.json").read_text() if as_json else out / "index.html")


@bench.command("prior")
@guarded("scenarios.prior_quality")
def bench_prior(
    priors: Annotated[list[str], typer.Argument(help="Names of `splitsight list priors`, or folders.")],
    images: StillImages,
    out: Annotated[Path, typer.Option(help="Folder for summary.json and pictures of 64 samples each.")],
    evaluator: Annotated[
        str, typer.Option(help="Classifier, a name or a folder, in whose features samples and images are compared.")
    ] = "efficientnet-lite0",
    steps: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of sampling steps.")] = "4,8,30",
    count: Annotated[int, typer.Option(min=4, help="Samples; --images has to hold twice as many.")] = 2000,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """How good priors are without an attack: Fréchet and kernel distance of samples, held-out images denoised."""
    import torch

    from scenarios.prior_quality import bench_prior as measure
    from splitsight.devices import pick_device

    if threads:
        torch.set_num_threads(threads)
    with progress("bench prior") as report:
        result = measure(
            priors=priors,
            images=images,
            out=out,
            evaluator=evaluator,
            steps=_counts(steps),
            count=count,
            seed=seed,
            device=pick_device(device),
            progress=report,
        )
    if _given(result, out / "summary.json", as_json):
        return
    rows = [["other held-out images", "", *_distances(result["other_images"]), ""]]
    for row in result["priors"]:
        errors = ", ".join(f"{t:g}: {error:.4f}" for t, error in row["denoising"].items())
        rows.append([row["prior"], "its autoencoder alone", *_distances(row["autoencoder"]), errors])
        rows += [[row["prior"], f"{number} steps", *_distances(found), ""] for number, found in row["samples"].items()]
    table(("prior", "images", "Fréchet", "kernel", "error of denoised latents, by t"), rows)
    print(f"distances in the features of {result['evaluator']}, {result['count']} images each; {out / 'summary.json'}")


@bench.command("denoising")
@guarded("scenarios.prior_at_size")
def bench_denoising(
    prior: Annotated[str, typer.Argument(help="Name of `splitsight list priors`, or folder.")],
    images: StillImages,
    out: Annotated[Path, typer.Option(help="Folder for summary.json and denoising-SIZE.png.")],
    size: Annotated[int, typer.Option(min=1, help="Pixels a side, more than the prior's own.")] = 224,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 32,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """What a prior's denoisers gain on larger images than it was trained on, and whether tiles show."""
    import torch

    from scenarios.prior_at_size import bench_denoising as measure
    from splitsight.devices import pick_device

    if threads:
        torch.set_num_threads(threads)
    with progress("bench denoising") as report:
        result = measure(
            prior=prior,
            images=images,
            out=out,
            size=size,
            count=count,
            seed=seed,
            device=pick_device(device),
            progress=report,
        )
    if _given(result, out / "summary.json", as_json):
        return
    rows = [
        [f"{t:g}", way, f"{of['error']:.4f}", f"{of['psnr']:.2f} dB", f"{of['seams']:+.2f} dB"]
        for t, ways in result["latents"].items()
        for way, of in ways.items()
    ]
    table(("t", "latents denoised", "error", "image", "seams"), rows)
    print(f"{result['count']} images of {size} pixels; the autoencoder alone {result['autoencoder']:.2f} dB")
    if result["pixels"] is not None:
        print("pixels denoised: " + ", ".join(f"σ = {s:g} +{gain:.2f} dB" for s, gain in result["pixels"].items()))
    print(out / "summary.json")


def _distances(found: dict[str, float]) -> list[str]:
    return [f"{found['frechet']:.1f}", f"{found['kernel']:.4f} ± {found['kernel_std']:.4f}"]


@bench.command("privacy")
@guarded("scenarios.defend.privacy", "splitsight.targets")
def bench_privacy(
    images: StillImages,
    out: Annotated[Path, typer.Option(help="Folder for privacy.parquet and summary.json; gone on with.")],
    split: Split = "L8",
    draws: Annotated[int, typer.Option(min=10_000, help="Of each of two frames, for a distinguisher.")] = 20_000,
    limit: Annotated[int, typer.Option(min=2, help="Images; the last ones of --images.")] = 64,
    target: Target = "resnet18",
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Differential privacy of a split's features: noise against theory, a stream's ε, what a distinguisher shows."""
    import torch

    from scenarios.defend.privacy import privacy
    from splitsight import targets

    if threads:
        torch.set_num_threads(threads)
    with progress("privacy") as report:
        rows = privacy(
            target=targets.load(target, weights),
            split=split,
            images=images,
            out=out,
            draws=draws,
            limit=limit,
            seed=seed,
            progress=report,
        )
    if as_json:
        print((out / "summary.json").read_text())
        return
    shown = ("frame_epsilon", "stream_epsilon", "measured", "expected", "p", "shown_worst", "shown_real", "shown_wrong")
    heads = [
        "noise",
        "ε",
        "ε of 1,000",
        "σ drawn",
        "σ said",
        "p",
        "shown",
        "shown, real frames",
        "shown, half the noise",
    ]
    table(heads, [[row["law"], *(f"{row[key]:.4g}" for key in shown)] for row in rows])


def _counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--frames takes numbers such as 1,4,16, not '{text}'") from error
    if any(count < 1 for count in found):
        raise UserError(f"--frames takes numbers from 1 on, not '{text}'")
    return found


@bench.command("attack")
@guarded("scenarios.benchmark", "scenarios.speed", "splitsight.targets")
def bench_attack(
    images: StillImages,
    out: Annotated[
        Path, typer.Option(help="Folder for curves.parquet, summary.json, curves.html; a measurement there goes on.")
    ],
    split: Split = "L8",
    limit: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    tail: Annotated[
        bool, typer.Option("--tail/--head", help="Take the last images of --images, or the first.")
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD:SETTING",
            help="What is measured; repeatable; default: do, db and dmb in paper and tuned, and best:faithful.",
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="METHOD:SETTING", help="Whose final quality is to be reached.")
    ] = "dmb:paper",
    subject: Annotated[str, typer.Option(metavar="METHOD:SETTING", help="Who is to reach it.")] = "best:faithful",
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="For a trial: at most so many optimiser steps; the result says what that cut."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images solved side by side; they share the time.")] = 1,
    target: Target = "resnet18",
    input_size: InputSize = None,
    prior: Prior = "small",
    inversions: Inversions = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Quality against time and against model evaluations, all methods on the same images in one run.

    Says when the subject first has the reference's final mean PSNR and SSIM, as parts of the reference's time and
    evaluations. Whole paper runs take minutes an image on a CPU.
    """
    from scenarios.benchmark import CONTENDERS
    from scenarios.benchmark import bench_attack as measure
    from scenarios.speed import head, sentences, write_page
    from scenarios.speed import table as figures

    with progress("bench attack") as report:
        summary, rows = measure(
            images=images,
            out=out,
            split=split,
            limit=limit,
            tail=tail,
            methods=method or CONTENDERS,
            reference=reference.replace(":", " "),
            subject=subject.replace(":", " "),
            iterations=iterations,
            batch=batch,
            seed=seed,
            target=specify(target, input_size),
            weights=weights,
            prior=prior,
            inversions=inversions,
            threads=threads,
            device=device,
            progress=report,
        )
    write_page(out / "curves.html", summary, rows)
    if as_json:
        print((out / "summary.json").read_text())
        return
    table(head(summary), figures(summary))
    for sentence in sentences(summary.speed) if summary.speed else []:
        print(sentence)
    print(out / "curves.html")
