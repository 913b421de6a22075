"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitsight.wire.ports import serve_metrics

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """What is counted; names start with ``splitsight_``, times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = {"registry": self.registry, "namespace": "splitsight"}
        self.sessions = Gauge("sessions", "Sessions open now", **r)
        self.opened = Counter("sessions_opened", "Sessions opened, resumed ones again", **r)
        self.frames = Counter("frames", "Frames accepted", **r)
        self.bytes = Counter("frame_bytes", "Bytes of accepted frames as they came", **r)
        self.answers = Counter("answers", "Answers written", **r)
        self.refused = Counter("refused", "Calls ended by the server, by gRPC status", ["code"], **r)
        self.queue = Histogram("queue_seconds", "From arrival to the start of F2", buckets=_SECONDS, **r)
        self.compute = Histogram("compute_seconds", "F2, a batch", buckets=_SECONDS, **r)
        self.latency = Histogram("latency_seconds", "From arrival to the written answer", buckets=_SECONDS, **r)
        self.epsilon = Gauge(
            "stream_epsilon",
            "Largest epsilon of a session open now, by its declared defence; 0 without a guarantee",
            **r,
        )
        self.batch = Histogram("batch_frames", "Frames a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **r)
        self.subscribers = Gauge("tap_subscribers", "Subscribers of the tap now", **r)
        self.tapped = Counter("tap_frames", "Frames handed to subscribers", **r)
        self.dropped = Counter("tap_dropped", "Frames dropped for subscribers that read too slowly", **r)

    def serve(self, port: int) -> int:
        """Answer ``GET /metrics`` on loopback from a daemon thread; returns the port.

        Raises:
            UserError: the port is in use.
        """
        return serve_metrics(self.registry, port)
