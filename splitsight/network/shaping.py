"""When bytes that enter a link come out of it: token bucket, latency, jitter, losses; no sockets and no clock in here.

A token bucket of rate r holds at most b tokens, a byte each; bytes pass when their tokens are there (ITU-T I.371, as a
leaky bucket; RFC 2697). With b = 0 it is a transmitter: n bytes take n / r. Behind it come the latency, drawn for each
message, and a round trip more for each time that a segment is lost (:mod:`splitsight.network.prediction`). What came in
first comes out first: later bytes wait for earlier ones, as TCP makes them.
"""

from __future__ import annotations

import math

import numpy as np

from splitsight.network.prediction import SEGMENT
from splitsight.network.profiles import NetworkProfile

__all__ = ["Direction", "TokenBucket", "directions"]

_PAUSE_S = 2e-3
"""A message ends where the link is free and nothing has come in for so long."""


class TokenBucket:
    """Bytes pass at a rate.

    Args:
        rate: bytes a second, > 0; infinity lets everything pass at once.
        burst: bytes that may pass at once after a rest, ≥ 0.
    """

    def __init__(self, rate: float, burst: float = 0.0) -> None:
        self.rate, self.burst = rate, burst
        self._tokens, self._at = burst, -math.inf

    def take(self, size: float, now: float) -> float:
        """When the last of ``size`` bytes has passed that come in at ``now`` seconds; calls come in order of time."""
        if math.isinf(self.rate):
            return now
        self._tokens = min(self.burst, self._tokens + self.rate * (now - self._at)) - size
        self._at = now
        return now + max(0.0, -self._tokens) / self.rate


class Direction:
    """One direction of a connection.

    Args:
        mbps: bandwidth, 10⁶ bits a second, > 0.
        profile: latency, jitter and losses.
        rng: of jitter and losses.
    """

    def __init__(self, mbps: float, profile: NetworkProfile, rng: np.random.Generator) -> None:
        self._bucket = TokenBucket(mbps * 1e6 / 8)
        self._profile, self._rng = profile, rng
        self._free = self._heard = self._last = -math.inf
        self._latency = 0.0

    def deliver_at(self, size: int, now: float) -> float:
        """When ``size`` bytes come out that come in at ``now`` seconds; calls come in order of time.

        Not before what came in earlier.
        """
        profile = self._profile
        if now >= self._free and now - self._heard > _PAUSE_S:
            self._latency = max(0.0, self._rng.normal(profile.latency_ms, profile.jitter_ms)) / 1e3
        lost = self._rng.geometric(1 - profile.loss, math.ceil(size / SEGMENT)) - 1 if profile.loss else np.zeros(1)
        self._heard = now
        self._free = self._bucket.take(size + SEGMENT * int(lost.sum()), now)
        self._last = max(self._last, self._free + self._latency + int(lost.max()) * profile.rtt_ms / 1e3)
        return self._last

    @property
    def capacity(self) -> int:
        """Bytes that the link may hold: those that are on their way, and a queue of 256 KiB before it."""
        way = self._bucket.rate * (self._profile.latency_ms + 4 * self._profile.jitter_ms) / 1e3
        return (256 << 10) + (int(way) if math.isfinite(way) else 64 << 20)


def directions(profile: NetworkProfile, rng: np.random.Generator) -> tuple[Direction, Direction]:
    """Uplink and downlink of a connection.

    Args:
        profile: what they are like.
        rng: each gets one of its own from it; another call gives others.
    """
    up, down = rng.spawn(2)
    return Direction(profile.uplink_mbps, profile, up), Direction(profile.downlink_mbps, profile, down)
