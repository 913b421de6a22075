"""Addresses as users write them, and channels that no proxy gets."""

import ast
import asyncio
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from splitsight.errors import UserError
from splitsight.wire import channels
from splitsight.wire.channels import (
    Address,
    aio_channel,
    channel,
    host_of,
    is_loopback,
    parse_address,
    parse_addresses,
)

ROOT = Path(__file__).resolve().parents[2]
PROXIES = [name for low in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") for name in (low, low.upper())]


def test_loopback():
    local = ("127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]", "::1%lo", "::ffff:127.0.0.1")
    assert all(is_loopback(h) for h in local)
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("localhost:65535", "localhost", 65535),
        ("cloud_1:50051", "cloud_1", 50051),
        ("dns:50051", "dns", 50051),
        ("a.example.org.:80", "a.example.org.", 80),
        ("münchen.example:80", "münchen.example", 80),
        ("[::1]:50051", "::1", 50051),
        ("[fe80::1%eth0]:50051", "fe80::1%eth0", 50051),
    ],
)
def test_addresses(text, host, port):
    address = parse_address(text, "--server 127.0.0.1:50051")
    assert address == (host, port) and str(address) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://127.0.0.1:50051", "is a URL: give HOST:PORT, for example --server 127.0.0.1:50051"),
        ("https://cloud.example:443/", "is a URL"),
        ("dns:///cloud:50051", "is a URL"),
        ("ipv6:[::1]:50051", "is a URL"),
        ("unix:/tmp/s", "local socket"),
        ("unix:50051", "local socket"),
        ("cloud", "port is missing"),
        ("127.0.0.1", "port is missing"),
        ("127.0.0.1:", "port is missing"),
        (":50051", "host is missing"),
        ("", "host is missing"),
        ("cloud:0", "0 is not a port"),
        ("cloud:65536", "65536 is not a port"),
        ("cloud:99999999999", "is not a port"),
        ("cloud:-1", "-1 is not a port"),
        ("cloud:http", "http is not a port"),
        ("cloud:٥٠٠٥١", "is not a port"),
        ("cloud:50051/", "holds a slash"),
        ("cloud/:50051", "holds a slash"),
        ("cloud:50051:50052", "is not HOST:PORT"),
        ("::1:50051", r"in brackets"),
        ("::1", r"in brackets"),
        ("[::1]", r"\[::1\]:50051"),
        ("[::1:50051", "in brackets"),
        ("[cloud]:50051", "neither"),
        ("[127.0.0.1]:50051", "neither"),
        ("256.0.0.1:50051", "neither"),
        ("127.1:50051", "neither"),
        ("user@cloud:50051", "neither"),
        (" cloud:50051", "neither"),
        ("clo ud:50051", "neither"),
        ("a..b:50051", "neither"),
        ("-cloud:50051", "neither"),
    ],
)
def test_what_is_no_address_is_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_address(text, "--server 127.0.0.1:50051")
    assert "\n" not in str(caught.value)


def test_hosts_to_listen_on():
    assert [host_of(h, "--host") for h in ("::1", "[::1]", "::", "0.0.0.0", "localhost", "fe80::1%eth0")] == [
        "::1",
        "::1",
        "::",
        "0.0.0.0",
        "localhost",
        "fe80::1%eth0",
    ]
    for text, words in (
        ("unix:/tmp/s", "local socket"),
        ("http://0.0.0.0", "is a URL: give a name or an IP address, for example --host 127.0.0.1"),
        ("127.0.0.1:50051", "holds a port"),
        ("[::1]:50051", "neither"),
        ("*", "neither"),
        ("", "neither"),
        ("256.0.0.1", "neither"),
    ):
        with pytest.raises(UserError, match=words):
            host_of(text, "--host")


@pytest.fixture
def deaf(monkeypatch):
    """The address of a proxy that accepts connections and counts them, and is set in every variable there is."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def accept():
        while True:
            try:
                seen.append(listener.accept()[0])
            except OSError:
                return
            seen[-1].close()

    threading.Thread(target=accept, daemon=True).start()
    for name in PROXIES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.setenv(name, "example.org")
    yield seen
    listener.close()


@pytest.fixture
def served():
    servers = []

    def start(host):
        server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
        port = server.add_insecure_port(f"[{host}]:0" if ":" in host else f"{host}:0")
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(0)


def _ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("listens", "connects"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("::1", "::1%lo")],
)
def test_this_machine_is_reached_without_a_proxy(served, deaf, listens, connects):
    if ":" in listens and not _ipv6():
        pytest.skip("no IPv6 here")
    with channel(Address(connects, served(listens))) as opened:
        grpc.channel_ready_future(opened).result(timeout=10)
    assert deaf == []


async def _connect(address):
    async with aio_channel(address) as opened:
        await opened.channel_ready()


def test_asyncio_too(served, deaf):
    asyncio.run(asyncio.wait_for(_connect(Address("127.0.0.1", served("127.0.0.1"))), 10))
    assert deaf == []


@pytest.mark.parametrize(("kept", "proxied"), [("http_proxy", False), ("https_proxy", False), ("grpc_proxy", True)])
def test_other_machines_are_reached_through_grpc_proxy_alone(monkeypatch, deaf, kept, proxied):
    for name in set(PROXIES) - {kept}:
        monkeypatch.delenv(name)
    nobody = Address("192.0.2.77", 50051)  # RFC 5737
    with channel(nobody) as opened, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(opened).result(timeout=0.5)
    assert bool(deaf) == proxied


def test_channels_are_made_in_one_place():
    makers = {"insecure_channel", "secure_channel"}
    for package in ("splitsight", "edge_client", "cloud_server", "adversary", "scenarios"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "channels.py" and not file.name.endswith("_grpc.py"):
                names = {n.attr for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Attribute)}
                assert not names & makers, f"{file.relative_to(ROOT)} makes a channel of its own"


# -- replicas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cloud.example:1", [("cloud.example", 1)]),
        ("10.0.0.1:1, 10.0.0.2:2", [("10.0.0.1", 1), ("10.0.0.2", 2)]),
        ("localhost:1,127.0.0.2:2,localhost:1", [("127.0.0.1", 1), ("127.0.0.2", 2)]),
        ("[::1]:1,[fe80::1]:2", [("::1", 1), ("fe80::1", 2)]),
    ],
)
def test_addresses_of_replicas(text, found):
    assert list(parse_addresses(text, "--server 127.0.0.1:50051")) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.example:1,b.example:1", "one name that resolves to all"),
        ("10.0.0.1:1,[::1]:1", "not all IPv4 or all IPv6"),
        ("10.0.0.1:1,", "not HOST:PORT"),
        ("10.0.0.1:1,10.0.0.2", "the port is missing"),
    ],
)
def test_addresses_that_are_no_replicas(text, words):
    with pytest.raises(UserError, match=words):
        parse_addresses(text, "--server 127.0.0.1:50051")


class NameServer:
    """Answers every question of DNS (RFC 1035) for an A record with the same addresses."""

    def __init__(self, *addresses):
        self.addresses, self.asked = addresses, 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, where = self.socket.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
            found = self.addresses if kind == 1 else ()
            self.asked += bool(found)
            answers = b"".join(
                b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address) for address in found
            )
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
            self.socket.sendto(header + query[12:end] + answers, where)


@pytest.fixture
def two(monkeypatch):
    """Two servers on one port of two addresses, each of which says where it is; and the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = {}
    for host in ("127.0.0.1", "127.0.0.2"):
        made[host] = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(lambda _, context, host=host: host.encode())
        made[host].add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Ask": handler}),))
        assert made[host].add_insecure_port(f"{host}:{port}")
        made[host].start()
    yield made, port
    for server in made.values():
        server.stop(0).wait()


def _who(addresses):
    """Those that answer on thirty channels."""
    found = set()
    for _ in range(30):
        with channel(addresses) as opened:
            found.add(opened.unary_unary("/x.Y/Ask")(b"", timeout=20).decode())
    return found


def test_a_list_of_addresses_is_balanced(two):
    servers, port = two
    addresses = parse_addresses(f"127.0.0.1:{port},127.0.0.2:{port}", "--server 127.0.0.1:50051")
    assert _who(addresses) == set(servers)
    servers["127.0.0.1"].stop(0).wait()
    assert _who(addresses) == {"127.0.0.2"}


def test_a_name_of_several_addresses_is_balanced(two, monkeypatch):
    """As a headless service of an orchestrator is: one name, one port, an address a replica."""
    servers, port = two
    names = NameServer("127.0.0.1", "127.0.0.2")
    monkeypatch.setattr(channels, "_DNS", f"dns://127.0.0.1:{names.port}/")
    address = Address("replicas.example", port)
    try:
        assert _who(address) == set(servers) and names.asked
        servers["127.0.0.1"].stop(0).wait()
        assert _who(address) == {"127.0.0.2"}
    finally:
        names.socket.close()


def test_a_client_inflates_nothing_that_a_server_packed():
    server = grpc.server(ThreadPoolExecutor(1), compression=grpc.Compression.Gzip)
    handler = grpc.unary_unary_rpc_method_handler(lambda _, context: bytes(1 << 20))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Ask": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with channel(Address("127.0.0.1", port)) as opened, pytest.raises(grpc.RpcError, match="not supported: gzip"):
            opened.unary_unary("/x.Y/Ask")(b"", timeout=10)
    finally:
        server.stop(0).wait()
