"""The page: ``splitsight demo`` prepares, opens, runs and reports; ``splitsight page`` joins what runs already."""

from __future__ import annotations

import os
import secrets
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from scenarios.demo import DemoOptions, check, prepare_folder, report
from scenarios.interrupt import interruptible
from scenarios.processes import PREFIX, Supervisor, terminate_as_interrupt
from scenarios.web.choices import Catalogue
from scenarios.web.judge import Judge
from scenarios.web.run import WebRun
from scenarios.web.server import WebServer
from scenarios.web.state import Board, Requests
from splitsight.errors import UserError
from splitsight.terminal import announce
from splitsight.wire.credentials import ServerCredentials, read_token

if TYPE_CHECKING:
    from scenarios.warm import Warm
    from scenarios.web.joined import Joined

__all__ = ["page_on", "run_with_page"]


def run_with_page(options: DemoOptions, out: Path, warm: Warm | None = None) -> Path:
    """Run the demonstration with its page, until its stream ends or it is stopped.

    Args:
        options: what to demonstrate first.
        out: folder of the run.
        warm: what its first adversary is made of.

    Returns:
        ``index.html`` of the run; later parts have one each beside it.

    Raises:
        UserError: bad input, a page that would be open to anyone, a port in use, a process that cannot be started, or
            (exit status 3) a budget that is spent; whatever exists is reported before.
        KeyboardInterrupt: Ctrl-C or SIGTERM; whatever exists is reported before.
    """
    credentials = ServerCredentials(read_token(options.token_file, "page"), options.cert, options.key)
    credentials.check("page", "let anyone on the network steer it", options.host)
    first = check(options)
    prepare_folder(out, overwrite=options.overwrite)
    options = replace(options, split=first[0].split)
    board, requests, judge = Board(), Requests(), Judge()
    with interruptible(), terminate_as_interrupt(), _operator_token() as token_file:
        children = Supervisor(out / "logs", warm)
        run = WebRun(options, out, *first, judge, board, requests, token_file)
        server = WebServer(
            run, Catalogue(options.target), host=options.host, port=options.port, credentials=credentials
        )
        with server:
            _opened(server, "it runs until you stop it there or press Ctrl-C")
            try:
                with children:
                    try:
                        run.play(children)
                    except KeyboardInterrupt:
                        run.say("interrupted: stopping")
                        run.halt()
                        raise
            finally:
                _reports(run, children)
    if run.ended is not None:
        raise UserError(f"{run.ended}; the report is {out / 'index.html'}", code=run.ended.code)
    return out / "index.html"


def page_on(
    joined: Joined,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token_file: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    published: bool = False,
) -> None:
    """The page on processes that somebody else started, until Ctrl-C or SIGTERM; then a report of what there is.

    Args:
        joined: what it reads and steers.
        host: to listen on; other than loopback it needs token, certificate and key, or to be published.
        port: 0 for a free one.
        token_file: of the token that the page asks for.
        cert: PEM certificate chain of the page.
        key: PEM private key that belongs to it.
        published: ``host`` is a container's own, and its port is published on loopback alone.

    Raises:
        UserError: bad input, a page that would be open to anyone, a port in use.
    """
    from scenarios.web.joined import JoinedRun

    credentials = ServerCredentials(read_token(token_file, "page"), cert, key)
    if not published:
        credentials.check("page", "let anyone on the network steer it", host)
    try:
        joined.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{joined.out} cannot be written ({error.strerror}): give another folder with --out") from error
    with interruptible(), terminate_as_interrupt():
        run = JoinedRun(joined, Judge(), Board(), Requests())
        try:
            with WebServer(
                run, Catalogue(""), host=host, port=port, credentials=credentials, published=published
            ) as server:
                _opened(server, "it runs until you press Ctrl-C; the processes that it shows go on")
                announce({"event": "ready", "port": server.port}, "ready")
                try:
                    run.play()
                except KeyboardInterrupt:
                    run.finish()
        finally:
            run.close()


def _opened(server: WebServer, until: str) -> None:
    """Say where the page is, and show it where there is a display."""
    print(f"the page: {server.address}", file=sys.stderr, flush=True)
    print(until, file=sys.stderr, flush=True)
    if _has_display():
        webbrowser.open(server.address)


@contextmanager
def _operator_token() -> Iterator[Path]:
    """A token for this run alone, in a file that nobody else can read."""
    with TemporaryDirectory(prefix="splitsight-") as folder:
        path = Path(folder) / "operator.token"
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32), encoding="utf-8")
        yield path


def _has_display() -> bool:
    """Whether a browser would come up beside the terminal, and not in it."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))


def _reports(run: WebRun, children: Supervisor) -> None:
    """A report of each part that has anything to report; the problems of one must not hide the others."""
    for part in run.parts:
        run.say("writing the report")
        part.join.poll()
        if not any(row.answered for row in part.join.rows()):
            continue
        try:
            report(part, children, complete=True)
            print(f"the report: {part.out / 'index.html'}", file=sys.stderr, flush=True)
        except UserError as error:
            print(f"{PREFIX}{error}", file=sys.stderr, flush=True)
