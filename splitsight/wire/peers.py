"""What one peer may ask of a server: streams at once, and frames a second.

A peer is a network address, since whoever can open one session can open many. The rate is kept by the generic cell
rate algorithm (ITU-T I.371): a frame is due ``1/rate`` seconds after the one before, and a burst of ``rate`` frames,
one second's worth, may come early. A frame that comes too early is not refused: it is read later, so that HTTP/2 flow
control holds the peer back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from splitsight.wire.tensors import WireError

__all__ = ["Peers", "host_of_peer"]

_CLOCKS = 64  # kept for peers without a stream before those that have run out are looked for


def host_of_peer(peer: str) -> str:
    """The address without its port out of what gRPC calls a peer: ``ipv4:10.0.0.1:4711``, ``ipv6:[::1]:4711``."""
    return peer.rpartition(":")[0] or peer


class Peers:
    """Counts and clocks, one a peer.

    A count is forgotten when the peer's last stream ends, a clock only when it has run out: whoever could shed it by
    connecting again would have a new burst each time.

    Args:
        streams: of one peer at once, ≥ 1.
        rate: frames a second of one peer over all its streams; 0 for no limit.
        clock: seconds.
    """

    def __init__(self, streams: int, rate: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._rate, self._clock = streams, rate, clock
        self._open: Counter[str] = Counter()
        self._due: dict[str, float] = {}

    @contextmanager
    def stream(self, peer: str) -> Iterator[None]:
        """Around one stream of a peer.

        Raises:
            WireError: it has too many already.
        """
        host = host_of_peer(peer)
        if self._open[host] >= self._most:
            raise WireError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{host} already has {self._most} streams, the most that one peer may have: end one first",
            )
        self._open[host] += 1
        try:
            yield
        finally:
            self._open[host] -= 1
            if not self._open[host]:
                del self._open[host]
            if len(self._due) > 2 * len(self._open) + _CLOCKS:
                now = self._clock()
                self._due = {peer: due for peer, due in self._due.items() if due > now}

    def wait(self, peer: str) -> float:
        """Seconds to wait before a peer's next frame may be read; it counts as read then."""
        if not self._rate:
            return 0.0
        host, now = host_of_peer(peer), self._clock()
        due = max(self._due.get(host, now), now)
        self._due[host] = due + 1 / self._rate
        return max(0.0, due - now - 1.0)
