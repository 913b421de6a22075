"""Who may listen where, and who may ask."""

from types import SimpleNamespace

import grpc
import pytest
from prometheus_client import CollectorRegistry

from splitsight.errors import UserError
from splitsight.wire.guard import check_guard, is_loopback, refuse_strangers, serve_metrics


def test_loopback():
    assert all(is_loopback(h) for h in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""))


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ({"host": "0.0.0.0", "token": None, "cert": None, "key": None}, "an oracle on 0.0.0.0 would tell all: give it"),
        ({"host": "0.0.0.0", "token": "t", "cert": None, "key": None}, "a token, a certificate and a key"),
        ({"host": "127.0.0.1", "token": None, "cert": "c", "key": None}, "both or neither"),
        ({"host": "127.0.0.1", "token": "päss", "cert": None, "key": None}, "plain ASCII"),
        ({"host": "127.0.0.1", "token": None, "cert": None, "key": None}, None),
        ({"host": "0.0.0.0", "token": "t", "cert": "c", "key": "k"}, None),
    ],
)
def test_open_services_are_refused(guard, words):
    if words is None:
        check_guard("oracle", "tell all", **guard)
        return
    with pytest.raises(UserError, match=words):
        check_guard("oracle", "tell all", **guard)


@pytest.mark.parametrize(
    ("token", "metadata", "refused"),
    [
        (None, [], False),
        ("a secret", [("authorization", "Bearer a secret")], False),
        ("right", [("authorization", b"Bearer right")], False),
        ("right", [("authorization", "Bearer wrong")], True),
        ("right", [], True),
    ],
)
def test_strangers_are_refused(token, metadata, refused):
    aborted = []
    context = SimpleNamespace(invocation_metadata=lambda: metadata, abort=lambda *why: aborted.append(why))
    refuse_strangers(context, token, "oracle")
    assert bool(aborted) == refused
    if refused:
        assert aborted[0][0] == grpc.StatusCode.UNAUTHENTICATED and "the oracle asks for a token" in aborted[0][1]


def test_metrics_ports_are_not_shared():
    port = serve_metrics(CollectorRegistry(), 0)
    with pytest.raises(UserError, match=f"port {port}"):
        serve_metrics(CollectorRegistry(), port)
