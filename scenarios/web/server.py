"""The page's web server: pictures, status, exports, and NiceGUI beside them, in a thread of its own.

``GET /live/changed?after=V`` answers as soon as a picture is newer than version V, or a second later, with tag and
words of every picture. ``GET /live/NAME.jpg`` is the latest of that name, with its tag as ``ETag``; nothing is queued.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import warnings
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from scenarios.web.export import exports
from scenarios.web.guard import Guard
from scenarios.web.words import STATIC
from splitsight.errors import UserError
from splitsight.wire.channels import Address, host_of, is_loopback
from splitsight.wire.credentials import ServerCredentials

if TYPE_CHECKING:
    from scenarios.web.choices import Catalogue
    from scenarios.web.joined import JoinedRun
    from scenarios.web.run import WebRun
    from scenarios.web.state import Board

__all__ = ["WebServer", "routes"]

_LONGEST_S, _POLL_S = 1.0, 0.05
_START_S = 30.0


def routes(app: FastAPI, board: Board) -> None:
    """Add what the page's script asks for."""

    @app.get("/live/changed")
    async def changed(after: int = -1) -> JSONResponse:
        until = time.monotonic() + _LONGEST_S
        while board.version <= after and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        version, pictures = board.version, board.pictures
        said = {name: {"tag": p.tag, "title": p.title, "detail": p.detail} for name, p in pictures.items()}
        return JSONResponse({"version": version, "pictures": said}, headers={"Cache-Control": "no-store"})

    @app.get("/live/status.json")
    async def status() -> JSONResponse:
        return JSONResponse(_plain(board.status), headers={"Cache-Control": "no-store"})

    @app.get("/live/{name}.jpg")
    async def picture(name: str, request: Request) -> Response:
        found = board.pictures.get(name)
        if found is None:
            return Response("no such picture (yet)\n", status_code=404, media_type="text/plain")
        headers = {"ETag": f'"{found.tag}"', "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(found.jpeg, media_type="image/jpeg", headers=headers)

    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _plain(value: Any) -> Any:
    """Without numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value


class WebServer(AbstractContextManager["WebServer"]):
    """Serves the page while the context lasts.

    Args:
        run: what is shown.
        catalogue: what may be chosen.
        host: to listen on.
        port: 0 for a free one.
        credentials: what callers must present.
        published: whether ``host`` is a container's own, which only browsers of the container's host reach.

    Raises:
        UserError: no such address, or the port is in use.
    """

    def __init__(
        self,
        run: WebRun | JoinedRun,
        catalogue: Catalogue,
        host: str,
        port: int,
        credentials: ServerCredentials,
        *,
        published: bool = False,
    ) -> None:
        # loading it takes a second, in which nothing else would be said
        from nicegui import ui

        from scenarios.web.page import build

        credentials.tls("page")  # says what is wrong with a certificate before anything listens
        self._host, self._credentials = host_of(host, "--host"), credentials
        self._local = published or is_loopback(self._host)
        self._socket = _listening(self._host, port)
        self.port = self._socket.getsockname()[1]
        app = FastAPI(title="splitsight", docs_url=None, redoc_url=None, openapi_url=None)
        routes(app, run.board)
        exports(app, run)
        app.mount("/reports", StaticFiles(directory=run.out, html=True, check_dir=False), name="reports")
        build(app, run, catalogue)
        ui.run_with(
            app,
            title="splitsight",
            dark=None,
            language="en-US",
            favicon="👁",
            show_welcome_message=False,
            tailwind=False,
        )
        guarded = Guard(app, credentials.token, local=self._local, secure=credentials.cert is not None)
        self._server = uvicorn.Server(
            uvicorn.Config(
                guarded,
                log_level="critical",  # tabs that are open at the end are no news
                ws_max_size=1 << 20,
                lifespan="on",
                timeout_graceful_shutdown=2,
                server_header=False,
                ssl_certfile=credentials.cert,
                ssl_keyfile=credentials.key,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)

    @property
    def address(self) -> str:
        """Of the page, as another machine may type it where it listens for others."""
        scheme = "http" if self._credentials.cert is None else "https"
        host = self._host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1" if self._local else socket.gethostname()
        return f"{scheme}://{Address(host, self.port)}/"

    def _serve(self) -> None:
        # it looks through all objects of the process for its own, and PyTorch has some that complain of being looked at
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.")
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> WebServer:
        self._thread.start()
        until = time.monotonic() + _START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        if not self._server.started:
            raise UserError("the page's web server did not start: use --no-web, and report what it printed", code=1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        with suppress(OSError):
            self._socket.close()


def _listening(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        UserError: the port is in use, or the host is not of this machine.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except OSError as error:
        raise UserError(
            f"the page cannot listen on {Address(host, port)} ({error.strerror}): choose another --port or --host"
        ) from error
    return bound
