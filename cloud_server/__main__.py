"""``python -m cloud_server``: one server, every setting of :class:`cloud_server.options.CloudOptions` as an option."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cloud_server.options import CloudOptions
from splitsight.errors import UserError

_HELP: dict[str, tuple[type, str]] = {
    "target": (str, "name of the network"),
    "split": (str, "split point"),
    "weights": (Path, "safetensors or PyTorch file (default: the embedded weights)"),
    "defense": (str, "what every session must do to its features (default: whatever leaves F2 as it is)"),
    "host": (str, "address to listen on"),
    "port": (int, "0 takes a free one"),
    "tap_port": (int, "port of the tap; 0 takes a free one (default: no tap)"),
    "tap_host": (str, "address of the tap"),
    "token_file": (Path, "file of the bearer token that edges must send"),
    "tap_token_file": (Path, "file of the bearer token that subscribers of the tap must send"),
    "cert": (Path, "PEM certificate chain, for both ports"),
    "key": (Path, "PEM key that belongs to it"),
    "client_ca": (Path, "PEM certificates of the authority that must have signed the callers' own"),
    "insecure": (bool, "serve edges on other addresses than loopback without token and TLS, too; never the tap"),
    "tap_ring": (int, "frames kept for a subscriber that does not read"),
    "max_subscribers": (int, "subscribers of the tap at once"),
    "metrics_port": (int, "Prometheus metrics on loopback; 0 takes a free port (default: off)"),
    "threads": (int, "threads of F2 (default: torch's choice)"),
    "batch_window_ms": (float, "longest that a frame waits for others to be computed with, in milliseconds"),
    "max_batch": (int, "frames computed together"),
    "max_sessions": (int, "sessions at once"),
    "max_in_flight": (int, "frames of one session waiting for an answer"),
    "max_streams_per_peer": (int, "streams at once from one network address"),
    "max_frame_rate": (float, "frames a second from one network address; 0 for no limit"),
    "idle_seconds": (float, "after which a session without a new frame is ended"),
    "stream_hours": (float, "after which any stream is ended"),
    "max_message_mb": (float, "largest message, in MiB"),
    "drain_seconds": (float, "longest that a shutdown waits for frames under way, in seconds"),
    "resume_seconds": (float, "how long the tap waits for a lost session to come back, in seconds"),
}


def main(arguments: list[str] | None = None) -> int:
    """Parse, serve; a mistake of the user's is one sentence on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m cloud_server", description="Serve the second part of a network.")
    defaults = CloudOptions()
    for name, (kind, text) in _HELP.items():
        default = getattr(defaults, name)
        shown = "" if default is None else f" (default: {default})"
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(option, action="store_true", help=text)
        else:
            also = ("--require-defense",) if name == "defense" else ()
            parser.add_argument(option, *also, type=kind, default=default, help=text + shown)
    try:
        options = CloudOptions(**vars(parser.parse_args(arguments)))
        from cloud_server.server import serve

        return serve(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
