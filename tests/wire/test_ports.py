"""Who may listen where."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from splitsight.errors import UserError
from splitsight.wire import channels
from splitsight.wire.channels import parse_addresses
from splitsight.wire.ports import add_port, serve_metrics, server_options


def test_metrics_ports_are_not_shared():
    port = serve_metrics(CollectorRegistry(), 0)
    with pytest.raises(UserError, match=f"port {port}"):
        serve_metrics(CollectorRegistry(), port)


def test_why_a_server_cannot_listen_is_said():
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, where, words in (
            ("127.0.0.1", port, rf"cannot listen on 127\.0\.0\.1:{port} for the oracle: the port is in use"),
            ("192.0.2.77", 0, "192.0.2.77 is not an address of this machine"),
            ("fe80::77%lo", 0, r"\[fe80::77%lo\]:0 .* is not an address of this machine"),
            ("no.such.invalid", 0, "no host is called 'no.such.invalid' here"),
            ("unix:/tmp/s", 0, "local socket"),
        ):
            with pytest.raises(UserError, match=words) as caught:
                add_port(server, host, where, what="oracle")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "[::1]"])
def test_hosts_to_listen_on(host):
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
    assert add_port(grpc.server(ThreadPoolExecutor(1)), host, 0, what="oracle") > 0


def test_grpc_knows_every_option():
    """One that it does not know it ignores: a tap closed quiet connections because of a misspelt one."""
    from grpc._cython import cygrpc

    library = Path(cygrpc.__file__).read_bytes()
    clients = channels._options(parse_addresses("10.0.0.1:1,10.0.0.2:1", "--server x:1"), 1, keepalive=True)
    for name, _ in [*server_options(1), *clients]:
        assert name.encode() in library, name
