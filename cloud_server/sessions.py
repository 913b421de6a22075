"""``splitsight.v1.SplitInference``: who is admitted, in what order frames count, and how a session ends.

A session keeps nothing that a restarted server would miss: what the client acknowledges by ``resume_after``
says where it goes on, and the client resends every frame that has no answer yet. So a session that this server
never saw is resumed like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import grpc
import numpy as np
import structlog
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  missing in the stub

from cloud_server.batching import FairBatcher, Lane
from cloud_server.metrics import Metrics
from cloud_server.tap import Hub
from splitsight.accounting import Mechanism
from splitsight.defenses import parse_defense
from splitsight.errors import UserError
from splitsight.tasks import Reading
from splitsight.wire.fields import parsed
from splitsight.wire.peers import Peers
from splitsight.wire.sessions import difference
from splitsight.wire.tensors import CodecSpec, HasShape, WireError, decode
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["NAME", "Compute", "Inference", "handlers"]

NAME = pb.DESCRIPTOR.services_by_name["SplitInference"].full_name
Compute = Callable[[list[list[np.ndarray]]], tuple[list[Reading | None], float]]

_OPEN_SECONDS = 10.0  # a connection that does not say what it wants must not stay
_TAP_DELAY = 0.002  # seconds; the answers of one batch leave before the tap takes any processor time
_LOST_SECONDS = 0.05  # by then a lost call is known to be lost; an edge that is done does not feel it
_MAX_ID = 128
_MAX_OPENING = 1 << 16  # bytes
_MAX_SEQUENCE = 1 << 48  # a thousand frames a second for nine thousand years


@dataclass(eq=False)
class _Job:
    session: _Session
    sequence: int
    features: list[np.ndarray]
    arrived: float  # perf_counter
    size: int


class _Session:
    """One open stream."""

    def __init__(self, opening: pb.SessionOpen, codec: CodecSpec, lane: Lane[_Job], in_flight: int) -> None:
        self.opening = opening
        self.codec = codec
        self.lane = lane
        self.due = opening.resume_after + 1
        self.unanswered = 0
        self.slots = asyncio.Semaphore(in_flight)
        # (answer, when its frame arrived), or how the stream ends: None for well
        self.out: asyncio.Queue[tuple[pb.Answer, float] | WireError | None] = asyncio.Queue()
        self.finished = False
        self.ending: WireError | None = None
        self.mechanism = _mechanism(opening.session.defense)

    def answer(self, answer: pb.Answer, arrived: float) -> None:
        self.out.put_nowait((answer, arrived))
        self.unanswered -= 1
        self._maybe_end()

    def end(self, error: WireError | None, *, now: bool = False) -> None:
        """No more frames; the stream ends when those accepted are answered, or ``now``."""
        if not self.finished:
            self.finished, self.ending = True, error
            if now:
                self.out.put_nowait(error)
            else:
                self._maybe_end()
        elif now and error is not None:
            self.out.put_nowait(error)

    def _maybe_end(self) -> None:
        if self.finished and self.unanswered == 0:
            self.out.put_nowait(self.ending)


class Inference:
    """The service; lives on one event loop.

    Args:
        description: what is served, and its limits.
        specs: shapes of the features, in order.
        compute: F2, called in a thread of its own, never twice at once.
        hub: the tap.
        metrics: counts.
        log: structured log.
        max_batch: frames a batch.
        batch_window: seconds to wait for frames to be computed together.
        resume_seconds: how long a lost session counts as alive for the tap.
        peers: what one peer may ask.
        idle: seconds after which a session without a new frame is ended.
        longest: seconds after which any stream is ended; its session may be taken up again on another.
    """

    def __init__(
        self,
        description: pb.DescribeResponse,
        specs: list[HasShape],
        compute: Compute,
        hub: Hub,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        *,
        max_batch: int,
        batch_window: float,
        resume_seconds: float,
        peers: Peers,
        idle: float,
        longest: float,
    ) -> None:
        self.description = description
        self._specs = specs
        self._compute = compute
        self._hub = hub
        self._metrics = metrics
        self._log = log
        self._resume_seconds = resume_seconds
        self._peers, self._idle, self._longest = peers, idle, longest
        # a frame's numbers as float32, and as much again for what describes them: a larger message holds something
        # else, and parsing it could take thirty times its size
        self._max_frame = min(description.max_message_bytes, 2 * sum(4 * prod(s.shape) for s in specs) + (1 << 16))
        self._sessions: dict[str, _Session] = {}
        self._streams = 0
        self._draining = False
        self._tap_due = False
        self._batcher: FairBatcher[_Job] = FairBatcher(self._run, max_batch, batch_window)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="f2")
        metrics.epsilon.set_function(self.epsilon)
        self._task = asyncio.get_running_loop().create_task(self._batcher.run())

    # -- calls -----------------------------------------------------------------------------------------

    async def describe(self, raw: bytes, context: grpc.aio.ServicerContext) -> pb.DescribeResponse:
        """What is served."""
        try:
            parsed(pb.DescribeRequest, raw)
        except WireError as error:
            await context.abort(error.code, error.message)
        return self.description

    async def infer(self, _requests: Any, context: grpc.aio.ServicerContext) -> None:
        """One stream, from its opening to its end."""
        self._streams += 1
        try:
            with self._peers.stream(context.peer()):
                session = await self._open(context)
                try:
                    await self._serve(session, context)
                except asyncio.CancelledError:
                    self._log.info("session lost", session=session.opening.session_id, next=session.due)
                    raise
        except WireError as error:
            self._metrics.refused.labels(error.code.name).inc()
            self._log.warning("call ended", code=error.code.name, reason=error.message)
            await context.abort(error.code, error.message)
        finally:
            self._streams -= 1

    # -- a session -------------------------------------------------------------------------------------

    async def _open(self, context: grpc.aio.ServicerContext) -> _Session:
        if self._draining:
            raise _shutting_down()
        # an opening counts as a frame: a peer that only opens is held back like one that sends
        await asyncio.sleep(self._peers.wait(context.peer()))
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                raw = await context.read()
        except TimeoutError:
            raise WireError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no opening message came within {_OPEN_SECONDS:g} s"
            ) from None
        request = self._parse(raw, _MAX_OPENING) if raw is not EOF else None
        if request is None or request.WhichOneof("message") != "open":
            raise _invalid("the first message of a stream must open the session")
        opening = request.open
        if not 0 < len(opening.session_id) <= _MAX_ID:
            raise _invalid(f"a session needs an id of 1 … {_MAX_ID} characters")
        if not -1 <= opening.resume_after < _MAX_SEQUENCE:
            raise _invalid(f"resume_after {opening.resume_after} is not -1 (a new session) or a sequence number")
        differs = difference(opening, self.description)
        if differs is not None:
            raise WireError(grpc.StatusCode.FAILED_PRECONDITION, differs)
        old = self._sessions.pop(opening.session_id, None)
        if old is not None:
            # its connection is most likely dead without anyone having noticed yet
            self._batcher.close(old.lane)
            old.end(WireError(grpc.StatusCode.ABORTED, "the session was opened again on another connection"), now=True)
        if len(self._sessions) >= self.description.max_sessions:
            raise WireError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the server already has {self.description.max_sessions} sessions, its maximum: "
                "try again when one has ended",
            )
        limit = self.description.max_in_flight
        session = _Session(opening, CodecSpec.read(opening.codec), self._batcher.open(limit), limit)
        self._sessions[opening.session_id] = session
        self._metrics.sessions.set(len(self._sessions))
        self._metrics.opened.inc()
        self._hub.opened(opening)
        self._log.info(
            "session opened",
            session=opening.session_id,
            peer=context.peer(),
            dtype=session.codec.dtype,
            compression=session.codec.compression,
            defense=opening.session.defense,
            resume_after=opening.resume_after,
        )
        return session

    async def _serve(self, session: _Session, context: grpc.aio.ServicerContext) -> None:
        reader: asyncio.Task[None] | None = None
        clean = False
        end = asyncio.get_running_loop().time() + self._longest
        try:
            opened = pb.SessionOpened(
                session_id=session.opening.session_id, max_in_flight=self.description.max_in_flight
            )
            await self._write(context, pb.InferResponse(opened=opened), end)
            reader = asyncio.get_running_loop().create_task(self._read(session, context, end))
            while True:
                out = await session.out.get()
                if out is None:
                    clean = True
                    break
                if isinstance(out, WireError):
                    clean = out.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
                    raise out
                answer, arrived = out
                await self._write(context, pb.InferResponse(answer=answer), end)
                session.slots.release()
                self._metrics.answers.inc()
                self._metrics.latency.observe(time.perf_counter() - arrived)
                self._wake_tap()
        finally:
            if reader is not None:
                reader.cancel()
            self._close(session, clean)

    def _close(self, session: _Session, clean: bool) -> None:
        self._batcher.close(session.lane)
        if self._sessions.get(session.opening.session_id) is session:
            del self._sessions[session.opening.session_id]
        self._metrics.sessions.set(len(self._sessions))
        if clean:
            self._log.info("session ended", session=session.opening.session_id, frames=session.due)
            self._hub.ended(session.opening)
        else:
            # an edge that only lost its connection comes back under the same id
            loop = asyncio.get_running_loop()
            loop.call_later(self._resume_seconds, self._hub.ended, session.opening)
        self._wake_tap()

    async def _write(self, context: grpc.aio.ServicerContext, message: pb.InferResponse, end: float) -> None:
        try:
            async with self._patience(end):
                await context.write(message)
        except TimeoutError:
            raise self._late(end, "no answer was read") from None

    def _late(self, end: float, what: str) -> WireError:
        over = f"the stream has lasted {self._longest:g} s, the longest that one may"
        why = over if asyncio.get_running_loop().time() >= end else f"{what} for {self._idle:g} s"
        return WireError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{why}: reconnect and resume the session")

    def _patience(self, end: float) -> asyncio.Timeout:
        """Until a peer does what it is waited for, or its stream has lasted as long as one may."""
        return asyncio.timeout_at(min(asyncio.get_running_loop().time() + self._idle, end))

    async def _read(self, session: _Session, context: grpc.aio.ServicerContext, end: float) -> None:
        """Accept frames until the client has sent its last one, one is refused, or the server drains."""
        try:
            while not session.finished:
                # no slot, no reading: HTTP/2 flow control then holds the client back
                await session.slots.acquire()
                if (pause := self._peers.wait(context.peer())) > 0:
                    await asyncio.sleep(pause)
                raw = await self._next(context, end)
                if session.finished:
                    return
                if raw is EOF:
                    # a call that is cancelled, or whose connection broke, can read as ended just before
                    # it is known to be lost and this task is cancelled with it
                    await asyncio.sleep(_LOST_SECONDS)
                    session.end(None)
                    return
                self._accept(session, raw)
        except WireError as error:
            session.end(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # grpc.aio reports a call that is already gone by various exceptions of its own
            session.end(WireError(grpc.StatusCode.UNAVAILABLE, f"the stream broke off ({type(error).__name__})"))

    async def _next(self, context: grpc.aio.ServicerContext, end: float) -> bytes:
        try:
            async with self._patience(end):
                return await context.read()
        except TimeoutError:
            raise self._late(end, "no frame came") from None

    def _accept(self, session: _Session, raw: bytes) -> None:
        arrived, arrival_us = time.perf_counter(), time.time_ns() // 1000
        request = self._parse(raw, self._max_frame)
        if request.WhichOneof("message") != "frame":
            raise _invalid("only frames may follow the opening of a session")
        frame = request.frame
        if frame.sequence != session.due:
            raise _invalid(f"frame {frame.sequence} came where {session.due} was due: sequence numbers grow by one")
        if len(frame.features) != len(self._specs):
            raise _invalid(
                f"frame {frame.sequence} holds {len(frame.features)} tensors where {len(self._specs)} were agreed on"
            )
        codec = session.opening.codec
        features = []
        for tensor, spec in zip(frame.features, self._specs, strict=True):
            if tensor.dtype != codec.dtype or tensor.compression != codec.compression:
                raise _invalid(
                    f"frame {frame.sequence} is not encoded as the session agreed on "
                    f"({session.codec.dtype}, {session.codec.compression})"
                )
            try:
                features.append(decode(tensor, spec))
            except WireError as error:
                raise WireError(error.code, f"frame {frame.sequence}: {error.message}") from error
        session.due += 1
        session.unanswered += 1
        self._metrics.frames.inc()
        self._metrics.bytes.inc(len(raw))
        self._batcher.put(session.lane, _Job(session, frame.sequence, features, arrived, len(raw)))
        self._hub.publish(session.opening, raw, arrival_us)

    def _parse(self, raw: bytes, limit: int) -> pb.InferRequest:
        return parsed(pb.InferRequest, raw, min(limit, self.description.max_message_bytes))

    # -- F2 --------------------------------------------------------------------------------------------

    async def _run(self, jobs: list[_Job]) -> float:
        start = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            answers, seconds = await loop.run_in_executor(self._thread, self._compute, [j.features for j in jobs])
        except Exception as error:
            self._log.exception("F2 failed", frames=len(jobs))
            for job in jobs:
                text = f"the server could not compute frame {job.sequence} ({type(error).__name__})"
                job.session.end(WireError(grpc.StatusCode.INTERNAL, text), now=True)
            return 0.0
        self._metrics.compute.observe(seconds)
        self._metrics.batch.observe(len(jobs))
        for job, reading in zip(jobs, answers, strict=True):
            self._metrics.queue.observe(start - job.arrived)
            if reading is None:
                text = f"frame {job.sequence}: its features make the network overflow"
                job.session.end(_invalid(text), now=True)
                continue
            answer = pb.Answer(
                sequence=job.sequence,
                queue_us=_microseconds(start - job.arrived),
                compute_us=_microseconds(seconds),
                batch_size=len(jobs),
            )
            reading.put(answer)
            job.session.answer(answer, job.arrived)
        return seconds

    # -- the rest --------------------------------------------------------------------------------------

    def epsilon(self) -> float:
        """Largest ε of an open session's stream, as its defence declares it; 0 where none guarantees anything."""
        # each frame once: sequence numbers go on where a lost connection left off
        streams = [(s.mechanism, s.due) for s in list(self._sessions.values())]
        try:
            return max((m.epsilon(frames) for m, frames in streams if m is not None and frames), default=0.0)
        except ArithmeticError:  # of parameters, or after more frames, than numbers can tell apart
            return inf

    def _wake_tap(self) -> None:
        if self._hub.listening and not self._tap_due:
            self._tap_due = True
            asyncio.get_running_loop().call_later(_TAP_DELAY, self._wake_tap_now)

    def _wake_tap_now(self) -> None:
        self._tap_due = False
        self._hub.wake()

    async def drain(self, seconds: float) -> None:
        """Take no more frames, answer those accepted, end every stream; at most ``seconds``."""
        self._draining = True
        for session in list(self._sessions.values()):
            session.end(_shutting_down())
        end = time.monotonic() + seconds
        while self._streams and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._task.cancel()
        self._thread.shutdown(wait=False)


def handlers(service: Inference) -> grpc.GenericRpcHandler:
    """The service for a server. It gets requests as bytes: the tap must pass on what came, not a copy of it."""
    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "Describe": grpc.unary_unary_rpc_method_handler(
                service.describe,
                request_deserializer=None,
                response_serializer=pb.DescribeResponse.SerializeToString,
            ),
            "Infer": grpc.stream_stream_rpc_method_handler(
                service.infer, request_deserializer=None, response_serializer=pb.InferResponse.SerializeToString
            ),
        },
    )


def _mechanism(defense: str) -> Mechanism | None:
    """What a declared defence guarantees; nothing where it is another package's, or its parameters cannot be."""
    try:
        return parse_defense(defense).mechanism
    except (UserError, ArithmeticError):
        return None


def _invalid(message: str) -> WireError:
    return WireError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _shutting_down() -> WireError:
    return WireError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down: reconnect and resume the session")


def _microseconds(seconds: float) -> int:
    return min(max(0, round(seconds * 1e6)), 2**32 - 1)
