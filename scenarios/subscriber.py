"""A subscriber of the tap in a process of its own, for measurements: ``python -m scenarios.subscriber HOST:PORT MODE``.

``reading`` takes every event as it comes; ``hanging`` opens the stream and never reads from it. Either prints
``{"event": "ready"}`` once it has subscribed.
"""

from __future__ import annotations

import json
import signal
import sys
import time

import grpc

from scenarios.processes import die_with_parent
from splitsight.wire.v1 import tap_pb2, tap_pb2_grpc

__all__ = ["main"]

_SUBSCRIBED_S = 0.3


def main() -> None:
    """Subscribe until SIGTERM."""
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address, mode = sys.argv[1:]
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 * 2**20)]) as channel:
        grpc.channel_ready_future(channel).result(30)
        events = tap_pb2_grpc.TapStub(channel).Subscribe(tap_pb2.SubscribeRequest())
        time.sleep(_SUBSCRIBED_S)  # the tap does not say when a subscription is in place
        print(json.dumps({"event": "ready"}), flush=True)
        if mode == "reading":
            for _ in events:
                pass
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
