"""``splitsight demo|cloud|edge|oracle|adversary``: the processes of a live run."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scenarios.cli.guard import guarded, load
from scenarios.cli.options import (
    SOLVERS,
    AttackOption,
    AutoSplit,
    Ca,
    ClientCert,
    ClientKey,
    Codec,
    CodecOption,
    Compression,
    CompressionOption,
    Defense,
    EpsilonBudget,
    EpsilonLedger,
    Evaluators,
    Fps,
    Frames,
    GalleryFeatures,
    GalleryOption,
    GallerySize,
    InputSize,
    Inversion,
    MetricsPort,
    Network,
    OneThread,
    OperatorCert,
    OperatorHost,
    OperatorKey,
    OperatorPort,
    OperatorToken,
    Preview,
    Prior,
    Seed,
    Solver,
    SolverOption,
    Split,
    Stride,
    Target,
    Threads,
    TokenFile,
    Video,
    Weights,
    changed,
    operated,
)
from splitsight.specification import specify
from splitsight.terminal import LiveLine

__all__ = ["commands"]

commands = typer.Typer()


class Threat(StrEnum):
    """Threat models of the demonstration."""

    white_box = "white-box"
    black_box = "black-box"


@commands.command()
@guarded()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(help="Length of the stream, in seconds; default: until it is stopped, without the page 30."),
    ] = None,
    fps: Fps = 2.0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/demo-TIMESTAMP.")] = None,
    video: Video = None,
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: AutoSplit = None,
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
    epsilon_budget: EpsilonBudget = None,
    epsilon_ledger: EpsilonLedger = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Play the same frames without the defence first, and show both side by side, in the terminal, the "
            "report and the video; takes twice as long, and there is no live page.",
        ),
    ] = False,
    solver: SolverOption = None,
    frames: Frames = 4,
    stride: Stride = 0.5,
    seed: Seed = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the adversary, at low priority; default: one a core.")
    ] = None,
    dtype: CodecOption = Codec.float32,
    compression: CompressionOption = Compression.none,
    edge_network: Network = None,
    gallery: GalleryOption = None,
    gallery_size: GallerySize = 1000,
    gallery_features: GalleryFeatures = "pixels",
    evaluator: Evaluators = None,
    prompt: Annotated[str, typer.Option(help="Text prior of the attacker; default: none.")] = "",
    web: Annotated[
        bool,
        typer.Option("--web/--no-web", help="Show it on a live page in a browser, with controls, or in this terminal."),
    ] = True,
    host: Annotated[
        str, typer.Option(help="Address of the page; only loopback goes without token and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the operator's token, which the page asks for.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM certificate chain of the page; default: no TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Play a video through a split network and reconstruct it live at the server's tap.

    Starts a cloud server, an adversary and an edge client, shows what each sees on a live page (its address is
    printed), and leaves one folder: video, grid, recording, figures, page. Stop it there, or by Ctrl-C.
    """
    from scenarios.demo import DemoOptions, run_demo
    from scenarios.splits.auto import usual_split

    options = DemoOptions(
        out=out,
        seconds=seconds,
        fps=fps,
        video=video,
        target=specify(target, input_size),
        split=usual_split(split, target),
        weights=weights,
        prior=prior,
        inversion=inversion,
        threat=threat.value,
        network=network,
        attack=attack if solver is None else SOLVERS[solver],
        preview=preview,
        defense=defense,
        epsilon_budget=epsilon_budget,
        epsilon_ledger=epsilon_ledger,
        compare=compare,
        frames=frames,
        stride=stride,
        seed=seed,
        threads=threads,
        dtype=dtype.value,
        compression=compression.value,
        edge_network=edge_network,
        gallery=gallery,
        gallery_size=gallery_size,
        gallery_features=gallery_features,
        evaluators=tuple(evaluator or ()),
        prompt=prompt,
        command="splitsight " + shlex.join(sys.argv[1:]),
        web=web,
        host=host,
        port=port,
        token_file=token_file,
        cert=cert,
        key=key,
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
            "--defense",
            "--require-defense",
            help="What every session must do to its features; see `splitsight list defenses`; default: whatever leaves "
            "F2 as it is.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on: a name, IPv4 or IPv6.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50051,
    tap_port: Annotated[int | None, typer.Option(help="Port of the tap, 0 for a free one; default: no tap.")] = None,
    tap_host: Annotated[str, typer.Option(help="Address of the tap; only loopback goes without token and TLS.")] = (
        "127.0.0.1"
    ),
    token_file: Annotated[Path | None, typer.Option(help="File of the bearer token that edges must send.")] = None,
    tap_token_file: Annotated[
        Path | None, typer.Option(help="File of the bearer token that subscribers of the tap must send.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM certificate chain, for both ports; default: no TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM of the authority that must have signed the callers' own certificates (mutual TLS)."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve edges of other machines without token and TLS; never the tap.")
    ] = False,
    tap_ring: Annotated[int, typer.Option(min=1, help="Frames kept for a subscriber that does not read.")] = 64,
    max_subscribers: Annotated[int, typer.Option(min=1, help="Subscribers of the tap at once.")] = 8,
    metrics_port: MetricsPort = None,
    threads: Threads = None,
    batch_window: Annotated[
        float, typer.Option(min=0, help="Longest that a frame waits for others to be computed with, in milliseconds.")
    ] = 2.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Frames computed together.")] = 16,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 32,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Frames of one session that may wait for an answer.")] = 8,
    max_streams_per_peer: Annotated[int, typer.Option(min=1, help="Streams at once from one network address.")] = 16,
    max_frame_rate: Annotated[
        float,
        typer.Option(min=0, help="Frames a second from one network address, more are read later; 0 for no limit."),
    ] = 0.0,
    idle: Annotated[float, typer.Option(help="Seconds after which a session without a new frame is ended.")] = 300.0,
    stream_hours: Annotated[float, typer.Option(help="Hours after which any stream is ended; it may resume.")] = 24.0,
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
        token_file=token_file,
        tap_token_file=tap_token_file,
        cert=cert,
        key=key,
        client_ca=client_ca,
        insecure=insecure,
        tap_ring=tap_ring,
        max_subscribers=max_subscribers,
        metrics_port=metrics_port,
        threads=threads,
        batch_window_ms=batch_window,
        max_batch=max_batch,
        max_sessions=max_sessions,
        max_in_flight=max_in_flight,
        max_streams_per_peer=max_streams_per_peer,
        max_frame_rate=max_frame_rate,
        idle_seconds=idle,
        stream_hours=stream_hours,
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
            help="Cloud server, HOST:PORT, an IPv6 address in brackets; of several replicas a name that resolves to "
            "all, or their addresses with commas between. Of the proxy variables only grpc_proxy counts, and never for "
            "this machine."
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
    epsilon_budget: EpsilonBudget = None,
    epsilon_ledger: EpsilonLedger = None,
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
    answer_timeout: Annotated[
        float, typer.Option(help="Seconds that an answer may take before the connection counts as lost.")
    ] = 20.0,
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: ClientCert = None,
    key: ClientKey = None,
    network: Network = None,
    network_seed: Annotated[
        int | None, typer.Option(help="Seed of the network's jitter and losses; default: another one each time.")
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Begin paused, until the operator has it go on.")] = False,
    session_id: Annotated[str | None, typer.Option(help="Name of the session; default: a random one.")] = None,
    operator_port: OperatorPort = None,
    operator_host: OperatorHost = "127.0.0.1",
    operator_token_file: OperatorToken = None,
    operator_cert: OperatorCert = None,
    operator_key: OperatorKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Run the first part of a network on a video and stream the features."""
    from edge_client.client import EdgeOptions, run_edge
    from splitsight.wire.credentials import ClientCredentials

    line = LiveLine()
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
            epsilon_budget=epsilon_budget,
            epsilon_ledger=epsilon_ledger,
            in_flight=in_flight,
            threads=threads,
            report=report,
            truth=truth,
            wait_s=wait,
            give_up_s=give_up,
            answer_timeout_s=answer_timeout,
            credentials=ClientCredentials.read("edge", token_file, ca, cert, key),
            network=network,
            network_seed=network_seed,
            session_id=session_id,
            paused=paused,
            operator=operated(operator_port, operator_host, operator_token_file, operator_cert, operator_key),
        ),
        partial(_said, line),
    )
    line.close()
    if as_json:
        print(json.dumps(done.summary()))
    else:
        print(
            f"{done.answered} of {done.captured} frames answered, {done.fps:.2f} a second, "
            f"round trip {done.p50_ms:.1f} ms (p99 {done.p99_ms:.1f} ms)"
            + (f" over an emulated network, {done.network['name']}" if done.network else "")
        )
        if done.epsilon.get("stream") is not None:
            print(
                f"ε = {done.epsilon['frame']:.4g} a frame, {done.epsilon['stream']:.4g} over the stream's "
                f"{done.epsilon['frames']} frames (δ = {done.epsilon['delta']:g})"
            )
    return done.exit_code


_WARNINGS = {
    "budget": "{says}",
    "lost": "the connection is lost ({why}): {unanswered} frames wait for an answer, trying again",
    "resumed": "the connection is back after {after_s} s: the session goes on",
}


def _said(line: LiveLine, event: str, details: dict[str, Any]) -> None:
    """What goes on at an edge: its newest answer in one line of a terminal, warnings as they come."""
    if event == "answer":
        line.show(f"frame {details['sequence']} · {details['rtt_ms']:.1f} ms · cloud: {details['says'] or 'no answer'}")
    elif event in _WARNINGS:
        line.close()
        print(f"warning: {_WARNINGS[event].format(**details)}", file=sys.stderr, flush=True)


@commands.command("report")
@guarded("scenarios.rereport", "scenarios.report", "splitsight.targets")
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `splitsight adversary --out` or `demo` wrote.")],
    truth: Annotated[
        Path | None, typer.Option(help="Originals, which the edge's --truth wrote; default: truth in the folder.")
    ] = None,
    edge_report: Annotated[
        Path | None,
        typer.Option(help="Answers, which the edge's --report wrote; default: edge.jsonl there, or beside --truth."),
    ] = None,
    gallery: GalleryOption = None,
    gallery_size: GallerySize = 1000,
    gallery_features: GalleryFeatures = "pixels",
    evaluator: Evaluators = None,
    weights: Weights = None,
) -> None:
    """Page, video, grid and figures of a run whose parts were started by hand; also of a demonstration, again."""
    from scenarios.rereport import ReportOptions, report_run

    page = report_run(
        ReportOptions(
            folder=folder,
            truth=truth,
            edge=edge_report,
            gallery=gallery,
            gallery_size=gallery_size,
            gallery_features=gallery_features,
            evaluators=tuple(evaluator or ()),
            weights=weights,
            command="splitsight " + shlex.join(sys.argv[1:]),
        ),
        lambda word: print(word, file=sys.stderr, flush=True),
    )
    print(page)
    print("A cloud server that was started by hand stays up: stop it with Ctrl-C in its terminal.", file=sys.stderr)


@commands.command()
@guarded("edge_client.oracle_server", "splitsight.data", "splitsight.targets")
def oracle(
    target: Target = "resnet18",
    input_size: InputSize = None,
    split: Split = "L8",
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback goes without token and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 50053,
    token_file: Annotated[Path | None, typer.Option(help="File of the bearer token that clients must send.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; default: no TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM of the authority that must have signed the clients' own certificates (mutual TLS)."),
    ] = None,
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
    from edge_client.oracle import OracleOptions
    from edge_client.oracle_server import serve_oracle
    from splitsight.wire.credentials import ServerCredentials, read_token

    return serve_oracle(
        OracleOptions(
            target=specify(target, input_size),
            split=split,
            weights=weights,
            host=host,
            port=port,
            credentials=ServerCredentials(read_token(token_file, "oracle"), cert, key, client_ca),
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
@guarded(
    "adversary.live.run",
    "adversary.attacks",
    # of which every prior has some
    "diffusers.models.autoencoders",
    "diffusers.models.unets",
    "diffusers.schedulers",
    "transformers.models.clip.modeling_clip",
)
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
    token_file: TokenFile = None,
    ca: Ca = None,
    cert: ClientCert = None,
    key: ClientKey = None,
    session: Annotated[str, typer.Option(help="Only this session; default: the first that shows up.")] = "",
    preview: Preview = True,
    inversion: Inversion = None,
    weights: Weights = None,
    patience: Annotated[float, typer.Option(help="Seconds to wait for a tap that is away.")] = 10.0,
    seed: Seed = 0,
    operator_port: OperatorPort = None,
    operator_host: OperatorHost = "127.0.0.1",
    operator_token_file: OperatorToken = None,
    operator_cert: OperatorCert = None,
    operator_key: OperatorKey = None,
) -> int:
    """Reconstruct what a tapped stream shows, while it runs."""
    from adversary.attacks import ATTACKS
    from adversary.live.options import LiveOptions
    from adversary.live.run import run_live
    from splitsight.wire.credentials import ClientCredentials

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
            credentials=ClientCredentials.read("adversary", token_file, ca, cert, key),
            session=session,
            preview=preview,
            inversion=inversion,
            weights=weights,
            network=network,
            patience=patience,
            operator=operated(operator_port, operator_host, operator_token_file, operator_cert, operator_key),
        ),
        know,
    )
