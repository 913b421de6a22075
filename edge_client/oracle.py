"""The oracle: what an attacker may ask of an edge whose F1 it does not know: images in, features out.

It exists only where somebody starts it. Every picture counts against a budget for the life of the process and against
a rate (a token bucket that holds a second's worth, or one full query); a query is answered whole or refused whole,
and refused ones cost nothing. What comes out is what the edge would send: the picture scaled and cropped, through F1,
through the defence, encoded.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

import grpc
import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitsight.errors import UserError
from splitsight.wire.credentials import OPEN, ServerCredentials
from splitsight.wire.ports import add_port, serve_metrics
from splitsight.wire.tensors import CodecSpec, WireError
from splitsight.wire.v1 import oracle_pb2 as pb
from splitsight.wire.v1 import oracle_pb2_grpc as rpc

__all__ = ["REASON", "RETRY_MS", "Allowance", "OracleOptions", "OracleService", "Shortage", "serve_oracle"]

NAME = "splitsight.v1.Oracle"
REASON, RETRY_MS = "splitsight-reason", "splitsight-retry-ms"
"""Trailing metadata of a refusal; see ``oracle.proto``."""


@dataclass(frozen=True)
class OracleOptions:
    """Settings of one oracle.

    Args:
        target: name of the split network.
        split: name of the split point.
        weights: of the target; ``None`` for the embedded ones.
        host: address to listen on; other than loopback it needs token, certificate and key.
        port: 0 … 65535; 0 takes a free one.
        credentials: what clients must present.
        budget: pictures answered in all, ≥ 1.
        rate: pictures a second, ≥ 0; 0 for no limit.
        max_batch: pictures of one query, ≥ 1.
        max_side: longer side of a picture, in pixels, ≥ 1.
        dtype: ``float32``, ``float16`` or ``int8``.
        compression: ``none`` or ``zstd``.
        defense: what is done to the features before they leave, by name and parameters.
        metrics_port: Prometheus metrics on loopback; ``None`` leaves them off.
        threads: CPU threads of F1, ≥ 1.

    Raises:
        UserError: a value out of range, or an oracle that would be open to anyone.
    """

    target: str = "resnet18"
    split: str = "L8"
    weights: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    credentials: ServerCredentials = OPEN
    budget: int = 5120
    rate: float = 200.0
    max_batch: int = 32
    max_side: int = 512
    dtype: str = "float32"
    compression: str = "none"
    defense: str = "identity"
    metrics_port: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise UserError(f"{name} {value} is not a port: give 0 (any free one) … 65535")
        for name in ("budget", "max_batch", "max_side", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is too small: give at least 1")
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise UserError(f"rate {self.rate:g} is not a number of pictures a second: give 0 (no limit) or more")
        try:
            CodecSpec(self.dtype, self.compression)
        except WireError as error:
            raise UserError(error.message) from error
        self.credentials.check("oracle", "answer anyone on the network", self.host)


class Shortage(Exception):
    """A query that the allowance does not cover.

    Args:
        reason: ``budget`` or ``rate``.
        message: one sentence.
        wait: seconds until it would be covered; 0 for never.
    """

    def __init__(self, reason: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.message, self.wait = reason, message, wait


class Allowance:
    """How many pictures may still be answered, in all and now; safe to use from several threads.

    Args:
        budget: in all.
        rate: a second; 0 for no limit.
        burst: that may come at once, at least; a second's worth where that is more.
        now: seconds on a clock that never goes back.
    """

    def __init__(self, budget: int, rate: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self.left = budget
        self._budget, self._rate, self._room, self._now = budget, rate, max(rate, burst), now
        self._level, self._since = self._room, now()
        self._lock = threading.Lock()

    def take(self, pictures: int) -> int:
        """Count pictures that will be answered; returns what is left of the budget.

        Raises:
            Shortage: all of them together are not covered; nothing was counted.
        """
        with self._lock:
            if self.left == 0:
                raise Shortage("budget", f"the budget of {self._budget} queries is spent")
            if pictures > self.left:
                raise Shortage("budget", f"{self.left} of {self._budget} queries are left, not {pictures}: ask fewer")
            if self._rate > 0:
                now = self._now()
                level = min(self._room, self._level + (now - self._since) * self._rate)
                self._level, self._since = level, now
                if pictures > level:
                    wait = (pictures - level) / self._rate
                    raise Shortage(
                        "rate", f"at most {self._rate:g} queries a second: ask again in {1000 * wait:.0f} ms", wait
                    )
                self._level -= pictures
            self.left -= pictures
            return self.left


class Metrics:
    """What is counted; names start with ``splitsight_oracle_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = {"registry": self.registry, "namespace": "splitsight", "subsystem": "oracle"}
        self.pictures = Counter("pictures", "Pictures answered", **r)
        self.queries = Counter("queries", "Queries answered", **r)
        self.refused = Counter("refused", "Queries refused", ["reason"], **r)
        self.left = Gauge("budget_left", "Pictures left of the budget", **r)
        self.bytes = Counter("feature_bytes", "Bytes of features handed out", **r)
        self.compute = Histogram("compute_seconds", "F1 and encoding, a query", **r)


Respond = Callable[[list[np.ndarray]], list[pb.PictureFeatures]]


class OracleService(rpc.OracleServicer):
    """``splitsight.v1.Oracle``.

    Args:
        description: what is announced, without what is left.
        respond: ``(h, w, 3)`` uint8 pictures → what the edge would send for each; called by one thread at a time.
        allowance: what may be answered.
        metrics: counts.
    """

    def __init__(
        self, description: pb.DescribeOracleResponse, respond: Respond, allowance: Allowance, metrics: Metrics
    ) -> None:
        self._description, self._respond = description, respond
        self._allowance, self._metrics = allowance, metrics
        self._lock = threading.Lock()
        metrics.left.set(allowance.left)

    def Describe(self, request: pb.DescribeOracleRequest, context: grpc.ServicerContext) -> pb.DescribeOracleResponse:
        """What answers, and how much is left."""
        answer = pb.DescribeOracleResponse()
        answer.CopyFrom(self._description)
        answer.left = self._allowance.left
        return answer

    def Query(self, request: pb.QueryRequest, context: grpc.ServicerContext) -> pb.QueryResponse:
        """Features of all pictures, or a refusal."""
        if (wrong := self._wrong(request)) is not None:
            self._refuse(context, "picture", grpc.StatusCode.INVALID_ARGUMENT, wrong)
        try:
            left = self._allowance.take(len(request.pictures))
        except Shortage as short:
            context.set_trailing_metadata(((REASON, short.reason), (RETRY_MS, str(math.ceil(1000 * short.wait)))))
            self._refuse(context, short.reason, grpc.StatusCode.RESOURCE_EXHAUSTED, short.message)
        self._metrics.left.set(left)
        pictures = [np.frombuffer(p.rgb, np.uint8).reshape(p.height, p.width, 3) for p in request.pictures]
        start = time.perf_counter()
        try:
            with self._lock:
                answers = self._respond(pictures)
        except WireError as error:
            self._refuse(context, "features", grpc.StatusCode.INTERNAL, f"the features cannot be sent: {error.message}")
        self._metrics.compute.observe(time.perf_counter() - start)
        self._metrics.queries.inc()
        self._metrics.pictures.inc(len(answers))
        answer = pb.QueryResponse(answers=answers, left=left, instance=self._description.instance)
        self._metrics.bytes.inc(answer.ByteSize())
        return answer

    def _wrong(self, request: pb.QueryRequest) -> str | None:
        most, side = self._description.max_batch, self._description.max_side
        if not 1 <= len(request.pictures) <= most:
            return f"a query takes 1 to {most} pictures, not {len(request.pictures)}"
        for p in request.pictures:
            if max(p.height, p.width) > side:
                return f"a picture of {p.width} × {p.height} pixels is too large: at most {side} a side"
            if min(p.height, p.width) < 1 or len(p.rgb) != 3 * p.height * p.width:
                return f"{len(p.rgb)} bytes are no RGB picture of {p.width} × {p.height} pixels"
        return None

    def _refuse(self, context: grpc.ServicerContext, reason: str, code: grpc.StatusCode, message: str) -> NoReturn:
        self._metrics.refused.labels(reason).inc()
        context.abort(code, message)
        raise AssertionError("abort raises")


def _edge(options: OracleOptions) -> tuple[pb.DescribeOracleResponse, Respond]:
    """The edge pipeline, and what is told about it."""
    import torch

    from splitsight import targets
    from splitsight.data import fit, to_tensor
    from splitsight.pipeline import EdgePipeline

    torch.set_num_threads(options.threads)
    codec = CodecSpec(options.dtype, options.compression)
    pipeline = EdgePipeline(targets.load(options.target, options.weights), options.split, options.defense, codec)

    def respond(pictures: list[np.ndarray]) -> list[pb.PictureFeatures]:
        images = to_tensor(np.stack([fit(p, pipeline.input_size) for p in pictures]))
        with torch.inference_mode():
            answers = pipeline.encode(images)
        return [pb.PictureFeatures(features=tensors) for tensors in answers]

    description = pb.DescribeOracleResponse(
        session=pipeline.description().proto(),
        codec=codec.proto(),
        max_batch=options.max_batch,
        max_side=options.max_side,
        budget=options.budget,
        rate=options.rate,
        version=version("splitsight"),
        instance=uuid.uuid4().hex,
    )
    return description, respond


def serve_oracle(options: OracleOptions) -> int:
    """Answer queries until SIGTERM or SIGINT, then finish those under way.

    Once ready, one JSON line goes to stdout: ``{"event": "ready", "port": …, "metrics_port": …}``. Logs are JSON
    lines on stderr.

    Returns:
        Exit status: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        UserError: a port in use, an unknown target, split or defence, weights that do not fit.
    """
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    caught: list[int] = []
    stop = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        caught.append(number)
        stop.set()

    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    metrics = Metrics()
    server = grpc.server(
        ThreadPoolExecutor(4, thread_name_prefix="oracle"),
        interceptors=options.credentials.interceptors("oracle", metrics.refused.labels("token").inc),
        options=[
            ("grpc.so_reuseport", 0),
            # what is a little too large is read and refused with a sentence of ours, the rest by gRPC unread
            ("grpc.max_receive_message_length", 3 * options.max_side**2 * options.max_batch + (1 << 20)),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ],
    )
    try:
        # ports first: a mistake there should not cost the seconds that loading takes
        port = add_port(server, options.host, options.port, what="oracle", credentials=options.credentials)
        metrics_port = None if options.metrics_port is None else serve_metrics(metrics.registry, options.metrics_port)
        allowance = Allowance(options.budget, options.rate, options.max_batch)
        service = OracleService(*_edge(options), allowance, metrics)
        rpc.add_OracleServicer_to_server(service, server)
        checker = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        server.start()
        for name in ("", NAME):
            checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("ready", target=options.target, split=options.split, port=port, budget=options.budget)
        with suppress(OSError):  # whoever started us need not listen
            print(json.dumps({"event": "ready", "port": port, "metrics_port": metrics_port}), flush=True)
        stop.wait()
        checker.enter_graceful_shutdown()
        server.stop(5).wait()
        log.info("stopped", answered=options.budget - allowance.left)
        return 130 if caught[0] == signal.SIGINT else 0
    finally:
        server.stop(0)
        for number, handler in before.items():
            signal.signal(number, handler)
