"""What the tap costs: interleaved rounds against a real server process on loopback.

Arms: ``none`` (nobody subscribes), ``control`` (the same once more, so that the spread of its ratio shows what
this machine's noise alone gives), ``reading`` and ``hanging`` (subscribes, never reads). Every round visits all
arms in random order, a few dozen paced requests each, so that whatever else the machine does falls on all of
them alike. With m the median of an arm in a round:

* p50 ratio: median over rounds of ``m(arm) / m(none)``;
* p99 ratio: p99 over all requests of the arm by that of ``none``;

both with a 95 % percentile bootstrap interval over rounds, which keeps an arm's rounds paired.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  missing in the stub

from splitsight.errors import UserError
from splitsight.wire.channels import Address, aio_channel, channel
from splitsight.wire.sessions import UNDEFENDED
from splitsight.wire.tensors import CodecSpec, HasShape, encode
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1.split_inference_pb2_grpc import SplitInferenceStub

__all__ = ["ARMS", "Session", "bench_tap", "drawn_features", "interval", "resampled", "serving", "summarize"]

ARMS = ("none", "control", "reading", "hanging")
_BOOTSTRAP = 2000


def bench_tap(
    *,
    target: str = "resnet18",
    split: str = "L8",
    weights: Path | None = None,
    rounds: int = 40,
    requests: int = 25,
    rate: float = 40.0,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure serving latency, as a client sees it, with and without subscribers.

    Takes about ``4 · rounds · (requests / rate + 0.2)`` seconds.

    Args:
        target: network to serve.
        split: split point; its features travel as float32, uncompressed.
        weights: ``None`` for the embedded ones.
        rounds: each visits every arm once, ≥ 2.
        requests: measured in an arm and round, ≥ 2; five more go before them unmeasured.
        rate: requests a second, > 0; should leave the server idle for part of the time.
        threads: of F2.
        seed: of the order of the arms, the features and the bootstrap.
        progress: called with rounds done and rounds in all.

    Returns:
        JSON-serialisable: ``arms`` (n, p50_ms, p99_ms), ``ratios`` to ``none`` (p50 and p99, each with low and
        high), ``aims``, ``met`` (``yes``, ``no`` or, where the interval holds the aim, ``undecided``), and the
        settings.

    Raises:
        UserError: a setting out of range, or the server does not start.
    """
    if rounds < 2 or requests < 2 or not rate > 0:
        raise UserError("a benchmark needs at least 2 rounds, 2 requests a round and a rate above 0")
    with serving(target=target, split=split, weights=weights, threads=threads, tap_port=0) as ready:
        subscriber = _spawn("cloud_server.bench", str(ready["tap_port"]))
        _forget(subscriber.stderr)
        try:
            samples, size = asyncio.run(
                _measure(ready["port"], subscriber, rounds, requests, rate, np.random.default_rng(seed), progress)
            )
        finally:
            _end(subscriber)
    settings = {"target": target, "split": split, "rounds": rounds, "requests": requests, "rate_hz": rate}
    settings |= {"threads": threads, "seed": seed, "frame_bytes": size}
    return {"schema": "splitsight.bench-tap/1", **settings, **summarize(samples, seed)}


def summarize(samples: dict[str, np.ndarray], seed: int = 0) -> dict[str, Any]:
    """Figures from latencies.

    Args:
        samples: for each arm ``(rounds, requests)`` in seconds; one is called ``none``.
        seed: of the bootstrap.
    """
    rounds = len(samples["none"])
    draws = resampled(rounds, seed)

    def p99(arm: str, chosen: np.ndarray) -> float:
        return float(np.quantile(samples[arm][chosen], 0.99))

    arms, ratios = {}, {}
    everything = np.arange(rounds)
    base = np.array([p99("none", d) for d in draws])
    for arm, values in samples.items():
        p50 = float(np.median(values))
        arms[arm] = {
            "n": int(values.size),
            "p50_ms": round(1e3 * p50, 4),
            "p99_ms": round(1e3 * p99(arm, everything), 4),
        }
        if arm == "none":
            continue
        paired = np.median(values, axis=1) / np.median(samples["none"], axis=1)
        ratios[arm] = {
            "p50": interval(float(np.median(paired)), np.median(paired[draws], axis=1)),
            "p99": interval(
                p99(arm, everything) / p99("none", everything), np.array([p99(arm, d) for d in draws]) / base
            ),
        }
    aims = {"p50": 1.01, "p99": 1.03}
    met = {arm: {k: _verdict(v, aims[k]) for k, v in r.items()} for arm, r in ratios.items() if arm != "control"}
    return {"arms": arms, "ratios": ratios, "aims": aims, "met": met}


def resampled(rounds: int, seed: int) -> np.ndarray:
    """``(2000, rounds)``: the rounds of each bootstrap sample."""
    return np.random.default_rng(seed).integers(0, rounds, (_BOOTSTRAP, rounds))


def interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    """A ratio with its 95 % percentile bootstrap interval, from what the resampled rounds give."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": round(value, 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def _verdict(measured: dict[str, float], aim: float) -> str:
    """``yes`` and ``no`` only where the whole interval says so."""
    if measured["high"] <= aim:
        return "yes"
    return "no" if measured["low"] > aim else "undecided"


async def _measure(
    port: int,
    subscriber: subprocess.Popen[str],
    rounds: int,
    requests: int,
    rate: float,
    rng: np.random.Generator,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray], int]:
    warm = 5
    samples: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    async with aio_channel(Address("127.0.0.1", port)) as opened:
        stub = SplitInferenceStub(opened)
        served = await stub.Describe(pb.DescribeRequest())
        session = await Session.open(stub, served, drawn_features(served.session.features, rng), "bench")
        for done in range(rounds):
            for arm in rng.permutation(ARMS):
                _order(subscriber, "off" if arm in ("none", "control") else arm)
                await asyncio.sleep(0.05)
                took: list[float] = []
                due = time.perf_counter()
                for i in range(warm + requests):
                    request = session.next_frame()
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    start = time.perf_counter()
                    await session.send(request)
                    await session.answer()
                    end = time.perf_counter()
                    due = max(due + 1 / rate, end)
                    if i >= warm:
                        took.append(end - start)
                samples[str(arm)].append(took)
            if progress is not None:
                progress(done + 1, rounds)
        _order(subscriber, "off")
        await session.close()
    return {arm: np.array(values) for arm, values in samples.items()}, session.frame_bytes


# -- a client ----------------------------------------------------------------------------------------------


def drawn_features(specs: Iterable[HasShape], rng: np.random.Generator) -> list[np.ndarray]:
    """One frame's features, float32, as a ReLU leaves them: about half of them zero."""
    return [np.maximum(rng.normal(size=tuple(s.shape)), 0).astype(np.float32) for s in specs]


class Session:
    """A session that sends the same features over and over, float32 and uncompressed.

    Attributes:
        in_flight: frames that may be unanswered.
        frame_bytes: size of a frame's message.
    """

    def __init__(self, call: Any, features: list[np.ndarray], in_flight: int) -> None:
        self.in_flight, self.frame_bytes = in_flight, 0
        self._call = call
        self._tensors = [encode(f, CodecSpec()) for f in features]
        self._made = self._answered = 0

    @classmethod
    async def open(
        cls, stub: SplitInferenceStub, served: pb.DescribeResponse, features: list[np.ndarray], name: str
    ) -> Session:
        """Open a session at a server that described itself."""
        call = stub.Infer()
        opening = pb.SessionOpen(session_id=name, session=served.session, codec=CodecSpec().proto(), resume_after=-1)
        # a server that takes any defence names none
        opening.session.defense = opening.session.defense or UNDEFENDED
        await call.write(pb.InferRequest(open=opening))
        opened = await call.read()
        return cls(call, features, opened.opened.max_in_flight)

    def next_frame(self) -> pb.InferRequest:
        """The next frame's message, yet to be sent."""
        frame = pb.Frame(sequence=self._made, capture_time_us=time.time_ns() // 1000, features=self._tensors)
        self.frame_bytes = frame.ByteSize()
        self._made += 1
        return pb.InferRequest(frame=frame)

    async def send(self, request: pb.InferRequest) -> None:
        """Send what :meth:`next_frame` made, in that order."""
        await self._call.write(request)

    async def answer(self) -> pb.Answer:
        """The next frame's answer.

        Raises:
            RuntimeError: another answer, or none, came.
        """
        response = await self._call.read()
        if response is EOF or response.answer.sequence != self._answered:
            raise RuntimeError(f"frame {self._answered} was not answered")
        self._answered += 1
        return response.answer

    async def close(self) -> None:
        """End the session; every frame must be answered by now."""
        await self._call.done_writing()
        await self._call.read()


# -- child processes ---------------------------------------------------------------------------------------


# Ends the child where its parent is killed, on Linux. The child asks for it itself: a function between fork and exec
# would make the fork run what gRPC's threads have registered for it.
_CHILD = f"""
import runpy, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[dict[str, Any]]:
    """A server process with options of :class:`cloud_server.options.CloudOptions`; yields its ready line and ``pid``.

    Raises:
        UserError: it does not start; says why.
    """
    given = {"port": 0, **options}.items()
    server = _spawn(
        "cloud_server", *(str(x) for k, v in given if v is not None for x in (f"--{k.replace('_', '-')}", v))
    )
    try:
        ready = _reply(server)
        if ready.get("event") != "ready":
            assert server.stderr is not None
            raise UserError(f"the server did not start: {server.stderr.read().strip() or 'no reason given'}")
        _forget(server.stderr)
        yield ready | {"pid": server.pid}
    finally:
        _end(server)


def _spawn(module: str, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, module, *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def _reply(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    return json.loads(line) if line.strip() else {}


def _order(child: subprocess.Popen[str], command: str) -> None:
    assert child.stdin is not None
    child.stdin.write(command + "\n")
    child.stdin.flush()
    if _reply(child).get("doing") != command:
        raise RuntimeError(f"the subscriber did not obey '{command}'")


def _forget(stream: Any) -> None:
    """Keep a pipe from filling up."""
    threading.Thread(target=lambda: [None for _ in stream], daemon=True).start()


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _subscriber(port: int) -> None:
    """Child process: do what each line of stdin says, ``reading``, ``hanging`` or ``off``."""
    from splitsight.wire.v1 import tap_pb2
    from splitsight.wire.v1.tap_pb2_grpc import TapStub

    def read(call: Any) -> None:
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass

    with channel(Address("127.0.0.1", port)) as opened:
        stub, call = TapStub(opened), None
        for line in sys.stdin:
            command = line.strip()
            if call is not None:
                call.cancel()
                call = None
            if command != "off":
                call = stub.Subscribe(tap_pb2.SubscribeRequest())
                call.initial_metadata()  # from here on the server publishes to it
            if command == "reading":
                threading.Thread(target=read, args=(call,), daemon=True).start()
            print(json.dumps({"doing": command}), flush=True)


if __name__ == "__main__":
    _subscriber(int(sys.argv[1]))
