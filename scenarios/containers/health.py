"""``python -m scenarios.containers.health``: is this container's role (``$ROLE``) at work? Else exit code 1, and why.

* ``cloud``: its gRPC health service says that it serves;
* ``edge``: a frame was answered within the last half minute;
* ``adversary``: its models are loaded, and it has not lost the tap;
* ``page``: it answers.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["adversary", "cloud", "edge", "main", "page"]

RESULTS = Path("/results/run")
CERTS = Path("/certs")
_QUIET_S = 30.0


def _last(path: Path) -> dict[str, object]:
    """The last complete line of a file of JSON lines; empty where there is none."""
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
    except OSError:
        return {}
    return json.loads(lines[-1]) if lines else {}


def cloud(address: str = "127.0.0.1:50051", certs: Path = CERTS) -> str | None:
    """What is wrong with a server, ``None`` for nothing; over TLS where there are certificates."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from splitsight.wire.channels import parse_address
    from splitsight.wire.credentials import ANONYMOUS, ClientCredentials

    there = (certs / "ca.pem").is_file()
    shown = (
        ClientCredentials(None, certs / "ca.pem", certs / "client.pem", certs / "client.key") if there else ANONYMOUS
    )
    with shown.channel(parse_address(address, "127.0.0.1:50051")) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # pyright: ignore[reportAttributeAccessIssue]
                health_pb2.HealthCheckRequest(), timeout=5
            )
        except grpc.RpcError as error:
            return f"no answer: {error}"
    return None if answer.status == health_pb2.HealthCheckResponse.SERVING else "it does not serve"


def edge(folder: Path = RESULTS, now: float | None = None) -> str | None:
    """What is wrong with an edge that writes its answers there, ``None`` for nothing."""
    answered = _last(folder / "edge.jsonl").get("answered_us")
    if not isinstance(answered, int):
        return "no frame has been answered yet"
    quiet = (time.time() if now is None else now) - answered / 1e6
    return f"no frame has been answered for {quiet:.0f} s" if quiet > _QUIET_S else None


def adversary(folder: Path = RESULTS) -> str | None:
    """What is wrong with an adversary that writes there, ``None`` for nothing."""
    try:
        lines = (folder / "live.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "its models are not loaded yet"
    tap = [line for line in lines if '"tap_lost"' in line or '"tap_back"' in line]
    return "the tap is lost" if tap and '"tap_lost"' in tap[-1] else None


def page(address: str = "127.0.0.1:8080", certs: Path = CERTS) -> str | None:
    """What is wrong with the page, ``None`` for nothing; over TLS where there are certificates."""
    there = (certs / "ca.pem").is_file()
    context = ssl.create_default_context(cafile=str(certs / "ca.pem")) if there else None
    url = f"{'https' if there else 'http'}://{address}/live/status.json"
    try:
        with urllib.request.urlopen(url, timeout=5, context=context):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code == 401 else f"it answers {error.code}"  # 401: it asks for its token
    except OSError as error:
        return f"no answer: {error}"


def main(role: str) -> int:
    """Check one role.

    Returns:
        Exit code: 0 for healthy.
    """
    wrong = {"cloud": cloud, "edge": edge, "adversary": adversary, "page": page}[role]()
    print(wrong or "healthy")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main(os.environ["ROLE"]))
