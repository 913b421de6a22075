"""``splitsight page``: the live page on an edge, a cloud server and an adversary that run already."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded
from scenarios.cli.options import Weights

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
@guarded()
def page(
    tapped: Annotated[Path, typer.Option(help="Folder of the adversary: its --out.")],
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the edge, with edge.jsonl (its --report) and truth (its --truth); without it there are no "
            "originals and no report."
        ),
    ] = None,
    cloud: Annotated[str, typer.Option(help="Cloud server, HOST:PORT; default: it is not asked how it is.")] = "",
    edge: Annotated[str, typer.Option(help="Edge's operator port, HOST:PORT; default: it is not steered.")] = "",
    adversary: Annotated[
        str, typer.Option(help="Adversary's operator port, HOST:PORT; default: it is not steered.")
    ] = "",
    operator_token_file: Annotated[
        Path | None, typer.Option(help="File of the bearer token that both operator ports ask for.")
    ] = None,
    operator_ca: Annotated[
        Path | None, typer.Option(help="Certificate authority of the operator ports, PEM; default: no TLS.")
    ] = None,
    cloud_ca: Annotated[
        Path | None, typer.Option(help="Certificate authority of the cloud server, PEM; default: no TLS.")
    ] = None,
    cloud_cert: Annotated[
        Path | None, typer.Option(help="Own certificate, PEM, where the cloud server asks for one.")
    ] = None,
    cloud_key: Annotated[Path | None, typer.Option(help="Private key of that certificate, PEM.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for reports, one in a folder a session.")] = Path("runs/page"),
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address of the page; only loopback goes without token and TLS.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    token_file: Annotated[Path | None, typer.Option(help="File of the token that the page asks for.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM certificate chain of the page; default: no TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="The address is a container's own, whose port its host publishes on loopback alone."
        ),
    ] = False,
) -> None:
    """Open the live page on an edge, a cloud server and an adversary that were started elsewhere.

    Shows what they do and steers what a running process can change; each stream that ends is reported. Runs until
    Ctrl-C; the processes go on.
    """
    from scenarios.web.app import page_on
    from scenarios.web.joined import Joined
    from splitsight.wire.credentials import ClientCredentials

    page_on(
        Joined(
            tapped=tapped,
            out=out.expanduser().absolute(),
            frames=frames,
            cloud=cloud,
            edge=edge,
            adversary=adversary,
            operator=ClientCredentials.read("operator", operator_token_file, operator_ca, None, None),
            server=ClientCredentials.read("page", None, cloud_ca, cloud_cert, cloud_key),
            weights=weights,
            command="splitsight " + shlex.join(sys.argv[1:]),
        ),
        host=host,
        port=port,
        token_file=token_file,
        cert=cert,
        key=key,
        published=published,
    )
