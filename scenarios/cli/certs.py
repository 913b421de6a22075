"""``splitsight certs``: what a guarded server and its callers need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scenarios.cli.guard import guarded

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
@guarded("splitsight.wire.certs")
def certs(
    out: Annotated[Path, typer.Option(help="Folder for certificates, keys and tokens.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or IP address by which the server is reached, beside this machine's own; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=825, help="Days that the certificates are valid.")] = 30,
) -> None:
    """Make a development certificate authority, certificates for servers and clients, and a token a role.

    The authority's key lies beside what it signed: for development and demonstrations only.
    """
    from splitsight.wire.certs import make_certificates

    for path in make_certificates(out, host or [], days):
        print(path)
