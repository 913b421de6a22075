"""The tap: every accepted frame's bytes, as they came, for whoever may subscribe.

Serving must not feel it. Publishing appends a reference to each subscriber's ring (a bounded deque, which drops
its oldest entry by itself); nothing is copied, parsed or locked there. Subscribers are woken only once the
answer is on its way, and cut the frame out of the message that carried it in a thread of their own. Each entry
knows how many were published to that subscriber before it, so that what was dropped follows by subtraction.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc

from cloud_server.metrics import Metrics
from cloud_server.options import CloudOptions
from splitsight.wire.fields import fields, parsed
from splitsight.wire.ports import add_port, server_options
from splitsight.wire.tensors import WireError
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tap_pb2

__all__ = ["Hub", "Subscription", "TapService", "frame_bytes", "handlers", "start_tap"]

_OPEN_FIELD, _FRAME_FIELD = pb.InferRequest.OPEN_FIELD_NUMBER, pb.InferRequest.FRAME_FIELD_NUMBER
_NAME = tap_pb2.DESCRIPTOR.services_by_name["Tap"].full_name
_RING_BYTES = 64 << 20  # memory that one subscriber can make the server hold
_POLL = 0.5  # seconds; waking is a hint, this is the guarantee


def frame_bytes(request: bytes) -> bytes:
    """The serialized ``Frame`` inside a serialized ``InferRequest``, byte for byte as it was sent.

    Args:
        request: a message that protobuf parses and that holds a frame.
    """
    parts: list[bytes] = []
    for number, payload in fields(request):
        if payload is not None and number == _FRAME_FIELD:
            parts.append(payload)
        elif payload is not None and number == _OPEN_FIELD:
            parts.clear()  # the other of the two that a request can hold: it takes the place of what came before
    # protobuf merges a message field that occurs twice, which is what joining its parts means
    return b"".join(parts)


class _Entry(NamedTuple):
    index: int
    opening: pb.SessionOpen
    request: bytes
    arrival_us: int


class Subscription:
    """One subscriber's ring.

    Args:
        session_id: the only session it hears of; empty for all.
        ring: frames kept, ≥ 1.
    """

    def __init__(self, session_id: str, ring: int) -> None:
        self.session_id = session_id
        self.wake = threading.Event()
        self.dropped = 0
        self._ring: deque[_Entry] = deque(maxlen=ring)
        self._published = 0
        self._taken = 0

    def put(self, opening: pb.SessionOpen, request: bytes, arrival_us: int) -> None:
        """Append, dropping the oldest entry of a full ring; called from one thread only."""
        self._ring.append(_Entry(self._published, opening, request, arrival_us))
        self._published += 1

    def take(self) -> _Entry | None:
        """The oldest entry that is left, if any; updates :attr:`dropped`."""
        try:
            entry = self._ring.popleft()
        except IndexError:
            return None
        self.dropped = entry.index - self._taken
        self._taken += 1
        return entry


class Hub:
    """Where serving publishes and subscribers listen.

    Everything but :meth:`subscribe` and :meth:`unsubscribe` is called from the serving thread alone. Both
    collections are replaced, never changed, so that readers need no lock.
    """

    def __init__(self) -> None:
        self.live: dict[str, pb.SessionOpen] = {}
        self.closing = False
        self._subscriptions: tuple[Subscription, ...] = ()
        self._lock = threading.Lock()

    def opened(self, opening: pb.SessionOpen) -> None:
        """A session starts, or comes back."""
        self.live = {**self.live, opening.session_id: opening}
        self.wake()

    def ended(self, opening: pb.SessionOpen) -> None:
        """A session is over, unless it has been opened anew since."""
        if self.live.get(opening.session_id) is opening:
            self.live = {k: v for k, v in self.live.items() if k != opening.session_id}
            self.wake()

    def publish(self, opening: pb.SessionOpen, request: bytes, arrival_us: int) -> None:
        """Hand an accepted frame, still inside the bytes of its request, to whoever listens."""
        for subscription in self._subscriptions:
            if not subscription.session_id or subscription.session_id == opening.session_id:
                subscription.put(opening, request, arrival_us)

    def wake(self) -> None:
        """Let subscribers look at their rings now."""
        for subscription in self._subscriptions:
            subscription.wake.set()

    @property
    def listening(self) -> bool:
        """Whether anyone subscribes."""
        return bool(self._subscriptions)

    def close(self) -> None:
        """Let subscribers empty their rings and finish."""
        self.closing = True
        self.wake()

    def subscribe(self, subscription: Subscription, most: int) -> bool:
        """Add a ring unless there are ``most`` already."""
        with self._lock:
            if len(self._subscriptions) >= most:
                return False
            self._subscriptions = (*self._subscriptions, subscription)
            return True

    def unsubscribe(self, subscription: Subscription) -> None:
        """Remove a ring."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)


class TapService:
    """``splitsight.v1.Tap`` on a hub; every subscriber occupies a thread.

    Args:
        hub: where frames are published.
        metrics: counts what is forwarded and dropped.
        ring: frames kept by default, and at most.
        most: subscribers at once.
    """

    def __init__(self, hub: Hub, metrics: Metrics, *, ring: int, most: int) -> None:
        self._hub = hub
        self._metrics = metrics
        self._ring = ring
        self._most = most

    def subscribe(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[tap_pb2.TapEvent]:
        """Sessions, frames and ends, until the subscriber leaves or the server drains."""
        try:
            request = parsed(tap_pb2.SubscribeRequest, raw)
        except WireError as error:
            context.abort(error.code, error.message)
            raise AssertionError("abort raises") from error
        subscription = Subscription(request.session_id, min(request.ring or self._ring, self._ring))
        if not self._hub.subscribe(subscription, self._most):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the tap already has {self._most} subscribers, its maximum: try again when one has left",
            )
        # a subscriber can now rely on hearing of whatever is published, even before the first event
        context.send_initial_metadata(())
        context.add_callback(subscription.wake.set)
        self._metrics.subscribers.inc()
        try:
            interrupted = yield from self._events(subscription, context.is_active)
        finally:
            self._hub.unsubscribe(subscription)
            self._metrics.subscribers.dec()
        if interrupted:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server shuts down while sessions go on: come back later")

    def _events(
        self, subscription: Subscription, active: Callable[[], bool]
    ) -> Generator[tap_pb2.TapEvent, None, bool]:
        """Events; in the end, whether sessions that were told of have not ended, only this server has."""
        told: dict[str, pb.SessionOpen] = {}
        counted = 0
        while active():
            subscription.wake.clear()
            closing, live = self._hub.closing, self._hub.live
            # the ring is emptied after this look: what had ended by now has no frame left there. A session that only
            # the ring tells of may be newer than the look; the next one decides.
            ended = {session_id: opening for session_id, opening in told.items() if session_id not in live}
            for session_id, opening in live.items():
                if not subscription.session_id or subscription.session_id == session_id:
                    yield from _announce(told, opening)
            took = False
            while active() and (entry := subscription.take()) is not None:
                took = True
                yield from _announce(told, entry.opening)
                frame = tap_pb2.TappedFrame(
                    session_id=entry.opening.session_id,
                    frame=frame_bytes(entry.request),
                    arrival_time_us=entry.arrival_us,
                    dropped=subscription.dropped,
                )
                self._metrics.tapped.inc()
                if subscription.dropped > counted:
                    self._metrics.dropped.inc(subscription.dropped - counted)
                    counted = subscription.dropped
                yield tap_pb2.TapEvent(frame=frame)
            for session_id, opening in ended.items():
                if told[session_id] is opening:
                    del told[session_id]
                    yield tap_pb2.TapEvent(end=tap_pb2.SessionEnd(session_id=session_id))
            if took:
                continue
            if closing:
                return bool(told)
            subscription.wake.wait(_POLL)
        return False


def _announce(told: dict[str, pb.SessionOpen], opening: pb.SessionOpen) -> Iterator[tap_pb2.TapEvent]:
    known = told.get(opening.session_id)
    told[opening.session_id] = opening
    if known is None or _content(known) != _content(opening):
        yield tap_pb2.TapEvent(session=opening)


def _content(opening: pb.SessionOpen) -> pb.SessionOpen:
    """Without what a mere resume changes."""
    same = pb.SessionOpen()
    same.CopyFrom(opening)
    same.resume_after = 0
    return same


def handlers(service: TapService) -> grpc.GenericRpcHandler:
    """The service for a threaded server; it gets requests as bytes."""
    subscribe = grpc.unary_stream_rpc_method_handler(
        service.subscribe, request_deserializer=None, response_serializer=tap_pb2.TapEvent.SerializeToString
    )
    return grpc.method_handlers_generic_handler(_NAME, {"Subscribe": subscribe})


def start_tap(hub: Hub, metrics: Metrics, options: CloudOptions, frame_size: int) -> tuple[grpc.Server, int]:
    """Listen on ``options.tap_port``.

    It is a threaded server beside the asynchronous one that serves, so that a subscriber's flow control holds up
    a thread of its own and nothing else.

    Args:
        hub: where frames are published.
        metrics: counts.
        options: host, port, token, TLS, limits.
        frame_size: bytes of the largest frame, which bounds how many a ring may hold.

    Returns:
        The server, started, and its port.

    Raises:
        UserError: a certificate or key cannot be read, or the port is in use.
    """
    ring = max(1, min(options.tap_ring, _RING_BYTES // max(1, frame_size)))
    server = grpc.server(
        # a few threads more than subscribers, so that one too many is told so instead of waiting
        ThreadPoolExecutor(options.max_subscribers + 2, thread_name_prefix="tap"),
        interceptors=options.tap_credentials.interceptors("tap"),
        options=server_options(1 << 16),
    )
    service = TapService(hub, metrics, ring=ring, most=options.max_subscribers)
    server.add_generic_rpc_handlers((handlers(service),))
    assert options.tap_port is not None
    port = add_port(server, options.tap_host, options.tap_port, what="tap", credentials=options.tap_credentials)
    server.start()
    return server, port
