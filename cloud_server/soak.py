"""Whether a server that serves for long stays as it was: memory, errors and latency, minute by minute.

Paced sessions send frames at a rate that the machine holds easily, each session a frame after the answer to the one
before is in and its time has come; a session now and then ends and another one begins, since what leaks often leaks
there. A server is flat where its memory in the last third of the minutes is what it was in the middle third, up to the
bytes that one allocator's arena may add (:data:`FLAT_MIB`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from cloud_server.bench import Session, drawn_features, serving
from splitsight.errors import UserError
from splitsight.wire.channels import Address, aio_channel
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1.split_inference_pb2_grpc import SplitInferenceStub

__all__ = ["FLAT_MIB", "soak", "summarize_soak"]

FLAT_MIB = 16.0
_FRAMES = 200  # of one session, before another takes its place


def soak(
    *,
    target: str = "resnet18",
    split: str = "L8",
    weights: Path | None = None,
    minutes: int = 30,
    sessions: int = 4,
    rate: float = 40.0,
    threads: int = 1,
    seed: int = 0,
    minute: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Serve for some minutes.

    Args:
        target: network to serve.
        split: split point; its features travel as float32, uncompressed.
        weights: ``None`` for the embedded ones.
        minutes: how long, ≥ 1.
        sessions: at once, ≥ 1.
        rate: frames a second of all sessions together, > 0.
        threads: of F2.
        seed: of the features.
        minute: seconds of a minute.
        progress: called with minutes done and minutes in all.

    Returns:
        JSON-serialisable: ``minutes``, for each of them ``answers``, ``errors`` (sessions that broke), ``opened``,
        ``p50_ms``, ``p99_ms``, ``server_mib``, ``clients_mib`` (resident memory at its end) and ``server_cores``; what
        :func:`summarize_soak` says of them; and the settings.

    Raises:
        UserError: a setting out of range, or the server does not start.
    """
    if minutes < 1 or sessions < 1 or not 0 < rate < float("inf"):
        raise UserError("a soak needs 1 minute or more, 1 session or more and a rate above 0")
    with serving(target=target, split=split, weights=weights, threads=threads, max_sessions=2 * sessions) as ready:
        rows = asyncio.run(_run(ready, minutes, sessions, rate, np.random.default_rng(seed), minute, progress))
    settings = {"target": target, "split": split, "sessions": sessions, "rate_hz": rate, "threads": threads}
    return {"schema": "splitsight.soak/1", **settings, "seed": seed, **summarize_soak(rows), "minutes": rows}


def summarize_soak(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What minutes say together.

    Returns:
        ``answers``, ``errors``, ``growth_mib`` (mean of the last third of the minutes minus that of the middle third)
        and ``flat``, whether that is at most :data:`FLAT_MIB`; both ``None`` for less than three minutes.
    """
    memory, third = [row["server_mib"] for row in rows], len(rows) // 3
    growth = float(np.mean(memory[-third:]) - np.mean(memory[-2 * third : -third])) if third else None
    return {
        "answers": sum(row["answers"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "growth_mib": None if growth is None else round(growth, 2),
        "flat": None if growth is None else growth <= FLAT_MIB,
    }


class _Minute:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors = self.opened = 0


async def _run(
    ready: dict[str, Any],
    minutes: int,
    sessions: int,
    rate: float,
    rng: np.random.Generator,
    minute: float,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    rows, server, me = [], psutil.Process(ready["pid"]), psutil.Process()
    current = [_Minute()]
    async with aio_channel(Address("127.0.0.1", ready["port"])) as opened:
        stub = SplitInferenceStub(opened)
        described = await stub.Describe(pb.DescribeRequest())
        features = drawn_features(described.session.features, rng)

        async def client(number: int) -> None:
            made = 0
            due = time.perf_counter() + number / rate
            while True:
                try:
                    session = await Session.open(stub, described, features, f"soak-{number}-{made}")
                    made += 1
                    current[0].opened += 1
                    for _ in range(_FRAMES):
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        begin = time.perf_counter()
                        due = max(due + sessions / rate, begin)
                        await session.send(session.next_frame())
                        await session.answer()
                        current[0].seconds.append(time.perf_counter() - begin)
                    await session.close()
                except (grpc.RpcError, asyncio.InvalidStateError, RuntimeError):
                    current[0].errors += 1
                    await asyncio.sleep(0.5)

        clients = [asyncio.ensure_future(client(n)) for n in range(sessions)]
        for done in range(minutes):
            before = server.cpu_times()
            await asyncio.sleep(minute)
            now, past = server.cpu_times(), current[0]
            current[0] = _Minute()
            p50, p99 = np.percentile(past.seconds, [50, 99]) if past.seconds else (float("nan"),) * 2
            rows.append(
                {
                    "answers": len(past.seconds),
                    "errors": past.errors,
                    "opened": past.opened,
                    "p50_ms": round(1e3 * float(p50), 3),
                    "p99_ms": round(1e3 * float(p99), 3),
                    "server_mib": round(server.memory_info().rss / 2**20, 1),
                    "clients_mib": round(me.memory_info().rss / 2**20, 1),
                    "server_cores": round((now.user + now.system - before.user - before.system) / minute, 3),
                }
            )
            if progress is not None:
                progress(done + 1, minutes)
        for one in clients:
            one.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return rows
