"""Options that several commands share."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitsight.errors import UserError

if TYPE_CHECKING:
    from splitsight.wire.operator import OperatorOptions

__all__ = [
    "SOLVERS",
    "AttackOption",
    "AutoSplit",
    "Ca",
    "ClientCert",
    "ClientKey",
    "Codec",
    "CodecOption",
    "Compression",
    "CompressionOption",
    "Defense",
    "Device",
    "Evaluators",
    "Fps",
    "Frames",
    "GalleryFeatures",
    "GalleryOption",
    "GallerySize",
    "InputSize",
    "Inversion",
    "MetricsPort",
    "Network",
    "OneThread",
    "OperatorCert",
    "OperatorHost",
    "OperatorKey",
    "OperatorPort",
    "OperatorToken",
    "Preview",
    "Prior",
    "Ray",
    "Seed",
    "Solver",
    "SolverOption",
    "Split",
    "Stride",
    "Target",
    "Threads",
    "TokenFile",
    "Video",
    "Weights",
    "changed",
    "operated",
]


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
    """Short names of attacks on windows."""

    map = "map"
    pnp = "pnp"
    dmb = "dmb"


Target = Annotated[
    str,
    typer.Option(
        help="Network that is split: one of `splitsight list targets`, torchvision:NAME, timm:NAME, "
        "transformers:FOLDER, yolov2:FOLDER, or MODULE:CALLABLE (also FILE.py:CALLABLE) of your own."
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SIZE",
        help="Side of the images that --target takes, 224 or 3x224x224, where it does not say so itself.",
    ),
]
Split = Annotated[str, typer.Option(help="Split point; see `splitsight list splits`.")]
AutoSplit = Annotated[
    str | None,
    typer.Option(
        help="Split point; see `splitsight list splits`; auto: the one where the fewest bytes cross of those at which "
        "the edge does at most 60 % of the operations. Default: L8 of resnet18, auto of another network."
    ),
]
Prior = Annotated[
    str,
    typer.Option(
        metavar="NAME[:OPTIONS]",
        help="Generative prior: a name or a folder in diffusers layout; half, slicing, checkpointing may follow.",
    ),
]
Inversion = Annotated[Path | None, typer.Option(help="Inversion network, a file; default: the embedded one.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights of the target: a file, a library's name for published ones (IMAGENET1K_V2), or random; "
        "default: those that come with it."
    ),
]
Video = Annotated[
    str | None,
    typer.Option(help="Video file, image folder, camera index or URL; default: the package's clip, 31 s."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Share the work over the nodes of a Ray cluster: HOST:PORT of its head, or auto; --out must lie where "
        "all of them see it. Needs the extra ray; default: this machine alone.",
    ),
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
        help="Distractors, a folder of PNG/JPEG or a Parquet file: is each original found among them? Default: for "
        "demo and report the package's photographs, else none."
    ),
]
GallerySize = Annotated[int, typer.Option(min=2, help="Images that an original is found among, itself included.")]
GalleryFeatures = Annotated[
    str,
    typer.Option(help="What is compared to find it, pixels or target (the attacked network's penultimate layer)."),
]
Evaluators = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluator",
        help="Independent classifier that looks at the reconstructions: mbconv, efficientnet-lite0, or a folder; "
        "repeatable; default: for demo and report mbconv, else none; none for none.",
    ),
]
CodecOption = Annotated[Codec, typer.Option(help="Numbers on the wire.")]
CompressionOption = Annotated[Compression, typer.Option(help="Compression on the wire.")]
AttackOption = Annotated[
    str,
    typer.Option(
        metavar="NAME[:SETTING]",
        help="What solves the windows; see `splitsight list attacks`; default: window:live, without previews "
        "window:denoised.",
    ),
]
SOLVERS = {Solver.map: "window:map", Solver.pnp: "window:denoised", Solver.dmb: "dmb-multi:live"}
SolverOption = Annotated[
    Solver | None,
    typer.Option(
        help="Short for --attack: map is window:map (no denoiser), pnp is window:denoised, dmb is dmb-multi:live."
    ),
]
Preview = Annotated[
    bool,
    typer.Option("--preview/--no-preview", help="Show each frame at once by an inversion network, or windows alone."),
]
Defense = Annotated[str, typer.Option(help="What is done to the features; see `splitsight list defenses`.")]
EpsilonBudget = Annotated[
    float | None,
    typer.Option(
        help="Largest ε of the stream: a warning at 80 %, and the edge stops, with exit code 3, before the frame that "
        "would exceed it; default: no limit."
    ),
]
EpsilonLedger = Annotated[
    Path | None,
    typer.Option(help="File that carries the ε that was spent from session to session; default: this session alone."),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto (a GPU where there is one), cpu or cuda.")]
MetricsPort = Annotated[
    int | None, typer.Option(help="Prometheus metrics on loopback, 0 for a free port; default: off.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File of the bearer token that the server asks for; see `splitsight certs`.")
]
Ca = Annotated[
    Path | None, typer.Option(help="Certificate authority that signed the server's certificate, PEM; default: no TLS.")
]
ClientCert = Annotated[Path | None, typer.Option(help="Own certificate, PEM, for servers that ask for one.")]
ClientKey = Annotated[Path | None, typer.Option(help="Private key of the own certificate, PEM.")]

Network = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Shape the edge's connection like this network: a name of `splitsight list networks`, or a YAML file; "
        "default: as it is.",
    ),
]
OperatorPort = Annotated[
    int | None,
    typer.Option(help="Port for an operator, who may change things while it runs, 0 for a free one; default: none."),
]
OperatorHost = Annotated[str, typer.Option(help="Address of that port; only loopback goes without TLS.")]
OperatorToken = Annotated[Path | None, typer.Option(help="File of the bearer token that the operator must send.")]
OperatorCert = Annotated[Path | None, typer.Option(help="PEM certificate chain of that port; default: no TLS.")]
OperatorKey = Annotated[Path | None, typer.Option(help="PEM private key of the operator's certificate.")]


def operated(
    port: int | None, host: str, token_file: Path | None, cert: Path | None, key: Path | None
) -> OperatorOptions | None:
    """Where an operator may come in; ``None`` without a port."""
    if port is None:
        if token_file is not None:
            raise UserError("--operator-token-file needs a port: give --operator-port, too")
        return None
    from splitsight.wire.operator import OperatorOptions

    return OperatorOptions(port, host, token_file, cert, key)


def changed(given: list[str], **named: float | None) -> dict[str, Any]:
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
