"""The command line, ``splitsight``.

Commands import what they need when they run, so that ``--help`` answers at once. A :class:`UserError` is one
sentence on standard error and exit code 2 (or its own); Ctrl-C is 130.
"""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from scenarios.interrupt import INTERRUPTED, interruptible
from scenarios.processes import PREFIX, die_with_parent
from splitsight.errors import UserError

__all__ = ["app", "explain", "main"]

P = ParamSpec("P")


class Part(StrEnum):
    """What of a prior to train."""

    autoencoder = "autoencoder"
    denoiser = "denoiser"
    all = "all"


class Codec(StrEnum):
    """Numbers on the wire."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


class Compression(StrEnum):
    """Compression on the wire."""

    none = "none"
    zstd = "zstd"


class Solver(StrEnum):
    """How a window is refined."""

    map = "map"
    pnp = "pnp"
    dmb = "dmb"


class Live(StrEnum):
    """What a live adversary knows."""

    white_box = "white-box"
    net_best = "net-best"


class Threat(StrEnum):
    """Threat models of the demonstration."""

    white_box = "white-box"
    black_box = "black-box"


class Kind(StrEnum):
    """What `list` lists."""

    targets = "targets"
    splits = "splits"
    attacks = "attacks"
    defenses = "defenses"
    priors = "priors"
    scenarios = "scenarios"


def explain(error: OSError) -> str:
    """One sentence for an operating-system error that nobody closer to it has explained."""
    text = str(error)
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return f"the disk is full{where}: free some space and run again; what was written so far stays readable"
    what = (error.strerror or text).splitlines()[0].rstrip(".")
    return f"{what}{where}: check that the place exists and may be used"


def _say(sentence: str) -> None:
    print(PREFIX + " ".join(sentence.split()), file=sys.stderr, flush=True)


def _guarded(*modules: str) -> Callable[[Callable[P, int | None]], Callable[P, None]]:
    """Turn what a command raises into a sentence and an exit code; what it returns is the exit code.

    Args:
        modules: what the command is going to import, loaded before Ctrl-C raises ``KeyboardInterrupt``. Without any,
            Ctrl-C ends the process at once until the command itself asks otherwise.
    """

    def decorate(command: Callable[P, int | None]) -> Callable[P, None]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                _load(modules)
                with interruptible() if modules else nullcontext():
                    code = command(*args, **kwargs) or 0
            except UserError as error:
                _say(str(error))
                code = error.code
            except KeyboardInterrupt:
                code = INTERRUPTED
            except BrokenPipeError:
                raise
            except OSError as error:
                _say(explain(error))
                code = 1
            raise typer.Exit(code)

        return run

    return decorate


def _load(modules: tuple[str, ...]) -> None:
    """Import modules, and with the targets every family of them (which the first look-up would import)."""
    for name in modules:
        importlib.import_module(name)
    if "splitsight.targets" in modules:
        sys.modules["splitsight.targets"].TARGETS.names()


app = typer.Typer(
    name="splitsight",
    help="What an untrusted cloud can see when a network is split between an edge and a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train = typer.Typer(
    help="Train the embedded models again; resumes in --out, keeps to its budget.", no_args_is_help=True
)
bench = typer.Typer(help="Measure what parts of the testbed cost.", no_args_is_help=True)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")

Target = Annotated[str, typer.Option(help="Network that is split; see `splitsight list targets`.")]
Split = Annotated[str, typer.Option(help="Split point; see `splitsight list splits`.")]
Prior = Annotated[str, typer.Option(help="Generative prior: a name, or a folder in diffusers layout.")]
Inversion = Annotated[Path | None, typer.Option(help="Inversion network, a file; default: the embedded one.")]
Weights = Annotated[Path | None, typer.Option(help="Weights of the target, a file; default: the embedded ones.")]
Video = Annotated[
    str | None,
    typer.Option(help="Video file, image folder, camera index or URL; default: a clip from an installed package."),
]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames of a window (K).")]
Stride = Annotated[float, typer.Option(help="Seconds between the frames of a window.")]
Fps = Annotated[float, typer.Option(help="Frames a second.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one a core.")]
OneThread = Annotated[int, typer.Option(min=1, help="CPU threads.")]
GalleryOption = Annotated[
    Path | None,
    typer.Option(
        help="Distractors, a folder of PNG/JPEG or a Parquet file: is each original found among them? Default: none."
    ),
]
GallerySize = Annotated[
    int, typer.Option(min=2, help="With --gallery: images that an original is found among, itself included.")
]
GalleryFeatures = Annotated[
    str,
    typer.Option(help="With --gallery: what is compared, pixels or target (the attacked network's penultimate layer)."),
]
CodecOption = Annotated[Codec, typer.Option(help="Numbers on the wire.")]
CompressionOption = Annotated[Compression, typer.Option(help="Compression on the wire.")]


@app.command()
@_guarded()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of the stream, in seconds.")] = 30.0,
    fps: Fps = 2.0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/demo-TIMESTAMP.")] = None,
    video: Video = None,
    target: Target = "resnet18",
    split: Split = "L8",
    prior: Prior = "small",
    inversion: Inversion = None,
    threat: Annotated[
        Threat,
        typer.Option(help="White-box: the adversary has F1. Black-box: only a network that learnt from an oracle."),
    ] = Threat.white_box,
    network: Annotated[
        Path | None,
        typer.Option(help="Black-box: the net-best network, a file; default: the package's, else the cache's."),
    ] = None,
    solver: Annotated[
        Solver,
        typer.Option(help="Of a window: map (most probable latent), pnp (with the denoiser) or dmb (as published)."),
    ] = (Solver.map),
    frames: Frames = 4,
    stride: Stride = 0.5,
    seed: Seed = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the adversary, at low priority; default: one a core.")
    ] = None,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    gallery: GalleryOption = None,
    gallery_size: GallerySize = 1000,
    gallery_features: GalleryFeatures = "pixels",
    web: Annotated[bool, typer.Option("--web/--no-web", help="Open the report in a browser at the end.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Play a video through a split network and reconstruct it live at the server's tap.

    Starts a cloud server, an adversary and an edge client, and leaves one folder with a video, a grid,
    the recording, figures and a page.
    """
    from scenarios.demo import DemoOptions, run_demo

    options = DemoOptions(
        out=out,
        seconds=seconds,
        fps=fps,
        video=video,
        target=target,
        split=split,
        prior=prior,
        inversion=inversion,
        threat=threat.value,
        network=network,
        solver=solver.value,
        frames=frames,
        stride=stride,
        seed=seed,
        threads=threads,
        dtype=dtype.value,
        compression=compression.value,
        gallery=gallery,
        gallery_size=gallery_size,
        gallery_features=gallery_features,
        web=web,
        overwrite=overwrite,
    )
    print(run_demo(options))


@app.command()
@_guarded(
    "cloud_server.server", "cloud_server.model", "cloud_server.sessions", "cloud_server.tap", "splitsight.targets"
)
def cloud(
    target: Target = "resnet18",
    split: Split = "L8",
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50051,
    tap_port: Annotated[int | None, typer.Option(help="Port of the tap, 0 for a free one; default: no tap.")] = None,
    tap_host: Annotated[str, typer.Option(help="Address of the tap; only loopback goes without token and TLS.")] = (
        "127.0.0.1"
    ),
    tap_token: Annotated[
        str | None,
        typer.Option(envvar="SPLITSIGHT_TAP_TOKEN", help="Bearer token that subscribers must send; default: none."),
    ] = None,
    tap_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain of the tap; default: no TLS.")] = None,
    tap_key: Annotated[Path | None, typer.Option(help="PEM private key of the tap; default: no TLS.")] = None,
    tap_ring: Annotated[int, typer.Option(min=1, help="Frames kept for a subscriber that does not read.")] = 64,
    max_subscribers: Annotated[int, typer.Option(min=1, help="Subscribers of the tap at once.")] = 8,
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus metrics on loopback, 0 for a free port; default: off.")
    ] = None,
    threads: Threads = None,
    batch_window: Annotated[
        float, typer.Option(min=0, help="Longest that a frame waits for those of other sessions, in milliseconds.")
    ] = 2.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Frames computed together.")] = 8,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 32,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Frames of one session that may wait for an answer.")] = 8,
    max_message: Annotated[float, typer.Option(help="Largest message, in MiB.")] = 16.0,
    drain: Annotated[float, typer.Option(min=0, help="Longest that a shutdown waits for frames, in seconds.")] = 10.0,
    resume: Annotated[
        float, typer.Option(min=0, help="How long the tap waits for a lost session to come back, in seconds.")
    ] = 30.0,
) -> int:
    """Serve the second part of a network; with a tap if asked for."""
    from cloud_server.options import CloudOptions

    options = CloudOptions(
        target=target,
        split=split,
        weights=weights,
        host=host,
        port=port,
        tap_port=tap_port,
        tap_host=tap_host,
        tap_token=tap_token,
        tap_cert=tap_cert,
        tap_key=tap_key,
        tap_ring=tap_ring,
        max_subscribers=max_subscribers,
        metrics_port=metrics_port,
        threads=threads,
        batch_window_ms=batch_window,
        max_batch=max_batch,
        max_sessions=max_sessions,
        max_in_flight=max_in_flight,
        max_message_mb=max_message,
        drain_seconds=drain,
        resume_seconds=resume,
    )
    from cloud_server.server import serve

    return serve(options)


@app.command()
@_guarded("edge_client.client", "splitsight.data", "splitsight.targets")
def edge(
    server: Annotated[str, typer.Option(help="Cloud server, HOST:PORT.")] = "127.0.0.1:50051",
    video: Video = None,
    target: Target = "resnet18",
    split: Split = "L8",
    weights: Weights = None,
    fps: Fps = 2.0,
    seconds: Annotated[
        float | None, typer.Option(help="Length of the run at most, in seconds; default: all the source has.")
    ] = None,
    loop: Annotated[
        bool | None,
        typer.Option(
            "--loop/--no-loop", help="Start a stored clip again at its end; default: where --seconds needs it."
        ),
    ] = None,
    pace: Annotated[bool, typer.Option("--pace/--no-pace", help="Keep the rate in real time, or send at once.")] = True,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    defense: Annotated[str, typer.Option(help="What is done to the features; see `splitsight list defenses`.")] = (
        "identity"
    ),
    in_flight: Annotated[int, typer.Option(min=1, help="Frames that may wait for an answer.")] = 8,
    threads: OneThread = 1,
    report: Annotated[
        Path | None, typer.Option(help="File for one JSON line an answered frame; default: none.")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder for the model's inputs as PNG, never sent anywhere; default: none.")
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a server that is not up yet.")] = 5.0,
    give_up: Annotated[float, typer.Option(help="Seconds to try to take up a lost connection.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Run the first part of a network on a video and stream the features."""
    from edge_client.client import EdgeOptions, run_edge

    done = run_edge(
        EdgeOptions(
            server=server,
            video=video,
            target=target,
            split=split,
            weights=weights,
            fps=fps,
            seconds=seconds,
            loop=loop,
            pace=pace,
            dtype=dtype.value,
            compression=compression.value,
            defense=defense,
            in_flight=in_flight,
            threads=threads,
            report=report,
            truth=truth,
            wait_s=wait,
            give_up_s=give_up,
        )
    )
    if as_json:
        print(json.dumps(done.summary()))
    else:
        print(
            f"{done.answered} of {done.captured} frames answered, {done.fps:.2f} a second, "
            f"round trip {done.p50_ms:.1f} ms (p99 {done.p99_ms:.1f} ms)"
        )
    return done.exit_code


@app.command()
@_guarded("edge_client.oracle", "splitsight.data", "splitsight.targets")
def oracle(
    target: Target = "resnet18",
    split: Split = "L8",
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback goes without token and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50053,
    token: Annotated[
        str | None,
        typer.Option(envvar="SPLITSIGHT_ORACLE_TOKEN", help="Bearer token that clients must send; default: none."),
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; default: no TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key; default: no TLS.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="Pictures answered in all.")] = 5120,
    rate: Annotated[float, typer.Option(min=0, help="Pictures answered a second; 0 for no limit.")] = 200.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures of one query.")] = 32,
    max_side: Annotated[int, typer.Option(min=1, help="Longer side of a picture, in pixels.")] = 512,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    defense: Annotated[str, typer.Option(help="What is done to the features; see `splitsight list defenses`.")] = (
        "identity"
    ),
    metrics_port: Annotated[
        int | None, typer.Option(help="Prometheus metrics on loopback, 0 for a free port; default: off.")
    ] = None,
    threads: OneThread = 1,
) -> int:
    """Answer an attacker's queries with the first part of a network: images in, features out, on a budget."""
    from edge_client.oracle import OracleOptions, serve_oracle

    return serve_oracle(
        OracleOptions(
            target=target,
            split=split,
            weights=weights,
            host=host,
            port=port,
            token=token,
            cert=cert,
            key=key,
            budget=budget,
            rate=rate,
            max_batch=max_batch,
            max_side=max_side,
            dtype=dtype.value,
            compression=compression.value,
            defense=defense,
            metrics_port=metrics_port,
            threads=threads,
        )
    )


@app.command()
@_guarded("adversary.live.run")
def adversary(
    tap: Annotated[str, typer.Option(help="Tap of the cloud server, HOST:PORT.")],
    out: Annotated[Path, typer.Option(help="Folder for the recording, images and live.jsonl.")],
    attack: Annotated[
        Live,
        typer.Option(help="white-box: F1 is known. net-best: nothing of F1 but what an oracle answered (black-box)."),
    ] = Live.white_box,
    network: Annotated[
        Path | None,
        typer.Option(help="net-best: its network, a file; default: the package's, else the cache's."),
    ] = None,
    target: Target = "resnet18",
    split: Split = "L8",
    prior: Prior = "small",
    solver: Annotated[
        Solver,
        typer.Option(help="Of a window: map (most probable latent), pnp (with the denoiser) or dmb (as published)."),
    ] = (Solver.map),
    frames: Frames = 4,
    stride: Stride = 0.5,
    samples: Annotated[int, typer.Option(min=1, help="Independent answers that pnp averages.")] = 1,
    prompt: Annotated[str, typer.Option(help="Text prior; default: none.")] = "",
    threads: OneThread = 1,
    nice: Annotated[int, typer.Option(min=0, max=19, help="How much to lower this process's priority.")] = 10,
    margin: Annotated[
        float, typer.Option(min=0, max=0.9, help="Part of a window's period left unused before its deadline.")
    ] = 0.15,
    token: Annotated[
        str | None, typer.Option(envvar="SPLITSIGHT_TAP_TOKEN", help="Bearer token of the tap; default: none.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificate authority of the tap, PEM; default: no TLS.")] = None,
    session: Annotated[str, typer.Option(help="Only this session; default: the first that shows up.")] = "",
    inversion: Inversion = None,
    weights: Weights = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a tap that is away.")] = 10.0,
    seed: Seed = 0,
) -> int:
    """Reconstruct what a tapped stream shows, while it runs."""
    from adversary.live.engine import WindowSettings
    from adversary.live.run import LiveOptions, run_live

    # each threat model's modules are loaded alone, so that a black-box process has none that could build F1
    white = attack is Live.white_box
    _load(("adversary.live.whitebox", "splitsight.targets") if white else ("adversary.live.blackbox",))
    know = sys.modules[f"adversary.live.{'whitebox' if white else 'blackbox'}"].know
    return run_live(
        LiveOptions(
            tap=tap,
            out=out,
            target=target,
            split=split,
            prior=prior,
            frames=frames,
            stride=stride,
            settings=WindowSettings.of(solver.value, samples=samples, seed=seed),
            threads=threads,
            nice=nice,
            margin=margin,
            prompt=prompt,
            token=token,
            ca=ca,
            session=session,
            inversion=inversion,
            weights=weights,
            network=network,
            patience=patience,
        ),
        know,
    )


@app.command()
@_guarded("adversary.attack", "splitsight.targets")
def attack(
    method: Annotated[str, typer.Argument(help="Attack; see `splitsight list attacks`.")],
    out: Annotated[Path, typer.Option(help="Folder for summary.json, rows.parquet, grid.png and reconstructions/.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of PNG/JPEG, or a Parquet file in Hugging Face image format.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="Video file, image folder, camera index or URL.")] = None,
    recording: Annotated[Path | None, typer.Option(help="Folder that a live adversary recorded.")] = None,
    target: Target = "resnet18",
    split: Split = "L8",
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
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Reconstruct images from their features: of still images, a video, or a recording."""
    from adversary.attack import run_attack

    if not prompt and (alpha is not None or lambda_txt is not None):
        raise UserError("--alpha and --lambda-txt weigh a text prior: give --prompt with them")
    with _progress(f"{method} at {split}") as progress:
        folder = run_attack(
            method,
            images=images,
            video=video,
            recording=recording,
            target=target,
            split=split,
            limit=limit,
            seed=seed,
            setting=setting,
            time_budget=time_budget,
            out=out,
            prior=prior,
            threads=threads,
            frames=frames,
            stride=stride,
            fps=fps,
            prompts=prompt,
            changes=_changes(change or [], alpha=alpha, lambda_txt=lambda_txt, smoothing=lambda_c),
            truth=truth,
            gallery=gallery,
            gallery_size=gallery_size,
            gallery_features=gallery_features,
            weights=weights,
            inversion=inversion,
            network=network,
            progress=progress,
        )
    print((folder / "summary.json").read_text() if as_json else folder)


def _changes(given: list[str], **named: float | None) -> dict[str, Any]:
    """Values out of NAME=VALUE pairs and of options that stand for one name each."""
    changes: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"--set takes NAME=VALUE, not '{pair}'")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes | {name: value for name, value in named.items() if value is not None}


@app.command("run")
@_guarded("scenarios.run.run", "splitsight.targets")
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
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each; default: the cores, shared out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all draws of the attacks; default: the scenario's.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Independent classifier, a name or a folder, or none; default: the scenario's."),
    ] = None,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Run a scenario: a whole table of attacks, measured, with a report. Goes on where it was stopped."""
    from scenarios.run.run import RunOptions
    from scenarios.run.run import run_scenario as run

    folder = run(
        RunOptions(
            scenario=scenario,
            out=out,
            data=data,
            rivals=rivals,
            train_data=train_data,
            judge=judge,
            quick=quick,
            limit=limit,
            seed=seed,
            workers=workers,
            threads=threads,
            overwrite=overwrite,
        )
    )
    print((folder / "summary.json").read_text() if as_json else folder / "index.html")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal, nothing elsewhere; what it yields takes (done, total, what is going on)."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=f"{title}: {what}")


Data = Annotated[Path, typer.Option(help="Training data: Parquet shards in Hugging Face image format and classes.tsv.")]
TrainOut = Annotated[Path, typer.Option(help="Folder of the run; a run that is there is resumed.")]
Minutes = Annotated[float | None, typer.Option(help="Time budget in minutes, over resumed runs; default: none.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Budget in optimiser steps; default: none.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@train.command("target")
@_guarded("splitsight.targets.training", "splitsight.targets")
def train_target(
    data: Data,
    out: TrainOut,
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    start: Annotated[
        Path | None, typer.Option(help="Earlier weights to go on from, a file; default: random ones.")
    ] = None,
) -> None:
    """Train the target network."""
    from splitsight.targets.training import train_target_command

    _budget(minutes, steps)
    print(
        train_target_command(
            data=data, out=out, minutes=minutes, steps=steps, device=device, seed=seed, threads=threads, start=start
        )
    )


@train.command("judge")
@_guarded("splitsight.judges.training", "splitsight.targets")
def train_judge(
    data: Data,
    out: TrainOut,
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train the judge: the independent classifier that measures what reconstructions give away."""
    from splitsight.judges.training import train_judge_command

    _budget(minutes, steps)
    print(
        train_judge_command(data=data, out=out, minutes=minutes, steps=steps, device=device, seed=seed, threads=threads)
    )


@train.command("prior")
@_guarded("adversary.training", "splitsight.targets")
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
) -> None:
    """Train the generative prior: autoencoder, then denoiser and text encoder."""
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
        )
    )


class NetMethod(StrEnum):
    """Black-box networks."""

    net_do = "net-do"
    net_db = "net-db"
    net_dmb = "net-dmb"
    net_flow = "net-flow"
    net_best = "net-best"


@train.command("inversion")
@_guarded("adversary.blackbox.command")
def train_inversion(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Training data: Parquet shards in Hugging Face image format and classes.tsv; with --oracle also a "
            "Parquet file, a folder of PNG/JPEG, or with --frames one of videos."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; a run that is there is resumed. With --oracle the default is the cache, where "
            "`splitsight attack` finds the network."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Network that is split; default: resnet18, or with --oracle whatever answers."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split point; default: L8, or with --oracle whatever answers.")
    ] = None,
    prior: Prior = "small",
    minutes: Minutes = None,
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    threads: Threads = None,
    start: Annotated[Path | None, typer.Option(help="Earlier network to go on from, a file; default: none.")] = None,
    width: Annotated[
        int | None, typer.Option(min=8, help="With F1 at hand: channels of the network; default: 80.")
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(help="Black-box: learn from what this oracle answers, HOST:PORT, and from nothing else of F1."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Black-box: folder of the query pairs, kept and reused; default: one in the cache."),
    ] = None,
    method: Annotated[NetMethod, typer.Option(help="Black-box: which network.")] = NetMethod.net_db,
    queries: Annotated[int, typer.Option(min=1, help="Black-box: pictures to train on.")] = 4096,
    test_queries: Annotated[
        int, typer.Option(min=1, help="Black-box: pictures to measure with, asked about too.")
    ] = 1024,
    unasked: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Black-box, net-best: further pictures of --data, at most, to learn from without asking about them; "
            "default: 8192.",
        ),
    ] = None,
    setting: Annotated[
        str | None, typer.Option(help="Black-box: tuned or paper, how it is trained; default: tuned.")
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
    token: Annotated[
        str | None, typer.Option(envvar="SPLITSIGHT_ORACLE_TOKEN", help="Bearer token of the oracle; default: none.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificate authority of the oracle, PEM; default: no TLS.")] = None,
    patience: Annotated[float, typer.Option(min=0, help="Seconds to wait for an oracle that is away.")] = 10.0,
) -> None:
    """Train an inversion network: the preview's, with F1 at hand, or with --oracle a black-box attacker's."""
    if oracle is None and pairs is None:
        from adversary.training import train_inversion_command

        if data is None or out is None:
            raise UserError("training with F1 at hand needs --data and --out; without F1, give --oracle HOST:PORT")
        _budget(minutes, steps)
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
                split=split or "L8",
                prior=prior,
                start=start,
                width=width,
            )
        )
        return
    from adversary.blackbox.command import PairOptions, train_pairs_command

    if start is not None or width is not None:
        given = "--start" if start is not None else "--width"
        raise UserError(
            f"{given} goes with training that has F1 at hand: leave it out (a black-box run resumes in --out)"
        )
    options = PairOptions(
        method=method.value,
        oracle=oracle,
        data=data,
        pairs=pairs,
        queries=queries,
        test_queries=test_queries,
        unasked=unasked,
        out=out,
        prior=prior,
        setting=setting,
        changes=_changes(change or []),
        frames=frames,
        mixing=mixing,
        stride=stride,
        text=text,
        target=target,
        split=split,
        token=token,
        ca=ca,
        patience=patience,
        minutes=minutes,
        steps=steps,
        device=device,
        seed=seed,
        threads=threads,
    )
    print(train_pairs_command(options, lambda: _progress(f"queries for {method.value}")))


def _budget(minutes: float | None, steps: int | None) -> None:
    if minutes is None and steps is None:
        raise UserError("a training run needs a budget: give --minutes or --steps")


@bench.command("tap")
@_guarded("cloud_server.bench", "splitsight.targets")
def bench_tap(
    out: Annotated[Path | None, typer.Option(help="File for the result as JSON; default: none.")] = None,
    target: Target = "resnet18",
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

    with _progress("bench tap") as progress:
        result = measure(
            target=target,
            split=split,
            weights=weights,
            rounds=rounds,
            requests=requests,
            rate=rate,
            threads=threads,
            seed=seed,
            progress=lambda done, total: progress(done, total, "rounds"),
        )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        print(json.dumps(result, indent=2))
        return
    rows = []
    for arm, figures in result["arms"].items():
        ratios = result["ratios"].get(arm, {})
        cells = [
            f"{r['ratio']:.4f} [{r['low']:.4f}, {r['high']:.4f}]" for r in (ratios.get(q) for q in ("p50", "p99")) if r
        ]
        rows.append([arm, str(figures["n"]), f"{figures['p50_ms']:.3f}", f"{figures['p99_ms']:.3f}", *cells])
    _table(("subscriber", "requests", "p50, ms", "p99, ms", "p50 ratio to none", "p99 ratio to none"), rows)


class Objective(StrEnum):
    """What tuning maximises."""

    fidelity = "fidelity"
    psnr = "psnr"
    ssim = "ssim"
    match = "match"


StillImages = Annotated[Path, typer.Option(help="Folder of PNG/JPEG, or a Parquet file in Hugging Face image format.")]
Inversions = Annotated[
    Path | None,
    typer.Option(help="Folder of inversion networks, TARGET-SPLIT-PRIOR.safetensors; default: the embedded ones."),
]


@bench.command("tune")
@_guarded("adversary.tuning", "splitsight.targets")
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
    merge: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Put the result into this file of tuned settings; 'package' is the one that attacks read, "
            "adversary/methods/tuned.json. Default: nowhere.",
        ),
    ] = None,
    target: Target = "resnet18",
    prior: Prior = "small",
    inversions: Inversions = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print best.json.")] = False,
) -> None:
    """Choose a method's tuned setting on validation images, with equal effort for each method.

    Give every method the same --images, --limit, --split and --trials. Images that were tuned on must not be reported
    on: take the tail of a training shard here, and the held-out shard for figures.
    """
    from adversary.methods.base import TUNED
    from adversary.tuning import merge as put
    from adversary.tuning import tune

    with _progress(f"tune {method}") as progress:
        result = tune(
            method,
            images=images,
            out=out,
            splits=split,
            count=trials,
            limit=limit,
            tail=tail,
            objective=objective.value,
            match_features=match_features,
            setting=setting,
            frames=frames,
            seed=seed,
            target=target,
            weights=weights,
            prior=prior,
            inversions=inversions,
            threads=threads,
            progress=progress,
        )
    if merge is not None:
        put(result, TUNED if merge == "package" else Path(merge))
    if as_json:
        print((out / "best.json").read_text())
        return
    chosen = {"any": result["any"], **result["splits"]}
    _table(
        ("split", "trial", objective.value, "as shipped", "changes"),
        [
            [where, str(best["trial"]), f"{best['score']:.3f}", f"{best['first']:.3f}", json.dumps(best["changes"])]
            for where, best in chosen.items()
        ],
    )


@bench.command("attack")
@_guarded("adversary.bench", "scenarios.speed", "splitsight.targets")
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
    prior: Prior = "small",
    inversions: Inversions = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Quality against time and against model evaluations, all methods on the same images in one run.

    Says when the subject first has the reference's final mean PSNR and SSIM, as parts of the reference's time and
    evaluations. Whole paper runs take minutes an image on a CPU.
    """
    from adversary.bench import CONTENDERS
    from adversary.bench import bench_attack as measure
    from scenarios.speed import HEAD, sentences, table, write_page

    with _progress("bench attack") as progress:
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
            target=target,
            weights=weights,
            prior=prior,
            inversions=inversions,
            threads=threads,
            progress=progress,
        )
    write_page(out / "curves.html", summary, rows)
    if as_json:
        print((out / "summary.json").read_text())
        return
    _table(HEAD, table(summary))
    for sentence in sentences(summary.speed) if summary.speed else []:
        print(sentence)
    print(out / "curves.html")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: brackets are no markup
    Console().print(table)


@app.command("list")
@_guarded()
def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    target: Annotated[str, typer.Option(help="Whose splits.")] = "resnet18",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List targets, splits, attacks, defenses, priors or scenarios."""
    from scenarios.listing import entries

    rows = entries(kind.value, target)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"no {kind.value}", file=sys.stderr)
        return
    shown = [[", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in row.values()] for row in rows]
    _table(tuple(rows[0]), shown)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of ``splitsight``; always raises :class:`SystemExit`."""
    die_with_parent()
    # loading a model of a few megabytes needs no progress bar on standard error
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(args=arguments, prog_name="splitsight")
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
