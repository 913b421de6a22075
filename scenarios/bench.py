"""What the tap costs the serving: A/B runs against one server, interleaved so that drift hits all alike.

Three conditions take turns, in an order drawn anew each round: no subscriber, a subscriber that reads, a
subscriber that takes the stream and never reads. One client sends frames and waits for each answer; the
round-trip times of a round are compared within that round, and the differences get a 95 % interval over
rounds.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from scenarios.processes import Supervisor, terminate_as_interrupt
from splitsight.errors import UserError
from splitsight.metrics import mean_interval
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import split_inference_pb2_grpc

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CONDITIONS", "BenchOptions", "bench_tap", "compare", "table"]

CONDITIONS = ("off", "reading", "hanging")
_SCHEMA = "splitsight.bench-tap/1"
_ANSWER_S = 60.0


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        out: folder for ``summary.json`` and ``rows.parquet``; ``None`` for none.
        target: name of the split network.
        split: name of the split point.
        rounds: times that every condition is measured.
        frames: frames a condition and round.
        fps: frames a second; 0 sends the next frame when one is answered.
        seed: of the order and the features.
    """

    out: Path | None = None
    target: str = "resnet18"
    split: str = "L8"
    rounds: int = 20
    frames: int = 200
    fps: float = 0.0
    seed: int = 0


def _session(stub: split_inference_pb2_grpc.SplitInferenceStub, options: BenchOptions) -> Iterator[float]:
    """Round-trip times in ms of one session with one frame in flight."""
    served = stub.Describe(pb.DescribeRequest(), timeout=30)
    codec = CodecSpec("float32", "none")
    rng = np.random.default_rng(options.seed)
    features = [encode(np.abs(rng.standard_normal(tuple(f.shape), np.float32)), codec) for f in served.features]
    answered = threading.Semaphore(0)
    sent = [0.0]
    opening = pb.SessionOpen(
        session_id=uuid.uuid4().hex,
        target=served.target,
        split=served.split,
        features=served.features,
        weights_digest=served.weights_digest,
        codec=codec.proto(),
        defense="identity",
        resume_after=-1,
    )

    def requests() -> Iterator[pb.InferRequest]:
        yield pb.InferRequest(open=opening)
        start = time.monotonic()
        for sequence in range(options.frames):
            if not answered.acquire(timeout=_ANSWER_S):
                return
            if options.fps > 0:
                time.sleep(max(0.0, start + sequence / options.fps - time.monotonic()))
            frame = pb.Frame(sequence=sequence, capture_time_us=time.time_ns() // 1000, features=features)
            sent[0] = time.perf_counter()
            yield pb.InferRequest(frame=frame)

    for response in stub.Infer(
        requests(), timeout=_ANSWER_S + options.frames * (0.5 + (1 / options.fps if options.fps else 0))
    ):
        if response.WhichOneof("message") == "answer":
            yield 1e3 * (time.perf_counter() - sent[0])
        answered.release()


@contextmanager
def _subscriber(children: Supervisor, address: str, condition: str) -> Iterator[None]:
    """A subscriber of the tap in the given condition, in a process of its own, for as long as the block runs."""
    if condition != "off":
        child = children.start(condition, "subscriber", ["-m", "scenarios.subscriber", address, condition])
        child.wait_event("ready", 60)
    try:
        yield
    finally:
        if condition != "off":
            children.stop(condition, grace=5)


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Latency per condition, and what each subscriber adds, in per cent of the rounds' own ``off``.

    Args:
        rows: one a condition and round, with ``condition``, ``round``, ``p50_ms``, ``p99_ms``.

    Returns:
        ``{condition: {"p50_ms": interval, "p99_ms": interval, "p50_added_percent": …, "p99_added_percent": …}}``.
    """
    by = {(r["condition"], r["round"]): r for r in rows}
    rounds = sorted({r["round"] for r in rows})
    out: dict[str, Any] = {}
    for condition in CONDITIONS:
        mine = out.setdefault(condition, {})
        for name in ("p50_ms", "p99_ms"):
            values = [by[condition, r][name] for r in rounds]
            mine[name] = mean_interval(values)
            if condition != "off":
                added = [100 * (by[condition, r][name] / by["off", r][name] - 1) for r in rounds]
                mine[name.replace("_ms", "_added_percent")] = {
                    **mean_interval(added),
                    "median": float(np.median(added)),
                }
    return out


def bench_tap(options: BenchOptions) -> dict[str, Any]:
    """Measure; see the module.

    Returns:
        ``{"schema", "target", "split", "options", "conditions": as :func:`compare`, "environment"}``.

    Raises:
        UserError: unknown names, or a server that failed.
    """
    from splitsight.summary import environment

    rows: list[dict[str, Any]] = []
    order = random.Random(options.seed)
    logs = (options.out or Path("runs") / "bench-tap") / "logs"
    with terminate_as_interrupt(), Supervisor(logs) as children:
        names = ("--target", options.target, "--split", options.split)
        arguments = ["-m", "scenarios.cli", "cloud", *names, "--port", "0", "--tap-port", "0", "--threads", "1"]
        cloud = children.start("cloud", "cloud server", [*arguments, "--batch-window", "0"])
        ready = cloud.wait_event("ready", 180)
        with grpc.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
            stub = split_inference_pb2_grpc.SplitInferenceStub(channel)
            try:
                list(_session(stub, options))  # caches, allocators, clocks
                for number in range(options.rounds):
                    for condition in order.sample(CONDITIONS, len(CONDITIONS)):
                        with _subscriber(children, f"127.0.0.1:{ready['tap_port']}", condition):
                            times = list(_session(stub, options))
                        p50, p99 = np.percentile(times, [50, 99])
                        rows.append(
                            {
                                "round": number,
                                "condition": condition,
                                "frames": len(times),
                                "p50_ms": float(p50),
                                "p99_ms": float(p99),
                                "times_ms": times,
                            }
                        )
            except grpc.RpcError as error:
                children.check()
                raise UserError(f"the cloud server refused the load: {error}", code=1) from error
        children.stop("cloud", grace=10)
    result = {
        "schema": _SCHEMA,
        "target": options.target,
        "split": options.split,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "conditions": compare(rows),
        "environment": environment(),
    }
    if options.out is not None:
        import json

        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), options.out / "rows.parquet")
        (options.out / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    from rich.table import Table

    out = Table(title=f"tap at {result['target']} {result['split']}, means over rounds with 95 % intervals")
    for column in ("subscriber", "p50, ms", "p99, ms", "p50 added, %", "p99 added, %"):
        out.add_column(column, justify="left" if column == "subscriber" else "right")
    for name, figures in result["conditions"].items():
        cells = []
        for key in ("p50_ms", "p99_ms", "p50_added_percent", "p99_added_percent"):
            v = figures.get(key)
            cells.append(f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" if v else "")
        out.add_row(name, *cells)
    return out
