"""What every command does with what goes wrong: one sentence on standard error, and an exit code."""

from __future__ import annotations

import errno
import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec

import typer

from scenarios.interrupt import INTERRUPTED, interruptible
from scenarios.processes import PREFIX
from splitsight.errors import UserError
from splitsight.names import printable

__all__ = ["MODULES", "explain", "guarded", "load"]

P = ParamSpec("P")

MODULES: dict[str, tuple[str, ...]] = {}
"""What each command is going to import, by its function's name."""


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


def guarded(*modules: str) -> Callable[[Callable[P, int | None]], Callable[P, None]]:
    """Turn what a command raises into a sentence and an exit code; what it returns is the exit code.

    Args:
        modules: what the command is going to import, loaded before Ctrl-C raises ``KeyboardInterrupt``. Without any,
            Ctrl-C ends the process at once until the command itself asks otherwise.
    """

    def decorate(command: Callable[P, int | None]) -> Callable[P, None]:
        MODULES[command.__name__] = modules

        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                load(modules)
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
            except UnicodeEncodeError as error:
                if not any("\ud800" <= c <= "\udfff" for c in error.object):
                    raise
                _say(f"the name {printable(error.object)} is not UTF-8, which a library here needs: rename it")
                code = 2
            raise typer.Exit(code)

        return run

    return decorate


def load(modules: tuple[str, ...]) -> None:
    """Import modules, and with the targets every family of them (which the first look-up would import)."""
    for name in modules:
        importlib.import_module(name)
    if "splitsight.metrics.image" in sys.modules:  # loads them only when it measures something
        importlib.import_module("torchmetrics.functional.image")
    if "splitsight.targets" in modules:
        sys.modules["splitsight.targets"].TARGETS.names()
