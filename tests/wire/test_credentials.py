"""Who may talk to whom: tokens from files, TLS and mutual TLS over real sockets on loopback."""

import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from splitsight.errors import UserError
from splitsight.wire.certs import ROLES, make_certificates
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials, ServerCredentials, read_token
from splitsight.wire.ports import add_port

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("certs")
    make_certificates(made, ["cloud.example"])
    return made


@pytest.mark.parametrize(
    ("host", "given", "words"),
    [
        ("0.0.0.0", {}, "an oracle on 0.0.0.0 would tell all: give it a token"),
        ("0.0.0.0", {"token": TOKEN}, "a token, a certificate and a key"),
        ("::", {"cert": "c", "key": "k"}, "a token, a certificate and a key"),
        ("10.0.0.1", {"token": "", "cert": "c", "key": "k"}, "a token, a certificate and a key"),
        ("127.0.0.1", {"cert": "c"}, "both or neither"),
        ("127.0.0.1", {"client_ca": "c"}, "only over TLS"),
        ("127.0.0.1", {}, None),
        ("[::1]", {}, None),
        ("0.0.0.0", {"token": TOKEN, "cert": "c", "key": "k"}, None),
    ],
)
def test_open_servers_are_refused(host, given, words):
    credentials = ServerCredentials(**given)
    if words is None:
        credentials.check("oracle", "tell all", host)
        return
    with pytest.raises(UserError, match=words):
        credentials.check("oracle", "tell all", host)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"0123456789abcdef\n", None),
        ("pässwörd-pässwörd".encode(), "plain ASCII"),
        (b"two words of a secret", "in one word"),
        (b"short", "has 5 characters: give at least 16"),
        (b"\xff\xfe" * 10, "cannot be read: it is not text"),
    ],
)
def test_tokens_come_from_files(tmp_path, content, words):
    path = tmp_path / "token"
    path.write_bytes(content)
    if words is None:
        assert read_token(path, "tap") == TOKEN
        return
    with pytest.raises(UserError, match=words) as caught:
        read_token(path, "tap")
    assert "\n" not in str(caught.value) and content[:4].decode(errors="replace") not in str(caught.value)


def test_a_missing_token_file_is_said_and_none_asks_for_nothing(tmp_path):
    assert read_token(None, "tap") is None
    with pytest.raises(UserError, match=r"the tap's token file .* cannot be read"):
        read_token(tmp_path / "none", "tap")


def test_certificates_are_ones_that_a_strict_client_takes(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key"),
        *(f"{role}.token" for role in ROLES),
    }
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == (0o044 if path.suffix == ".pem" else 0)
    assert len({read_token(folder / f"{role}.token", role) for role in ROLES}) == len(ROLES)
    # an independent implementation checks the chain, the names and the usages
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_cert_chain(folder / "client.pem", folder / "client.key")
    for name, fits in (("cloud.example", True), ("127.0.0.1", True), ("elsewhere.example", False)):
        assert _handshake(server, context, name) is fits


def _handshake(server, client, name):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    for _ in range(10):
        for side in (one, other):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                return False
    return len(done) == 2


def test_certificates_end_and_are_not_overwritten(tmp_path):
    made = make_certificates(tmp_path / "old", [], days=1, now=datetime.now(UTC) - timedelta(days=3))
    assert len(made) == 10
    with _serving(ServerCredentials(cert=tmp_path / "old/server.pem", key=tmp_path / "old/server.key")) as port:
        assert _asked(port, ClientCredentials(ca=tmp_path / "old/ca.pem")) == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(UserError, match=r"ca\.pem is there already"):
        make_certificates(tmp_path / "old", [])
    with pytest.raises(UserError, match="--host"):
        make_certificates(tmp_path / "new", ["http://x"])


class _serving:
    """A health service and one other, guarded."""

    def __init__(self, credentials):
        self.refused = 0
        guards = credentials.interceptors("tap", self._count)
        self.server = grpc.server(ThreadPoolExecutor(2), interceptors=guards)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self.server)
        answer = grpc.unary_unary_rpc_method_handler(lambda request, context: b"answer")
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", {"Ask": answer}),))
        self.port = add_port(self.server, "127.0.0.1", 0, what="tap", credentials=credentials)

    def _count(self):
        self.refused += 1

    def __enter__(self):
        self.server.start()
        return self.port

    def __exit__(self, *_):
        self.server.stop(0).wait()


def _asked(port, credentials, path="/x.Y/Ask"):
    with credentials.channel(Address("127.0.0.1", port)) as channel:
        try:
            return channel.unary_unary(path)(b"", timeout=5, metadata=credentials.metadata)
        except grpc.RpcError as error:
            return error.code()


def test_without_the_token_nothing_but_health_answers():
    serving = _serving(ServerCredentials(token=TOKEN))
    with serving as port:
        assert _asked(port, ClientCredentials(token=TOKEN)) == b"answer"
        for wrong in (None, TOKEN[:-1], TOKEN + "0", TOKEN.upper()):
            assert _asked(port, ClientCredentials(token=wrong)) == grpc.StatusCode.UNAUTHENTICATED
        # a stranger does not learn what there is
        assert _asked(port, ClientCredentials(), "/x.Y/None") == grpc.StatusCode.UNAUTHENTICATED
        assert _asked(port, ClientCredentials(token=TOKEN), "/x.Y/None") == grpc.StatusCode.UNIMPLEMENTED
        assert serving.refused == 5
        with ClientCredentials().channel(Address("127.0.0.1", port)) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_tls_and_mutual_tls(folder, tmp_path):
    ca, pair = folder / "ca.pem", {"cert": folder / "server.pem", "key": folder / "server.key"}
    own = {"cert": folder / "client.pem", "key": folder / "client.key"}
    make_certificates(tmp_path / "other", [])
    with _serving(ServerCredentials(**pair)) as port:
        assert _asked(port, ClientCredentials(ca=ca)) == b"answer"
        assert _asked(port, ClientCredentials(ca=tmp_path / "other/ca.pem")) == grpc.StatusCode.UNAVAILABLE
        assert _asked(port, ClientCredentials()) == grpc.StatusCode.UNAVAILABLE
    with _serving(ServerCredentials(**pair, client_ca=ca)) as port:
        assert _asked(port, ClientCredentials(ca=ca, **own)) == b"answer"
        assert _asked(port, ClientCredentials(ca=ca)) == grpc.StatusCode.UNAVAILABLE
        strange = {"cert": tmp_path / "other/client.pem", "key": tmp_path / "other/client.key"}
        assert _asked(port, ClientCredentials(ca=ca, **strange)) == grpc.StatusCode.UNAVAILABLE


def test_what_a_client_may_not_show(folder, tmp_path):
    token = folder / "edge.token"
    with pytest.raises(UserError, match="both or neither"):
        ClientCredentials.read("edge", token, folder / "ca.pem", folder / "client.pem", None)
    with pytest.raises(UserError, match="over TLS only"):
        ClientCredentials.read("edge", token, None, folder / "client.pem", folder / "client.key")
    clear = ClientCredentials.read("edge", token, None, None, None)
    clear.channel(Address("localhost", 1)).close()
    with pytest.raises(UserError, match=r"would cross the network in the clear: give .* --ca"):
        clear.channel(Address("cloud.example", 1))
    for name, content, words in (("none", None, "cannot be read: No such file"), ("text", b"hello", "is not PEM")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            ClientCredentials(ca=path).channel(Address("localhost", 1))
        with pytest.raises(UserError, match=words):
            ServerCredentials(cert=path, key=path).tls("tap")
