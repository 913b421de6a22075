"""Real servers on loopback as a stranger, a slow peer and the holder of another role's token find them."""

import json
import os
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from splitsight.wire.v1 import oracle_pb2, tap_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_OWN = {
    "cloud": ["/splitsight.v1.SplitInference/Describe", "/splitsight.v1.SplitInference/Infer"],
    "tap": ["/splitsight.v1.Tap/Subscribe"],
    "oracle": ["/splitsight.v1.Oracle/Describe", "/splitsight.v1.Oracle/Query"],
}
_METHODS = {role: [*own, _REFLECTION, "/no.Such/It"] for role, own in _OWN.items()}


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """A cloud server with its tap, and an oracle, each port with a token of its own."""
    folder = tmp_path_factory.mktemp("guarded")
    for role in _METHODS:
        (folder / role).write_text(_token(role))
    commands = {
        "cloud": [
            "cloud_server",
            "--token-file",
            folder / "cloud",
            "--tap-port",
            0,
            "--tap-token-file",
            folder / "tap",
        ],
        "oracle": ["scenarios", "oracle", "--port", 0, "--token-file", folder / "oracle"],
    }
    made, found = [], {}
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                made.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *map(str, command)], stdout=subprocess.PIPE, stderr=log, env=_ENV
                    )
                )
        for name, child in zip(commands, made, strict=True):
            ready = json.loads(child.stdout.readline() or "{}")
            assert ready.get("event") == "ready", (folder / f"{name}.log").read_text()
            found[name] = ready["port"]
            found |= {"tap": ready["tap_port"]} if "tap_port" in ready else {}
        yield found
        for child in made:
            child.terminate()
            assert child.wait(20) == 0
    finally:
        for child in made:
            child.kill()
            child.wait()
            child.stdout.close()


def _token(role):
    return f"the token of the {role}"[::-1].replace(" ", "-")


def _metadata(role):
    return [("authorization", f"Bearer {_token(role)}")]


def _called(channel, method, requests, timeout=10, **options):
    """Status of a call, and its first answer, if there is one; requests may come late or never."""
    try:
        call = channel.stream_stream(method)(requests, timeout=timeout, **options)
        return grpc.StatusCode.OK, next(call, None)
    except grpc.RpcError as error:
        return error.code(), error.details()


@pytest.fixture(params=list(_METHODS))
def at(request, ports):
    with grpc.insecure_channel(f"127.0.0.1:{ports[request.param]}") as channel:
        yield request.param, channel


def _never():
    threading.Event().wait(3)
    yield from ()


def test_a_stranger_learns_nothing_and_need_not_be_heard_out(at):
    role, channel = at
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    for method in _METHODS[role]:
        for metadata in ([], *(_metadata(other) for other in _METHODS if other != role)):
            begin = time.monotonic()
            code, details = _called(channel, method, iter([listing]), metadata=metadata)
            assert code is grpc.StatusCode.UNAUTHENTICATED, (method, details)
            assert "asks for a token" in details and "\n" not in details
            # refused before anything was sent
            assert _called(channel, method, _never(), metadata=metadata)[0] is grpc.StatusCode.UNAUTHENTICATED
            assert time.monotonic() - begin < 2.5


def test_health_is_for_everyone_where_there_is_any(ports):
    for role in ("cloud", "oracle"):
        with grpc.insecure_channel(f"127.0.0.1:{ports[role]}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


_ANSWERED = {
    "cloud": ("/splitsight.v1.SplitInference/Describe", pb.DescribeRequest()),
    "oracle": ("/splitsight.v1.Oracle/Describe", oracle_pb2.DescribeOracleRequest()),
    "tap": ("/splitsight.v1.Tap/Subscribe", tap_pb2.SubscribeRequest(session_id="none")),
}


def test_callers_who_never_send_their_message_keep_nobody_waiting(at):
    """Without the token at every method, and at the health check; then with it."""
    role, channel = at
    checks = ["/grpc.health.v1.Health/Check"] if role != "tap" else []
    slow = [channel.stream_stream(m)(_never(), timeout=30) for m in (*_METHODS[role], *checks) for _ in range(12)]
    method, request = _ANSWERED[role]
    begin = time.monotonic()
    call = channel.unary_stream(method)(request.SerializeToString(), timeout=10, metadata=_metadata(role))
    call.initial_metadata()
    assert time.monotonic() - begin < 2.5
    for one in (call, *slow):
        one.cancel()


def test_what_grpc_would_inflate_is_refused_by_its_header(at):
    role, channel = at
    method, _ = _ANSWERED[role]
    code, details = _called(
        channel, method, iter([bytes(50 << 20)]), metadata=_metadata(role), compression=grpc.Compression.Gzip
    )
    assert code is grpc.StatusCode.UNIMPLEMENTED and "gzip" in details


def test_bytes_that_are_no_message_are_told_so(at):
    role, channel = at
    for method in _OWN[role]:
        code, details = _called(channel, method, iter([b"\xff\xff"]), metadata=_metadata(role))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and "a message is not a splitsight.v1." in details
