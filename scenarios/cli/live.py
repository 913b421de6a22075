"""``splitsight demo|cloud|edge|oracle|adversary``: the processes of a live run."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded, load
from scenarios.cli.options import (
    SOLVERS,
    AttackOption,
    Codec,
    CodecOption,
    Compression,
    CompressionOption,
    Defense,
    Evaluators,
    Fps,
    Frames,
    GalleryFeatures,
    GalleryOption,
    GallerySize,
    InputSize,
    Inversion,
    MetricsPort,
    OneThread,
    Preview,
    Prior,
    Seed,
    Solver,
    SolverOption,
    Split,
    Stride,
    Target,
    Threads,
    Video,
    Weights,
    changed,
)
from splitsight.specification import specify

__all__ = ["commands"]

commands = typer.Typer()


class Threat(StrEnum):
    """Threat models of the demonstration."""

    white_box = "white-box"
    black_box = "black-box"


@commands.command()
@guarded()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of the stream, in seconds.")] = 30.0,
    fps: Fps = 2.0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/demo-TIMESTAMP.")] = None,
    video: Video = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    weights: Weights = None,
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
    attack: AttackOption = "",
    preview: Preview = True,
    defense: Defense = "identity",
    solver: SolverOption = None,
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
    evaluator: Evaluators = None,
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
        target=specify(target, input_size),
        split=split,
        weights=weights,
        prior=prior,
        inversion=inversion,
        threat=threat.value,
        network=network,
        attack=attack if solver is None else SOLVERS[solver],
        preview=preview,
        defense=defense,
        frames=frames,
        stride=stride,
        seed=seed,
        threads=threads,
        dtype=dtype.value,
        compression=compression.value,
        gallery=gallery,
        gallery_size=gallery_size,
        gallery_features=gallery_features,
        evaluators=tuple(evaluator or ()),
        web=web,
        overwrite=overwrite,
    )
    print(run_demo(options))


@commands.command()
@guarded("cloud_server.server", "cloud_server.model", "cloud_server.sessions", "cloud_server.tap", "splitsight.targets")
def cloud(
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    weights: Weights = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="What every session must do to its features; see `splitsight list defenses`; default: whatever leaves "
            "F2 as it is."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on: a name, IPv4 or IPv6.")] = "127.0.0.1",
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
    metrics_port: MetricsPort = None,
    threads: Threads = None,
    batch_window: Annotated[
        float, typer.Option(min=0, help="Longest that a frame waits for others to be computed with, in milliseconds.")
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
        target=specify(target, input_size),
        split=split,
        weights=weights,
        defense=defense,
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


@commands.command()
@guarded("edge_client.client", "splitsight.data", "splitsight.targets")
def edge(
    server: Annotated[
        str,
        typer.Option(
            help="Cloud server, HOST:PORT, an IPv6 address in brackets. Of the proxy variables only grpc_proxy counts, "
            "and never for this machine."
        ),
    ] = "127.0.0.1:50051",
    video: Video = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
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
    defense: Defense = "identity",
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
            target=specify(target, input_size),
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


@commands.command()
@guarded("edge_client.oracle", "splitsight.data", "splitsight.targets")
def oracle(
    target: Target = "resnet18",
    input_size: InputSize = None,
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
    defense: Defense = "identity",
    metrics_port: MetricsPort = None,
    threads: OneThread = 1,
) -> int:
    """Answer an attacker's queries with the first part of a network: images in, features out, on a budget."""
    from edge_client.oracle import OracleOptions, serve_oracle

    return serve_oracle(
        OracleOptions(
            target=specify(target, input_size),
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


@commands.command()
@guarded("adversary.live.run", "adversary.attacks")
def adversary(
    tap: Annotated[str, typer.Option(help="Tap of the cloud server, HOST:PORT, an IPv6 address in brackets.")],
    out: Annotated[Path, typer.Option(help="Folder for the recording, images and live.jsonl.")],
    attack: AttackOption = "",
    threat: Annotated[
        Threat | None,
        typer.Option(
            help="White-box: F1 is known. Black-box: nothing of it but what an oracle answered. Default: what the "
            "attack needs."
        ),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="Black-box: the network, a file; default: the package's, else the cache's."),
    ] = None,
    defense: Defense = "identity",
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    prior: Prior = "small",
    solver: SolverOption = None,
    frames: Frames = 4,
    stride: Stride = 0.5,
    samples: Annotated[int, typer.Option(min=1, help="With --solver pnp: independent answers that it averages.")] = 1,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another value for one of the attack's, as JSON; repeatable."),
    ] = None,
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
    preview: Preview = True,
    inversion: Inversion = None,
    weights: Weights = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a tap that is away.")] = 10.0,
    seed: Seed = 0,
) -> int:
    """Reconstruct what a tapped stream shows, while it runs."""
    from adversary.attacks import ATTACKS
    from adversary.live.run import LiveOptions, run_live

    # each threat model's modules are loaded alone, so that a black-box process has none that could build F1
    unaided = not preview and inversion is None and threat is not Threat.black_box
    chosen = SOLVERS[solver] if solver is not None else attack or ("window:denoised" if unaided else "window:live")
    name, _, setting = chosen.partition(":")
    changes = changed(values or []) | ({"samples": samples} if solver is Solver.pnp else {})
    white = threat is Threat.white_box or (threat is None and "network" not in ATTACKS.get(name).needs)
    load(("adversary.live.whitebox", "splitsight.targets") if white else ("adversary.live.blackbox",))
    know = sys.modules[f"adversary.live.{'whitebox' if white else 'blackbox'}"].know
    return run_live(
        LiveOptions(
            tap=tap,
            out=out,
            target=specify(target, input_size),
            split=split,
            prior=prior,
            frames=frames,
            stride=stride,
            attack=name,
            setting=setting,
            changes=changes,
            defense=defense,
            seed=seed,
            threads=threads,
            nice=nice,
            margin=margin,
            prompt=prompt,
            token=token,
            ca=ca,
            session=session,
            preview=preview,
            inversion=inversion,
            weights=weights,
            network=network,
            patience=patience,
        ),
        know,
    )
