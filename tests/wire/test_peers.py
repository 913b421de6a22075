"""What one peer may ask of the server."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitsight.wire.peers import Peers, host_of_peer
from splitsight.wire.tensors import WireError


def test_streams_are_counted_by_address():
    peers = Peers(streams=2)
    with peers.stream("ipv4:10.0.0.1:1"), peers.stream("ipv4:10.0.0.1:2"), peers.stream("ipv4:10.0.0.2:1"):
        with (
            pytest.raises(WireError, match=r"10\.0\.0\.1 already has 2 streams") as caught,
            peers.stream("ipv4:10.0.0.1:3"),
        ):
            pass
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with peers.stream("ipv4:10.0.0.1:3"):
        pass


@pytest.mark.parametrize(
    ("peer", "host"), [("ipv4:10.0.0.1:4711", "ipv4:10.0.0.1"), ("ipv6:[::1]:5", "ipv6:[::1]"), ("odd", "odd")]
)
def test_a_peer_is_an_address_without_its_port(peer, host):
    assert host_of_peer(peer) == host


@given(st.floats(1, 100), st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_no_more_than_a_burst_and_the_rate_are_read(rate, pauses):
    now, read = 0.0, []
    peers = Peers(1, rate, lambda: now)
    for pause in pauses:
        now += pause
        now += peers.wait("ipv4:a:1")
        read.append(now)
    # any stretch of time holds at most its share and one burst
    for i, begin in enumerate(read):
        for j, end in enumerate(read[i:]):
            assert j + 1 <= rate * (end - begin) + rate + 1 + 1e-6


def test_without_a_rate_nothing_waits():
    assert Peers(1).wait("x") == 0.0
