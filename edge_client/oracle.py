"""The oracle: what an attacker may ask of an edge whose F1 it does not know: images in, features out.

It exists only where somebody starts it. Every picture counts against a budget for the life of the process and against
a rate (a token bucket that holds a second's worth, or one full query); a query is answered whole or refused whole,
and refused ones cost nothing. What comes out is what the edge would send: the picture scaled and cropped, through F1,
through the defence, encoded.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitsight.errors import UserError
from splitsight.wire.credentials import OPEN, ServerCredentials
from splitsight.wire.fields import fields, parsed
from splitsight.wire.tensors import CodecSpec, WireError
from splitsight.wire.v1 import oracle_pb2 as pb

__all__ = ["REASON", "RETRY_MS", "Allowance", "OracleOptions", "OracleService", "Refusal", "Shortage", "edge"]

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


class Refusal(WireError):
    """A query that is not answered.

    Args:
        code: gRPC status.
        message: one sentence.
        reason: one word, for the metrics.
        trailing: metadata that says it to a program; see ``oracle.proto``.
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, reason: str, trailing: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(code, message)
        self.reason, self.trailing = reason, trailing


class OracleService:
    """What is said to queries, however they came.

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
        # all pictures at their largest, and what describes them
        self._largest = 3 * description.max_side**2 * description.max_batch + (1 << 16)
        metrics.left.set(allowance.left)

    def describe(self) -> pb.DescribeOracleResponse:
        """What answers, and how much is left."""
        answer = pb.DescribeOracleResponse()
        answer.CopyFrom(self._description)
        answer.left = self._allowance.left
        return answer

    def read(self, raw: bytes) -> pb.QueryRequest:
        """A query out of the bytes that came; counted before it is parsed, since empty pictures take two bytes each.

        Raises:
            Refusal: they are none, too many or too large.
        """
        most = self._description.max_batch
        try:
            if len(raw) <= self._largest and sum(1 for _ in islice(fields(raw), most + 1)) > most:
                raise self._invalid(f"a query takes 1 to {most} pictures, not more")
            return parsed(pb.QueryRequest, raw, self._largest)
        except ValueError:
            raise self._invalid("a message is not a splitsight.v1.QueryRequest") from None
        except Refusal:
            raise
        except WireError as error:
            raise self._refusal(error.code, error.message, "message") from error

    def query(self, request: pb.QueryRequest) -> pb.QueryResponse:
        """Features of all pictures.

        Raises:
            Refusal: there are none; nothing was counted.
        """
        if (wrong := self._wrong(request)) is not None:
            raise self._invalid(wrong)
        try:
            left = self._allowance.take(len(request.pictures))
        except Shortage as short:
            trailing = ((REASON, short.reason), (RETRY_MS, str(math.ceil(1000 * short.wait))))
            exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise self._refusal(exhausted, short.message, short.reason, trailing) from None
        self._metrics.left.set(left)
        pictures = [np.frombuffer(p.rgb, np.uint8).reshape(p.height, p.width, 3) for p in request.pictures]
        start = time.perf_counter()
        try:
            answers = self._respond(pictures)
        except WireError as error:
            text = f"the features cannot be sent: {error.message}"
            raise self._refusal(grpc.StatusCode.INTERNAL, text, "features") from error
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

    def _invalid(self, message: str) -> Refusal:
        return self._refusal(grpc.StatusCode.INVALID_ARGUMENT, message, "picture")

    def _refusal(
        self, code: grpc.StatusCode, message: str, reason: str, trailing: tuple[tuple[str, str], ...] = ()
    ) -> Refusal:
        self._metrics.refused.labels(reason).inc()
        return Refusal(code, message, reason, trailing)


def edge(options: OracleOptions) -> tuple[pb.DescribeOracleResponse, Respond]:
    """What is told about the edge pipeline, and the pipeline; sets PyTorch's thread count.

    Raises:
        UserError: an unknown target, split or defence, or weights that do not fit.
    """
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
