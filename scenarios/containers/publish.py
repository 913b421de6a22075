"""``python -m scenarios.containers.publish``: the report of a run whose edge and adversary wrote into folders of their own.

Neither role can read the other's volume; this process reads both, and is the only one that does. While a stream runs it
says how far it is; when the adversary has ended (or this process is told to), it joins frames and reconstructions in one
folder a session and writes the report there. A new stream makes a new folder; earlier ones stay.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import signal
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scenarios.interrupt import INTERRUPTED
from scenarios.join import Join, Lines
from splitsight.errors import UserError
from splitsight.recording import Session
from splitsight.wire.channels import is_loopback

__all__ = ["Publisher", "main", "serve"]

_OF_EDGE = ("edge.jsonl", "truth")
_OF_ADVERSARY = ("live.jsonl", "recording", "preview", "window")
_EVERY_S = 2.0


class Publisher:
    """Follows one run after the other.

    Args:
        frames: the edge's folder, with ``edge.jsonl`` and ``truth/``.
        tapped: the adversary's folder, with ``live.jsonl`` and its pictures.
        out: a folder a session is made here.

    Attributes:
        status: in words, for people.
        newest: name of the newest folder with a report; empty while there is none.
    """

    def __init__(self, frames: Path, tapped: Path, out: Path) -> None:
        self.frames, self.tapped, self.out = frames, tapped, out
        self.status = "waiting for a stream"
        reports = [page for page in out.glob("run-*/index.html")]
        self.newest = max(reports, key=lambda page: page.stat().st_mtime).parent.name if reports else ""

    def step(self, *, last: bool = False) -> bool:
        """Look once; write a report where a stream has ended.

        Args:
            last: report a stream that still runs, too.

        Returns:
            Whether a report was written.
        """
        events = list(Lines(self.tapped / "live.jsonl").new())
        session = next((event["session"] for event in events if event["event"] == "session"), None)
        if session is None:
            return False
        name = f"run-{session[:12]}"
        if (self.out / name / "index.html").is_file():
            return False
        made = {kind: sum(event["event"] == kind for event in events) for kind in ("preview", "window")}
        self.status = f"streaming: {made['preview']} frames reconstructed, {made['window']} windows refined"
        if not last and not any(event["event"] == "end" for event in events):
            return False
        self.status = "writing the report"
        self._report(self.out / name)
        self.status, self.newest = "waiting for another stream", name
        return True

    def _report(self, folder: Path) -> None:
        from scenarios.report import RunInfo, write_report

        folder.mkdir(parents=True, exist_ok=True)
        for place, names in ((self.frames, _OF_EDGE), (self.tapped, _OF_ADVERSARY)):
            for name in names:
                if (place / name).is_dir():
                    shutil.copytree(place / name, folder / name, dirs_exist_ok=True)
                elif (place / name).exists():
                    shutil.copyfile(place / name, folder / name)
        join = Join(folder)
        join.poll()
        about = Session.from_json((folder / "recording" / "session.json").read_text(encoding="utf-8")).about
        at = sorted(row.capture_time_us for row in join.rows() if row.capture_time_us)
        seconds = (at[-1] - at[0]) / 1e6 if len(at) > 1 else 0.0
        info = RunInfo(
            target=about.target,
            split=about.split,
            video="the edge's",
            solver="window",
            fps=round((len(at) - 1) / seconds, 2) if seconds else 1.0,
            complete=True,
            seconds=seconds,
            previews=any("preview" in row.lag_ms for row in join.rows()),
            session=about.to_dict(),
        )
        write_report(folder, join, info)


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
        streams = not p.status.startswith("waiting")
        link = f'<p><a href="/{p.newest}/index.html">The newest report</a>; <a href="/results/">' if p.newest else "<p>"
        text = (
            '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="refresh" content="{2 if streams or not p.newest else 10}"><title>splitsight</title>'
            '<style>:root{color-scheme:light dark}body{font:16px system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}'
            f"</style><h1>splitsight</h1><p>{html.escape(p.status)}</p>{link}"
        )
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that asks every two seconds would fill the log."""


def serve(publisher: Publisher, host: str, port: int, stop: threading.Event) -> None:
    """Serve the reports until ``stop``, then report what there is."""
    server = ThreadingHTTPServer((host, port), partial(_Handler, publisher=publisher))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"event": "ready", "host": host, "port": server.server_address[1]}), flush=True)
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
        "--published", action="store_true", help="the address is a container's own, which its host publishes on loopback"
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
