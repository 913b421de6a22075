"""How long a frame's features take to the server, and its answer back.

A message of b bytes is framed (:func:`framed`) and cut into n segments. On a link of bandwidth B and loss p, with the
one-way latency L ~ N(latency, jitter²) and the round trip R = 2 · latency, the k-th segment has left after

    t_k = k · s,    s = 8 · SEGMENT / (B (1 − p))        (each is sent 1 / (1 − p) times on average)

and arrives L later, or after G_k more round trips if G_k copies of it were lost in a row: P(G_k ≤ m) = 1 − p^(m+1),
independently (selective retransmission, a round trip each, as RACK-TLP finds losses; RFC 8985). TCP delivers in order,
so the message is there after

    T = L + max_k (t_k + G_k R) = n s + L + X,    P(X ≤ x) = Π_k (1 − p^(⌊(x + (n − k) s) / R⌋ + 1))  for x ≥ 0,

the maximum of geometric variables as in reliable multicast (Towsley, Kurose and Pingali, IEEE JSAC 15(3), 1997), here
with starts that are s apart. Mean, median and spread of the sum over both directions follow from that distribution,
evaluated on a grid; jitter is drawn once a message, since its segments follow one another closely.

If frames are offered faster than the link carries them (8 b · fps ≥ B (1 − p)), the queue grows without bound: such a
time is infinite and ``saturated``. Frames that come at regular intervals and slower do not wait for one another.

Not modelled: TCP's slow start (a connection that rests for longer than a retransmission time-out begins with ten
segments again, RFC 6928, RFC 5681 §4.1), the throughput that congestion control gives away, other traffic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from splitsight.network.profiles import NetworkProfile

__all__ = ["SEGMENT", "FrameLatency", "NetworkTime", "framed", "predict"]

SEGMENT = 1448
"""Bytes of TCP payload in a packet of 1,500: without 20 of IP, 20 of TCP and 12 of timestamps."""
_HTTP2_FRAME, _HTTP2_HEADER = 16384, 9  # RFC 9113 §4.1, §4.2: the size that every peer takes
_GRPC_HEADER = 5  # compressed flag and length of the message
_CELLS = 2048  # of the grid on which a loss delay is tabulated
_NEGLIGIBLE = 1e-9


def framed(message_bytes: float) -> float:
    """Bytes that TCP carries for a gRPC message: its own, 5 of gRPC, and 9 of HTTP/2 for each 16 KiB begun."""
    size = message_bytes + _GRPC_HEADER
    return size + _HTTP2_HEADER * math.ceil(size / _HTTP2_FRAME)


@dataclass(frozen=True)
class NetworkTime:
    """What the network adds to a frame's latency, in milliseconds.

    Attributes:
        up_ms: sending the features, from the first bit to the last.
        down_ms: sending the answer.
        propagation_ms: latency of both directions, mean.
        loss_ms: waiting for what was lost, mean.
        mean_ms: all of it, mean.
        median_ms: all of it, median.
        std_ms: standard deviation.
        utilisation: part of the time that the busier direction is sending at ``fps``; 0 where none was given.
        saturated: more is offered than the link carries; then the times of all of it are infinite.
    """

    up_ms: float
    down_ms: float
    propagation_ms: float
    loss_ms: float
    mean_ms: float
    median_ms: float
    std_ms: float
    utilisation: float = 0.0
    saturated: bool = False


@dataclass(frozen=True)
class FrameLatency:
    """From a captured frame to its answer, one frame at a time, in milliseconds.

    Attributes:
        edge_ms: resize, F1, defence, encoding.
        network_ms: :class:`NetworkTime`.
        cloud_ms: decoding, F2, reading the output.
        overhead_ms: gRPC, queues and Python between them, as measured on loopback.
    """

    edge_ms: float
    network_ms: float
    cloud_ms: float
    overhead_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """The sum."""
        return self.edge_ms + self.network_ms + self.cloud_ms + self.overhead_ms


def predict(profile: NetworkProfile, up_bytes: float, down_bytes: float, *, fps: float | None = None) -> NetworkTime:
    """Time that a frame's features need to the server and its answer back.

    Args:
        profile: of the network.
        up_bytes: size of a frame's gRPC message, > 0.
        down_bytes: size of its answer's, > 0.
        fps: frames a second that are offered; ``None`` for one frame at a time.

    Raises:
        ValueError: a size or a rate that is not positive.
    """
    if not (up_bytes > 0 and down_bytes > 0 and (fps is None or fps > 0)):
        raise ValueError(f"sizes and rate must be positive, not {up_bytes}, {down_bytes}, {fps}")
    sizes = framed(up_bytes), framed(down_bytes)
    bands = profile.uplink_mbps, profile.downlink_mbps
    sending = [8 * size / (1e3 * band * (1 - profile.loss)) for size, band in zip(sizes, bands, strict=True)]
    segments = [math.ceil(size / SEGMENT) for size in sizes]
    latency, spread = _rectified(profile.latency_ms, profile.jitter_ms)
    delays, chances = _lost(profile, segments, [t / n for t, n in zip(sending, segments, strict=True)])
    loss = float(delays @ chances)
    variance = float(delays**2 @ chances) - loss**2 + 2 * spread**2
    certain = sum(sending) + 2 * latency
    median = certain + _median(delays, chances, math.sqrt(2) * spread)
    mean, std = certain + loss, math.sqrt(max(variance, 0.0))
    utilisation = 0.0 if fps is None else max(sending) * fps / 1e3
    saturated = utilisation >= 1
    if saturated:
        mean = median = std = math.inf
    up, down = sending
    return NetworkTime(up, down, 2 * latency, loss, mean, median, std, utilisation, saturated)


def _rectified(mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation of max(0, N(mean, std²))."""
    if mean >= 40 * std:  # nothing of it is below zero that a float could hold
        return mean, std
    from scipy.special import ndtr  # here, since every edge knows its network, and few ask what it would take

    a = mean / std
    density = math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    first = mean * float(ndtr(a)) + std * density
    second = (mean**2 + std**2) * float(ndtr(a)) + mean * std * density
    return first, math.sqrt(max(second - first**2, 0.0))


def _lost(profile: NetworkProfile, segments: list[int], spacing: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """What losses add over both directions: delays in ms on a grid, and the probability of each."""
    p, rtt = profile.loss, profile.rtt_ms
    if p == 0 or rtt == 0:
        return np.zeros(1), np.ones(1)
    rounds = max(1, math.ceil(math.log(_NEGLIGIBLE / max(segments)) / math.log(p)))
    edges = np.linspace(0, rounds, _CELLS + 1)  # in round trips
    both = np.ones(1)
    for n, s in zip(segments, spacing, strict=True):
        below = _below(edges, n, s / rtt, p, rounds)
        both = np.convolve(both, np.diff(below, prepend=0.0))
    step = rounds * rtt / _CELLS
    # what lies in a cell counts at its middle; nothing lost is exactly no delay
    delays = np.maximum(0.0, (np.arange(len(both)) - 0.5) * step)
    return delays, both / both.sum()


def _below(x: np.ndarray, n: int, spacing: float, p: float, rounds: int) -> np.ndarray:
    """P(X ≤ x) of the module's formula, times in round trips: segments are counted by the rounds they have time for."""

    def affording(m: int) -> np.ndarray:
        late = np.clip(np.ceil((m - x) / max(spacing, 1e-300)), 0, n)
        return np.where(x >= m, n, n - late)

    log = np.zeros_like(x)
    for m in range(rounds + 1):
        log += (affording(m) - affording(m + 1)) * math.log1p(-(p ** (m + 1)))
    return np.exp(log)


def _median(delays: np.ndarray, chances: np.ndarray, jitter: float) -> float:
    """Median of a loss delay plus N(0, jitter²)."""
    if jitter < 1e-6:  # a nanosecond
        return float(delays[np.searchsorted(np.cumsum(chances), 0.5 - 1e-12)])
    from scipy.optimize import brentq
    from scipy.special import ndtr

    lowest, highest = -10 * jitter, float(delays[-1]) + 10 * jitter
    found = brentq(lambda t: float(chances @ ndtr((t - delays) / jitter)) - 0.5, lowest, highest, xtol=1e-6)
    return float(found)  # pyright: ignore[reportArgumentType]  a tuple only with full_output
