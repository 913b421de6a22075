"""``python -m edge_client``: an edge on its own, every option as ``--name``; ``splitsight edge`` is the full one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_client.client import EdgeOptions, run_edge
from splitsight.errors import UserError


def _event(name: str, details: dict[str, Any]) -> None:
    print(json.dumps({"event": name, **details}), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs an edge; prints events as JSON lines and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_client", description=__doc__)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    for name, kind in (
        ("video", str),
        ("target", str),
        ("split", str),
        ("weights", Path),
        ("fps", float),
        ("seconds", float),
        ("dtype", str),
        ("compression", str),
        ("defense", str),
        ("epsilon-budget", float),
        ("epsilon-ledger", Path),
        ("in-flight", int),
        ("threads", int),
        ("report", Path),
        ("truth", Path),
        ("wait-s", float),
        ("give-up-s", float),
        ("answer-timeout-s", float),
        ("drain-s", float),
        ("source-timeout-s", float),
        ("session-id", str),
        ("network", str),
        ("network-seed", int),
    ):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    for name in ("loop", "pace"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
    try:
        return run_edge(EdgeOptions(**vars(parser.parse_args(arguments))), _event).exit_code
    except UserError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
