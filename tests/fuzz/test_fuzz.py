"""A few thousand malformed messages, and all that a longer run has found; ``run.py`` sends a million."""

import asyncio
import sys
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from messages import ABOUT, SPECS, Mutator, frame_messages, opening_messages, query_messages, tensor_messages
from run import SERVICES, block, summary
from services import Cloud, Context, Operator, Oracle, Tap, decoded

from cloud_server.tap import frame_bytes
from splitsight.wire.fields import fields
from splitsight.wire.peers import Peers
from splitsight.wire.tensors import CodecSpec, WireError
from splitsight.wire.v1 import operator_pb2, oracle_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

CODEC = CodecSpec()


@pytest.mark.parametrize("service", SERVICES)
def test_malformed_messages_end_in_a_documented_status(service):
    found = block(service, 0, seed=7, count=600)
    assert sum(found.values()) == 600 and found["INVALID_ARGUMENT"] > 100


def test_the_same_seed_sends_the_same_messages():
    one, other = (Mutator(3) for _ in range(2))
    assert [one.spoilt(one.frame(CODEC, 0, 2)) for _ in range(50)] == [
        other.spoilt(other.frame(CODEC, 0, 2)) for _ in range(50)
    ]


def test_a_summary_adds_up_blocks():
    rows = [{"service": "tap", "statuses": {"OK": 2, "INVALID_ARGUMENT": 3}, "rss_mib": [n]} for n in (5, 6, 7, 8)]
    assert summary(rows) == ["tap: 20 messages, 12 refused (12 INVALID_ARGUMENT, 8 OK); MiB [7] → [8]"]


@settings(max_examples=150, deadline=None)
@given(tensor_messages, st.integers(0, len(SPECS) - 1))
def test_tensors_made_from_nothing(message, index):
    decoded(message.SerializeToString(), index)


def _stream(*messages):
    """How a stream of these messages ends at a fresh service, and its context."""

    async def run():
        cloud = Cloud()
        ended = await cloud.stream([m if isinstance(m, bytes) else m.SerializeToString() for m in messages])
        await cloud.close()
        return ended

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(opening_messages, st.lists(frame_messages, max_size=2))
def test_streams_made_from_nothing(opening, frames):
    _stream(pb.InferRequest(open=opening), *(pb.InferRequest(frame=frame) for frame in frames))


@settings(max_examples=60, deadline=None)
@given(query_messages)
def test_queries_made_from_nothing(query):
    async def ask():
        oracle = Oracle()
        await oracle.call(query.SerializeToString())
        oracle.close()

    asyncio.run(ask())


@given(st.binary(max_size=60))
def test_fields_of_anything(data):
    try:
        for number, payload in fields(data):
            assert number >= 0 and (payload is None or payload in data)
    except ValueError:
        pass


@given(frame_messages, st.lists(st.sampled_from([b"\xa0\x1f\x07", b"\xa3\x1f\xa4\x1f", b"\xa2\x1f\x01a"]), max_size=3))
def test_the_tap_cuts_out_what_the_server_reads(frame, unknown):
    raw = b"".join(unknown) + pb.InferRequest(frame=frame).SerializeToString() + b"".join(unknown)
    assert frame_bytes(raw) == frame.SerializeToString()


# -- what was found ----------------------------------------------------------------------------------------


def _opening(**session):
    opening = pb.SessionOpen(session_id="a", session=ABOUT.proto(), codec=CODEC.proto(), resume_after=-1)
    for name, value in session.items():
        setattr(opening.session, name, value)
    return pb.InferRequest(open=opening)


def test_a_group_beside_a_frame_ended_the_taps_stream():
    frame = Mutator(0).frame(CODEC, 0)
    status, context = _stream(_opening(), b"\xa3\x1f\xa0\x1f\x07\xa4\x1f" + frame)
    assert status == "OK" and len(context.written) == 2


def test_an_opening_between_two_parts_of_a_frame_was_cut_out_as_another_frame():
    frame, opening = Mutator(0).frame(CODEC, 0), _opening().SerializeToString()
    raw = b"\x12\x02\x08\x05" + opening + frame
    assert pb.Frame.FromString(frame_bytes(raw)) == pb.InferRequest.FromString(raw).frame
    assert _stream(_opening(), raw)[0] == "OK"


def test_a_defence_that_divides_by_nothing_was_an_unknown_error():
    assert _stream(_opening(defense="clip:norm=1e-320+gaussian:sigma=1e300"))[0] == "OK"


def test_more_frames_than_numbers_can_count_broke_the_metrics():
    for after in (2**63 - 1, 2**48):
        request = _opening(defense="clip:norm=1,order=1+laplace:epsilon=8")
        request.open.resume_after = after
        assert _stream(request)[0] == "INVALID_ARGUMENT"

    async def ask():
        cloud = Cloud()
        request = _opening(defense="clip:norm=1,order=1+laplace:epsilon=8")
        request.open.resume_after = 2**48 - 1
        session = await cloud.service._open(Context([request.SerializeToString()]))
        assert cloud.service.epsilon() > 1e14
        cloud.service._close(session, clean=True)
        await cloud.close()

    asyncio.run(ask())


def test_what_a_peer_wrote_does_not_make_a_status_that_no_header_holds():
    request = _opening()
    request.open.session.features.add(layout="é\n" * 5000)
    status, context = _stream(request)
    assert status == "FAILED_PRECONDITION" and len(context.status[1].encode()) < 2000
    frame = pb.InferRequest.FromString(Mutator(0).frame(CODEC, 0))
    frame.frame.features[0].shape[:] = [1] * 10_000
    assert "×1…" in _stream(_opening(), frame)[1].status[1]


def test_bytes_that_are_no_message_are_told_so():
    assert Tap().call(b"\xff") == "INVALID_ARGUMENT"
    assert _stream(b"\xff")[0] == "INVALID_ARGUMENT"
    oracle = Oracle()
    assert asyncio.run(oracle.call(b"\xff")) == "INVALID_ARGUMENT"
    oracle.close()


def test_empty_parts_are_refused_before_memory_is_spent_on_them():
    empty = b"\x1a\x00" * (1 << 17)  # tensors of two bytes each
    status, context = _stream(_opening(), b"\x12" + bytes([0x80, 0x80, 0x10]) + empty)
    assert status == "RESOURCE_EXHAUSTED" and "bytes came where at most" in context.status[1]
    oracle = Oracle()
    assert asyncio.run(oracle.call(b"\x0a\x00" * 1000)) == "INVALID_ARGUMENT"
    # pictures of this oracle take at most 3 · 3 · 8² bytes
    large = oracle_pb2.QueryRequest(pictures=[oracle_pb2.Picture(rgb=bytes(1 << 17))])
    assert asyncio.run(oracle.call(large.SerializeToString())) == "RESOURCE_EXHAUSTED"
    oracle.close()


@pytest.mark.parametrize("source", ["x" * 300, "~nobody/clip.mp4", "a\0b"])
def test_names_that_no_file_has_were_unknown_errors_of_the_operators_port(source):
    assert Operator().call(operator_pb2.ChangeRequest(source=source).SerializeToString()) == "INVALID_ARGUMENT"


# -- deadlines and rates, without waiting ------------------------------------------------------------------


class _Deaf(Context):
    """Takes the opening's answer and then reads no more."""

    async def write(self, message) -> None:
        await super().write(message)
        if len(self.written) > 1:
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("idle", "longest", "words"),
    [(0.05, 60.0, "no answer was read for 0.05 s"), (60.0, 0.05, "the stream has lasted 0.05 s")],
)
def test_a_peer_that_reads_no_answers_is_cut_off(idle, longest, words):
    async def run():
        cloud = Cloud()
        cloud.service._idle, cloud.service._longest = idle, longest
        m = Mutator(0)
        frames = [m.frame(CODEC, n) for n in range(8)]  # more than may be in flight
        context = _Deaf([_opening().SerializeToString(), *frames])
        begin = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017  whatever the context ends a call by
            await cloud.service.infer(None, context)
        assert time.monotonic() - begin < 5 and context.status[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert words in context.status[1]
        await cloud.close()

    asyncio.run(run())


def test_a_query_that_never_comes_is_not_waited_for():
    from edge_client.oracle_server import _first

    async def silence():
        await asyncio.Event().wait()
        yield b""

    async def nothing():
        return
        yield

    with pytest.raises(WireError, match=r"no query came within 0\.01 s"):
        asyncio.run(_first(silence(), 0.01))
    with pytest.raises(WireError, match="ended without a query"):
        asyncio.run(_first(nothing(), 1))


def test_connecting_again_buys_no_new_burst():
    now = [0.0]
    peers = Peers(4, 10.0, lambda: now[0])
    waits = []
    for i in range(30):
        with peers.stream(f"ipv4:10.0.0.1:{i}"):
            waits.append(peers.wait(f"ipv4:10.0.0.1:{i}"))
    assert waits[:11] == [0.0] * 11 and waits[-1] == pytest.approx(1.9)
    # clocks that have run out are forgotten
    now[0] = 100.0
    for i in range(200):
        with peers.stream(f"ipv4:10.0.1.{i}:1"):
            peers.wait(f"ipv4:10.0.1.{i}:1")
        now[0] += 1
    assert len(peers._due) < 70
