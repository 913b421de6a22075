"""The four services without a network: real servicers, a context that answers as gRPC's does, and what must hold."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import structlog
from grpc.aio import EOF
from messages import ABOUT, MAX_BATCH, MAX_SIDE, SPECS

import cloud_server.sessions
from cloud_server.metrics import Metrics
from cloud_server.sessions import Inference
from cloud_server.tap import Hub, TapService, frame_bytes
from edge_client.oracle import Allowance, OracleService
from edge_client.oracle import Metrics as OracleMetrics
from edge_client.oracle_server import handlers as oracle_handlers
from edge_client.playback import Player
from splitsight.defenses import parse_defense
from splitsight.tasks.classify import Classify
from splitsight.wire.operator import answer
from splitsight.wire.peers import Peers
from splitsight.wire.tensors import COMPRESSIONS, DTYPES, CodecSpec, WireError, decode, encode
from splitsight.wire.v1 import operator_pb2, oracle_pb2, tensor_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
}
"""What docs/untrusted-network.md says that a refusal can be."""


def check_status(code: grpc.StatusCode, details: str) -> str:
    """The status's name, once it is seen to be a documented one with one sentence."""
    assert code in STATUSES, (code, details)
    assert details and "\n" not in details and len(details) <= 2000, (code, details)
    return code.name


class Aborted(Exception):
    """What a context raises to end a call, as gRPC's does."""


class Context:
    """One call.

    Args:
        messages: bytes that the client sends before it ends its side.
    """

    def __init__(self, messages: list[bytes], peer: str = "ipv4:127.0.0.1:1") -> None:
        self._messages, self._peer = iter(messages), peer
        self.read_so_far = 0
        self.written: list = []
        self.status: tuple[grpc.StatusCode, str] | None = None

    def peer(self) -> str:
        return self._peer

    async def read(self):
        await asyncio.sleep(0)
        self.read_so_far += 1
        return next(self._messages, EOF)

    async def write(self, message) -> None:
        message.SerializeToString()
        self.written.append(message)

    async def abort(self, code, details, trailing=()) -> None:
        self.status = code, details
        raise Aborted

    async def requests(self):
        for message in self._messages:
            self.read_so_far += 1
            yield message


class Cloud:
    """``splitsight.v1.SplitInference`` behind a tap's hub, with an F2 that looks at shapes only; on a running loop."""

    def __init__(self) -> None:
        about = pb.DescribeResponse(
            session=replace(ABOUT, defense="").proto(),
            dtypes=list(DTYPES.values()),
            compressions=list(COMPRESSIONS.values()),
            max_message_bytes=1 << 20,
            max_sessions=1000,
            max_in_flight=4,
        )
        self.task, self.tapped, self.hub = Classify(["a", "b", "c"]), Counter(), _Hub()
        self.service = Inference(
            about, list(SPECS), self._f2, self.hub, Metrics(),
            structlog.wrap_logger(None, processors=[_silent]),
            max_batch=8, batch_window=0.0, resume_seconds=0.0, peers=Peers(10_000), idle=5.0, longest=60.0,
        )  # fmt: skip
        parse_defense("identity")  # brings all defences, which a server has by the time that it serves
        cloud_server.sessions._LOST_SECONDS = 0.0  # no call is lost here

    def _f2(self, frames):
        import torch

        for features in frames:
            assert [f.shape for f in features] == [s.shape for s in SPECS]
            assert all(f.dtype == np.float32 and np.isfinite(f).all() for f in features)
        return self.task.read(torch.zeros(len(frames), 3)), 0.0

    async def stream(self, messages: list[bytes]) -> tuple[str, Context]:
        """Send messages over one stream; how it ended, ``OK`` or a status."""
        context = Context(messages)
        async with asyncio.timeout(20):
            with suppress(Aborted):
                await self.service.infer(None, context)
        answers = [m.answer.sequence for m in context.written if m.HasField("answer")]
        assert answers == sorted(set(answers))
        return ("OK" if context.status is None else check_status(*context.status)), context

    async def close(self) -> None:
        """Nothing is left of any stream."""
        await asyncio.sleep(0.02)
        assert not self.service._sessions and self.service._streams == 0 and not self.service._batcher._lanes
        assert not self.service._peers._open and not self.hub.live
        self.service.epsilon()
        await self.service.drain(1.0)


class _Hub(Hub):
    """Cuts out every accepted frame, as a subscriber would."""

    def publish(self, opening, request, arrival_us) -> None:
        assert pb.Frame.FromString(frame_bytes(request)) == pb.InferRequest.FromString(request).frame


def _silent(logger, name, event):
    raise structlog.DropEvent


class Oracle:
    """``splitsight.v1.Oracle`` with an edge that answers ones."""

    def __init__(self) -> None:
        description = oracle_pb2.DescribeOracleResponse(max_batch=MAX_BATCH, max_side=MAX_SIDE, budget=1 << 60)
        one = oracle_pb2.PictureFeatures(features=[encode(np.ones((1, 2, 2)), CodecSpec())])

        def respond(pictures):
            assert all(p.ndim == 3 and 1 <= p.size <= 3 * MAX_SIDE**2 for p in pictures)
            return [one] * len(pictures)

        service = OracleService(description, respond, Allowance(1 << 60, 0.0, 1), OracleMetrics())
        handler, self._thread = oracle_handlers(service, streams=10_000)
        method = SimpleNamespace(method="/splitsight.v1.Oracle/Query", invocation_metadata=())
        self._query = handler.service(method).stream_unary

    async def call(self, raw: bytes) -> str:
        context = Context([raw])
        async with asyncio.timeout(20):
            with suppress(Aborted):
                answer = await self._query(context.requests(), context)
                assert answer.answers
        return "OK" if context.status is None else check_status(*context.status)

    def close(self) -> None:
        self._thread.shutdown()


class Tap:
    """``splitsight.v1.Tap`` on a hub that closes at once, with one frame waiting."""

    def __init__(self) -> None:
        self.service = TapService(_Closing(), Metrics(), ring=4, most=8)

    def call(self, raw: bytes) -> str:
        status: list = []

        def abort(code, details):
            status.append((code, details))
            raise Aborted

        context = SimpleNamespace(
            abort=abort, send_initial_metadata=lambda m: None, add_callback=lambda c: True, is_active=lambda: True
        )
        with suppress(Aborted):
            for event in self.service.subscribe(raw, context):
                event.SerializeToString()
        assert not self.service._hub.listening
        return "OK" if not status else check_status(*status[0])


class _Closing(Hub):
    def subscribe(self, subscription, most) -> bool:
        self.closing = True
        done = super().subscribe(subscription, most)
        self.publish(pb.SessionOpen(session_id="a"), pb.InferRequest(frame=pb.Frame()).SerializeToString(), 0)
        return done


class Operator:
    """``splitsight.v1.Operator`` of an edge that plays a clip of two pictures."""

    def __init__(self) -> None:
        self.player = Player(_Still(), name="still", again=_Still, fps=2.0, pace=True)

    def status(self):
        return operator_pb2.OperatorStatus(role="edge", speed=self.player.clock.speed)

    def call(self, raw: bytes) -> str:
        handler = SimpleNamespace(status=self.status, change=self.player.change)
        try:
            answer(handler, "Change", raw).SerializeToString()
        except WireError as error:
            return check_status(error.code, error.message)
        assert 0.05 <= self.player.clock.speed <= 20
        return "OK"


class _Still:
    live, fps, skipped, lost = False, 2.0, 0, 0

    def __iter__(self):
        return iter(())

    def close(self) -> None:
        pass


def decoded(raw: bytes, index: int) -> str:
    """One tensor through the codec, as ``SPECS[index]``."""
    message = tensor_pb2.Tensor.FromString(raw)
    try:
        values = decode(message, SPECS[index], max_bytes=1 << 16)
    except WireError as error:
        return check_status(error.code, error.message)
    assert values.shape == SPECS[index].shape and values.dtype == np.float32 and np.isfinite(values).all()
    return "OK"
