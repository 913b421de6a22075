"""The command line, ``splitsight``.

Commands import what they need when they run, so that ``--help`` answers at once. A :class:`UserError` is one
sentence on standard error and exit code 2 (or its own); Ctrl-C is 130.
"""

from __future__ import annotations

import os
from typing import NoReturn

import typer

from scenarios.cli import attack, bench, certs, defend, live, names, page, splits, train
from scenarios.cli.guard import explain
from scenarios.cli.output import prepare_streams
from scenarios.interrupt import INTERRUPTED
from scenarios.processes import die_with_parent

__all__ = ["app", "explain", "main"]


app = typer.Typer(
    name="splitsight",
    help="What an untrusted cloud can see when a network is split between an edge and a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(live.commands)
app.add_typer(page.commands)
app.add_typer(attack.commands)
app.add_typer(splits.commands)
app.add_typer(names.commands)
app.add_typer(certs.commands)
app.add_typer(defend.commands)
app.add_typer(train.train, name="train")
app.add_typer(bench.bench, name="bench")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of ``splitsight``; always raises :class:`SystemExit`."""
    die_with_parent()
    prepare_streams()
    # loading a model of a few megabytes needs no progress bar on standard error
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(args=arguments, prog_name="splitsight")
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)
