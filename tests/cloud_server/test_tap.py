"""The tap's ring and its cut of the original bytes."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.metrics import Metrics
from cloud_server.tap import Hub, Subscription, TapService, frame_bytes
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tensor_pb2


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.lists(st.binary(max_size=300), max_size=3))
def test_frame_bytes_are_those_that_were_sent(sequence, captured, blobs):
    frame = pb.Frame(sequence=sequence, capture_time_us=captured, features=[tensor_pb2.Tensor(data=b) for b in blobs])
    request = pb.InferRequest(frame=frame).SerializeToString()
    assert frame_bytes(request) == frame.SerializeToString()


def test_frame_bytes_survive_what_serializing_again_would_lose():
    # fields in another order, a default written out, a field unknown to us, an overlong varint
    frame = field(3, b"") + b"\x08\x00" + b"\x10\x85\x80\x00" + field(99, b"from the future")
    assert pb.Frame.FromString(frame).capture_time_us == 5
    others = b"\x98\x06\x07" + varint(100 << 3 | 1) + bytes(8) + varint(101 << 3 | 5) + bytes(4)
    request = others + field(2, frame) + field(102, b"x")
    assert pb.InferRequest.FromString(request).WhichOneof("message") == "frame"
    assert frame_bytes(request) == frame


def test_a_frame_in_two_parts_is_merged_as_protobuf_does():
    request = field(2, b"\x08\x05") + field(2, b"\x10\x07")
    assert pb.Frame.FromString(frame_bytes(request)) == pb.InferRequest.FromString(request).frame


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_ring_drops_the_oldest_and_counts(steps, size):
    ring, kept, published, dropped = Subscription("", size), [], 0, 0
    opening = pb.SessionOpen(session_id="a")
    for put in steps:
        if put:
            ring.put(opening, b"%d" % published, published)
            kept.append(published)
            published += 1
            if len(kept) > size:
                kept.pop(0)
                dropped += 1
        else:
            entry = ring.take()
            assert (entry is None) == (not kept)
            if entry is not None:
                assert entry.arrival_us == kept.pop(0) and ring.dropped == dropped


def request(sequence):
    return pb.InferRequest(frame=pb.Frame(sequence=sequence)).SerializeToString()


class Reader:
    """Runs a subscription's events in a thread."""

    def __init__(self, hub, session_id=""):
        self.subscription = Subscription(session_id, 8)
        assert hub.subscribe(self.subscription, 4)
        service = TapService(hub, Metrics(), ring=8, most=4)
        self.events = []
        self.interrupted = None
        self.thread = threading.Thread(target=self._run, args=(service,), daemon=True)

    def _run(self, service):
        events = service._events(self.subscription, lambda: True)
        try:
            while True:
                self.events.append(next(events))
        except StopIteration as end:
            self.interrupted = end.value

    def finish(self, hub):
        self.thread.start()
        hub.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        return [
            (e.WhichOneof("event"), pb.Frame.FromString(e.frame.frame).sequence if e.HasField("frame") else None)
            for e in self.events
        ]


def test_a_session_is_announced_once_though_it_resumes_and_ends_once():
    hub = Hub()
    reader = Reader(hub)
    first, again = (pb.SessionOpen(session_id="a", resume_after=n) for n in (-1, 1))
    hub.opened(first)
    hub.publish(first, request(0), 0)
    hub.opened(again)
    hub.ended(first)  # the lost connection's time is up; the session lives
    assert hub.live == {"a": again}
    hub.publish(again, request(1), 0)
    # the server stops, the session goes on elsewhere: no end of it is told
    assert reader.finish(hub) == [("session", None), ("frame", 0), ("frame", 1)]
    assert reader.interrupted is True


def test_only_the_session_asked_for_is_heard():
    hub = Hub()
    reader = Reader(hub, "b")
    for name in "ab":
        opening = pb.SessionOpen(session_id=name)
        hub.opened(opening)
        hub.publish(opening, request(0), 0)
    assert reader.finish(hub) == [("session", None), ("frame", 0)]
    assert {e.session.session_id for e in reader.events if e.HasField("session")} == {"b"}


def test_a_session_that_ended_before_it_was_read_is_still_announced():
    hub = Hub()
    reader = Reader(hub)
    opening = pb.SessionOpen(session_id="a")
    hub.opened(opening)
    hub.publish(opening, request(0), 0)
    hub.ended(opening)
    assert reader.finish(hub) == [("session", None), ("frame", 0), ("end", None)]
    assert reader.interrupted is False


def test_a_session_that_starts_between_the_look_at_the_sessions_and_the_ring_has_not_ended():
    hub = Hub()
    reader = Reader(hub)
    opening = pb.SessionOpen(session_id="a")

    class Late(Subscription):
        def take(self):
            if not hub.live:
                hub.opened(opening)
                hub.publish(opening, request(0), 0)
            return super().take()

    reader.subscription.__class__ = Late
    assert reader.finish(hub) == [("session", None), ("frame", 0)]
    assert reader.interrupted is True


def test_subscribers_are_limited():
    hub = Hub()
    assert hub.subscribe(Subscription("", 1), 1) and hub.listening
    assert not hub.subscribe(Subscription("", 1), 1)


@pytest.mark.parametrize("subscribers", [0, 1, 4])
def test_publishing_keeps_references_only(subscribers):
    hub = Hub()
    rings = [Subscription("", 4) for _ in range(subscribers)]
    for ring in rings:
        hub.subscribe(ring, 8)
    raw = request(0)
    hub.publish(pb.SessionOpen(session_id="a"), raw, 0)
    for ring in rings:
        assert ring.take().request is raw
