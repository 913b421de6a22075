"""How near a server comes to its second part: saturating sessions, beside F2 alone on the same cores.

Every round visits, in random order, the bound and each number of sessions. The bound calls F2 in this process, one
batch after another, at the batch size that is fastest of those the server may use. The sessions are clients in this
process of a real server process on loopback; each keeps as many frames in flight as the server allows. While one
side is measured the other is idle.

The clients share the cores with the server. So two parts are given: ``part`` of what F2 alone gives, where all that the
clients cost is counted against the server, and ``part_left``, of what F2 alone would give in the processor time that
the clients left it: with c cores in use by clients, out of C, F2 on T threads can have ``min(T, C − c)`` cores.

``part`` is the median over rounds of frames a second by the bound's of the same round, with a 95 % percentile
bootstrap interval over rounds. Round trips are from before a frame's message is handed to gRPC until its answer has
been read; with N sessions and F frames in flight they cannot be shorter than N · F by the frames a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cloud_server.bench import Session, drawn_features, interval, resampled, serving
from cloud_server.model import Served
from cloud_server.options import CloudOptions
from splitsight.errors import UserError
from splitsight.wire.channels import Address, aio_channel
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1.split_inference_pb2_grpc import SplitInferenceStub

__all__ = ["SESSIONS", "Measured", "bench_serve", "summarize_serving"]

SESSIONS = (1, 2, 4, 16)
_WARM = 0.3  # seconds until queues are full, unmeasured
_SIZES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes of the bound


@dataclass
class Measured:
    """Some sessions, over all rounds.

    Attributes:
        fps: answers a second of each round.
        seconds: round trip of each answer.
        batches: frames in the batch of each answer.
        clients: cores that the clients kept busy, in each round.
        server: likewise the server, F2 and all else.
    """

    fps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


def bench_serve(
    *,
    target: str = "resnet18",
    split: str = "L8",
    weights: Path | None = None,
    sessions: Sequence[int] = SESSIONS,
    rounds: int = 10,
    seconds: float = 1.0,
    threads: int = 1,
    max_batch: int = 16,
    max_in_flight: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure frames a second and round trips of saturating sessions.

    Takes about ``rounds · (len(sessions) + 1) · (seconds + 0.4)`` seconds.

    Args:
        target: network to serve.
        split: split point; its features travel as float32, uncompressed.
        weights: ``None`` for the embedded ones.
        sessions: numbers of concurrent sessions, each ≥ 1.
        rounds: each visits the bound and every number of sessions once, ≥ 2.
        seconds: measured of each in a round, > 0.
        threads: of F2, at the server and for the bound.
        max_batch: of the server, ≥ 1.
        max_in_flight: of the server, ≥ 1.
        seed: of the order, the features and the bootstrap.
        progress: called with rounds done and rounds in all.

    Returns:
        JSON-serialisable: what :func:`summarize_serving` gives, ``alone`` (F2's frames a second by batch size, also
        of sizes that this server may not use), and the settings.

    Raises:
        UserError: a setting out of range, or the server does not start.
    """
    if rounds < 2 or not 0 < seconds < float("inf") or not sessions or min(sessions) < 1:
        raise UserError("a benchmark needs at least 2 rounds, more than 0 seconds a round and 1 session or more")
    counts = sorted(set(sessions))
    options = CloudOptions(
        target=target,
        split=split,
        weights=weights,
        threads=threads,
        max_batch=max_batch,
        max_in_flight=max_in_flight,
        max_sessions=max(CloudOptions.max_sessions, counts[-1]),
    )
    names = ("target", "split", "weights", "threads", "max_batch", "max_in_flight", "max_sessions")
    served, rng = Served(options), np.random.default_rng(seed)
    frame = drawn_features(served.specs, rng)
    served.warm_up(max_batch)
    sizes = sorted({*_SIZES, max_batch})
    alone = {size: _alone(served, frame, size, min(seconds, 0.5)) for size in sizes}
    best = max((size for size in sizes if size <= max_batch), key=lambda size: alone[size])
    bound: list[float] = []
    measured = {count: Measured() for count in counts}
    with serving(**{name: getattr(options, name) for name in names}) as ready:
        for done in range(rounds):
            for count in rng.permutation([0, *counts]).tolist():
                if count == 0:
                    bound.append(_alone(served, frame, best, seconds))
                else:
                    asyncio.run(_saturate(ready, frame, count, seconds, measured[count]))
            if progress is not None:
                progress(done + 1, rounds)
    settings = {"target": target, "split": split, "rounds": rounds, "seconds": seconds, "threads": threads}
    settings |= {"max_batch": max_batch, "max_in_flight": max_in_flight, "seed": seed}
    figures = {"batch": best, **summarize_serving(bound, measured, seed, threads=threads, cores=_cores())}
    return {
        "schema": "splitsight.bench-serve/1",
        **settings,
        "alone": {str(size): round(fps, 1) for size, fps in alone.items()},
        **figures,
    }


def summarize_serving(
    bound: Sequence[float], measured: dict[int, Measured], seed: int = 0, *, threads: int = 1, cores: int = 2
) -> dict[str, Any]:
    """Figures from what was measured.

    Args:
        bound: frames a second of F2 alone, for each round.
        measured: by the number of sessions, rounds in the same order.
        seed: of the bootstrap.
        threads: of F2.
        cores: of this machine.

    Returns:
        ``bound_fps`` and ``sessions``: for each number of them ``sessions``, ``n`` (answers), ``fps`` (medians over
        rounds, both), ``part`` and ``part_left`` (ratio, low, high), ``clients`` and ``server`` (cores in use,
        medians), ``p50_ms``, ``p99_ms``, ``batch`` (mean size of the batches).
    """
    draws = resampled(len(bound), seed)
    rows = []
    for count, m in measured.items():
        parts = np.array(m.fps) / np.array(bound)
        left = parts / (np.clip(cores - np.array(m.clients), 0.01, threads) / threads)
        p50, p99 = np.percentile(m.seconds, [50, 99])
        rows.append(
            {
                "sessions": count,
                "n": len(m.seconds),
                "fps": round(float(np.median(m.fps)), 1),
                "part": interval(float(np.median(parts)), np.median(parts[draws], axis=1)),
                "part_left": interval(float(np.median(left)), np.median(left[draws], axis=1)),
                "clients": round(float(np.median(m.clients)), 3),
                "server": round(float(np.median(m.server)), 3),
                "p50_ms": round(1e3 * float(p50), 3),
                "p99_ms": round(1e3 * float(p99), 3),
                # each batch of b frames is seen by b answers, so that the mean over batches is a harmonic one
                "batch": round(len(m.batches) / float(np.sum(1 / np.array(m.batches))), 2),
            }
        )
    return {"bound_fps": round(float(np.median(bound)), 1), "sessions": rows}


def _alone(served: Served, frame: list[np.ndarray], size: int, seconds: float) -> float:
    """Frames a second of F2 called in this process, batches of ``size``."""
    batch, done = [frame] * size, 0
    served(batch)
    start = time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or done == 0:
        served(batch)
        done += size
    return done / took


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _used(seconds: float, wait: float, pid: int) -> tuple[float, float]:
    """Cores that this process and another keep busy, for some seconds that begin after ``wait``."""
    processes = psutil.Process(), psutil.Process(pid)
    await asyncio.sleep(wait)
    before = [p.cpu_times() for p in processes]
    await asyncio.sleep(seconds)
    mine, other = (
        (now.user + now.system - then.user - then.system) / seconds
        for now, then in zip([p.cpu_times() for p in processes], before, strict=True)
    )
    return mine, other


async def _saturate(ready: dict[str, Any], frame: list[np.ndarray], count: int, seconds: float, into: Measured) -> None:
    """Measure ``count`` sessions that always have as many frames in flight as they may."""
    async with aio_channel(Address("127.0.0.1", ready["port"])) as opened:
        stub = SplitInferenceStub(opened)
        described = await stub.Describe(pb.DescribeRequest())
        sessions = [await Session.open(stub, described, frame, f"bench-{i}") for i in range(count)]
        start = time.perf_counter() + _WARM
        end = start + seconds
        using = asyncio.ensure_future(_used(seconds, start - time.perf_counter(), ready["pid"]))
        answers = [a for of in await asyncio.gather(*(_pump(s, end) for s in sessions)) for a in of]
        clients, server = await using
    within = [a for a in answers if start <= a[0] < end]
    if not within:
        raise UserError(f"no answer came within {seconds:g} s: give more seconds a round")
    into.fps.append(len(within) / seconds)
    into.clients.append(clients)
    into.server.append(server)
    into.seconds += [took for _, took, _ in within]
    into.batches += [batch for _, _, batch in within]


async def _pump(session: Session, end: float) -> list[tuple[float, float, int]]:
    """Send until ``end``; (when it was read, seconds since it was sent, frames of its batch) of each answer."""
    sent: deque[float] = deque()
    slots = asyncio.Semaphore(session.in_flight)
    answers: list[tuple[float, float, int]] = []

    async def send() -> None:
        while True:
            await slots.acquire()
            if time.perf_counter() >= end:
                return
            request = session.next_frame()
            sent.append(time.perf_counter())
            await session.send(request)

    sending = asyncio.ensure_future(send())
    while not sending.done() or sent:
        if sent:
            answer = await session.answer()
            now = time.perf_counter()
            answers.append((now, now - sent.popleft(), answer.batch_size))
            slots.release()
        else:
            await asyncio.sleep(0)
    await sending
    await session.close()
    return answers
