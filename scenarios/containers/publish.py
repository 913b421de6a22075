"""``python -m scenarios.containers.publish``: the report of a run whose edge and adversary have a folder each.

Neither role can read the other's volume; this process reads both, and is the only one that does. While a stream runs
it says how far it is; when the adversary has ended (or this process is told to), it joins frames and reconstructions
in one folder a session and writes the report there. A new stream makes a new folder; earlier ones stay.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scenarios.interrupt import INTERRUPTED
from scenarios.join import Lines
from scenarios.rereport import ReportOptions, report_run
from splitsight.errors import UserError
from splitsight.wire.channels import is_loopback

__all__ = ["Publisher", "main", "serve"]

_OF_EDGE = ("edge.jsonl", "truth")
_OF_ADVERSARY = ("live.jsonl", "recording", "preview", "window")
_EVERY_S = 2.0
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="{pause}"><title>splitsight</title>
<style>:root{{color-scheme:light dark}}
body{{font:16px system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}}</style>
<h1>splitsight</h1><p>{status}</p><h2>Reports, newest first</h2><ul>{links}</ul></html>
"""


class Publisher:
    """Follows one run after the other.

    Args:
        frames: the edge's folder, with ``edge.jsonl`` and ``truth/``.
        tapped: the adversary's folder, with ``live.jsonl`` and its pictures.
        out: a folder a session is made here.

    Attributes:
        status: in words, for people.
    """

    def __init__(self, frames: Path, tapped: Path, out: Path) -> None:
        self.frames, self.tapped, self.out = frames, tapped, out
        self.status = "waiting for a stream"
        self._without: set[str] = set()

    def reports(self) -> list[str]:
        """Folders with a report, the newest first."""
        pages = sorted(self.out.glob("run-*/index.html"), key=lambda page: page.stat().st_mtime, reverse=True)
        return [page.parent.name for page in pages]

    @property
    def newest(self) -> str:
        """The first of them; empty where there is none."""
        return next(iter(self.reports()), "")

    def step(self, *, last: bool = False) -> bool:
        """Look once; write a report where a stream has ended.

        Args:
            last: report a stream that still runs, too.

        Returns:
            Whether a report was written; where none could be, the status says why.
        """
        events = list(Lines(self.tapped / "live.jsonl").new())
        session = next((event["session"] for event in events if event["event"] == "session"), None)
        if session is None:
            return False
        name = f"run-{session[:12]}"
        if name in self._without or (self.out / name / "index.html").is_file():
            return False
        made = {kind: sum(event["event"] == kind for event in events) for kind in ("preview", "window")}
        self.status = f"streaming: {made['preview']} frames reconstructed, {made['window']} windows refined"
        if not last and not any(event["event"] == "end" for event in events):
            return False
        self.status = "writing the report"
        try:
            self._report(self.out / name)
        except UserError as error:
            self.status = f"no report of {name}: {error}"
            self._without.add(name)
            return False
        self.status = "waiting for another stream"
        return True

    def _report(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for place, names in ((self.frames, _OF_EDGE), (self.tapped, _OF_ADVERSARY)):
            for name in names:
                if (place / name).is_dir():
                    shutil.copytree(place / name, folder / name, dirs_exist_ok=True)
                elif (place / name).exists():
                    shutil.copyfile(place / name, folder / name)
        report_run(ReportOptions(folder, command="docker compose -f scenarios/containers/compose.yaml up"))


class _Handler(SimpleHTTPRequestHandler):
    """The reports' folder; its root is the newest report, or how far the stream is."""

    def __init__(self, *args: object, publisher: Publisher, **kwargs: object) -> None:
        self.publisher = publisher
        super().__init__(*args, directory=str(publisher.out), **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """A file, or for ``/`` a page that asks again until there is a report."""
        if self.path != "/":
            super().do_GET()
            return
        p = self.publisher
        pause = 10 if p.newest and p.status.startswith("waiting") else 2
        links = "".join(f'<li><a href="/{name}/index.html">{name}</a>' for name in p.reports())
        text = _PAGE.format(pause=pause, status=html.escape(p.status), links=links or "<li>none yet")
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that asks every two seconds would fill the log."""


def serve(
    publisher: Publisher, host: str, port: int, stop: threading.Event, ready: Callable[[int], None] = lambda port: None
) -> None:
    """Serve the reports until ``stop``, then report what there is.

    Args:
        publisher: whose reports.
        host: address to listen on.
        port: 0 takes a free one.
        stop: ends it.
        ready: told the port.
    """
    server = ThreadingHTTPServer((host, port), partial(_Handler, publisher=publisher))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"event": "ready", "host": host, "port": server.server_address[1]}), flush=True)
    ready(server.server_address[1])
    while not stop.wait(_EVERY_S):
        if publisher.step():
            print(json.dumps({"event": "report", "folder": str(publisher.out / publisher.newest)}), flush=True)
    publisher.step(last=True)
    server.shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Parse and serve.

    Returns:
        Exit status: 0 after SIGTERM, 2 for a mistake of the user's.
    """
    parser = argparse.ArgumentParser(prog="page", description="The report of a run, as soon as its stream has ended.")
    parser.add_argument("--frames", type=Path, required=True, help="folder of the edge's --report and --truth")
    parser.add_argument("--tapped", type=Path, required=True, help="folder of the adversary's --out")
    parser.add_argument("--out", type=Path, required=True, help="folder for reports")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--published",
        action="store_true",
        help="the address is a container's own, which its host publishes on loopback",
    )
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if not is_loopback(options.host) and not options.published:
            raise UserError(
                f"a page on {options.host} would show the frames to the network: let it listen on 127.0.0.1, or give "
                "--published in a container whose port is published on loopback only"
            )
        serve(Publisher(options.frames, options.tapped, options.out), options.host, options.port, stop)
    except UserError as error:
        print(f"splitsight: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
