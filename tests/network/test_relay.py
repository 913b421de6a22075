import contextlib
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from splitsight.network import NetworkProfile
from splitsight.network.relay import Relay
from splitsight.wire.certs import make_certificates
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials, ServerCredentials
from splitsight.wire.ports import add_port


def profile(up=math.inf, down=math.inf, **figures):
    return NetworkProfile(name="p", uplink_mbps=up, downlink_mbps=down, **figures)


class Echo:
    """Sends back what it gets; ``after`` bytes it breaks the connection."""

    def __init__(self, after=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listener.getsockname())
        self.after = after
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(peer,), daemon=True).start()

    def _echo(self, peer):
        seen = 0
        with peer:
            while data := peer.recv(1 << 16):
                seen += len(data)
                if self.after is not None and seen >= self.after:
                    return
                peer.sendall(data)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(scope="module")
def echo():
    server = Echo()
    yield server
    server.close()


def through(relay, pieces, timeout=20):
    """Sends pieces, closes that side, and reads to the end."""
    with socket.create_connection(relay.address, timeout=timeout) as s:

        def send():
            for piece in pieces:
                s.sendall(piece)
            s.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = b"".join(iter(lambda: s.recv(1 << 16), b""))
        sender.join(timeout)
    return got


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40_000), max_size=8), st.integers(0, 99))
def test_bytes_come_out_as_they_went_in(echo, pieces, seed):
    shaped = profile(400, 400, latency_ms=0.5, jitter_ms=0.5, loss=0.2)
    with Relay(echo.address, shaped, seed=seed) as relay:
        assert through(relay, pieces) == b"".join(pieces)
        total = sum(map(len, pieces))
        end = time.monotonic() + 5
        while relay.carried != (total, total) and time.monotonic() < end:
            time.sleep(0.001)
        assert relay.carried == (total, total)


def test_more_than_a_link_holds(echo):
    data = bytes(range(256)) * (3 << 12)  # 3 MiB through a queue of 256 KiB
    with Relay(echo.address, profile(800, 800)) as relay:
        assert through(relay, [data]) == data


def test_it_takes_the_time_that_the_profile_says(echo):
    size = 50_000
    with Relay(echo.address, profile(4, 8, latency_ms=30)) as relay:
        start = time.monotonic()
        assert through(relay, [b"x" * size]) == b"x" * size
        took = time.monotonic() - start
    # 100 ms up and 50 down, of which only the last piece's is not at the same time, and 30 ms each way
    assert 0.16 <= took < 0.4


def test_a_hundred_megabits_are_kept_up_with(echo):
    size = 2_000_000
    with Relay(echo.address, profile(up=100)) as relay:
        start = time.monotonic()
        assert len(through(relay, [b"x" * size])) == size
        took = time.monotonic() - start
    assert 0.16 <= took < 0.5  # 160 ms, and what a busy machine adds


def test_connections_share_nothing_but_the_relay(echo):
    with Relay(echo.address, profile(latency_ms=5)) as relay:
        got = {}
        threads = [
            threading.Thread(target=lambda i=i: got.update({i: through(relay, [bytes([i]) * 5000])})) for i in range(5)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
    assert got == {i: bytes([i]) * 5000 for i in range(5)}


def test_a_server_that_breaks_off_is_noticed():
    server = Echo(after=1000)
    try:
        with (
            Relay(server.address, profile(latency_ms=5)) as relay,
            socket.create_connection(relay.address, timeout=10) as s,
        ):
            s.sendall(b"x" * 1000)
            with contextlib.suppress(ConnectionResetError):
                assert s.recv(10) == b""
    finally:
        server.close()


def test_no_server_is_a_reset_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address(*taken.getsockname())
    with (
        Relay(address, profile()) as relay,
        pytest.raises(ConnectionResetError),  # on a busy machine as soon as by connecting
        socket.create_connection(relay.address, timeout=10) as s,
    ):
        s.recv(1)


@pytest.mark.parametrize("after", [0.0, 0.001, 0.003, 0.05])
def test_closing_breaks_what_is_open(echo, after):
    before = threading.active_count()
    for _ in range(5):  # before it is accepted, while it is connected, and then
        relay = Relay(echo.address, profile(latency_ms=60_000))
        with socket.create_connection(relay.address, timeout=10) as s:
            s.sendall(b"never there")
            time.sleep(after)
            relay.close()
            relay.close()
            with contextlib.suppress(ConnectionResetError):
                assert s.recv(10) == b""
        with pytest.raises(OSError):
            socket.create_connection(relay.address, timeout=1)
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() <= before


def test_certificates_are_checked_for_the_server_behind_the_relay(tmp_path):
    make_certificates(tmp_path, ["cloud.example"])
    tls = ServerCredentials(cert=tmp_path / "server.pem", key=tmp_path / "server.key")
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = add_port(server, "127.0.0.1", 0, what="server", credentials=tls)
    server.start()
    try:
        with Relay(Address("127.0.0.1", port), profile(latency_ms=2)) as relay:
            answered = {}
            for host in ("cloud.example", "other.example"):
                known = ClientCredentials(ca=tmp_path / "ca.pem")
                with known.channel(Address(host, port), relay.address) as channel:
                    try:
                        call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                        answered[host] = call.status
                    except grpc.RpcError as error:
                        answered[host] = error.code()
    finally:
        server.stop(0).wait()
    assert answered == {
        "cloud.example": health_pb2.HealthCheckResponse.SERVING,
        "other.example": grpc.StatusCode.UNAVAILABLE,
    }
