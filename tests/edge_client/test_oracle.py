"""The oracle's allowance and service, and a real one on loopback."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from edge_client.oracle import RETRY_MS, Allowance, Metrics, OracleOptions, OracleService, Refusal, Shortage
from splitsight import targets
from splitsight.data import fit, to_tensor
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.wire.channels import Address, channel
from splitsight.wire.credentials import ServerCredentials
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, decode, encode
from splitsight.wire.v1 import oracle_pb2 as pb
from splitsight.wire.v1 import oracle_pb2_grpc as rpc
from splitsight.wire.v1 import tensor_pb2

TOKEN = "0123456789abcdef"


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0, 3)), max_size=40),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_an_allowance_is_never_exceeded(asked, budget, rate, burst):
    clock = [0.0]
    allowance = Allowance(budget, rate, burst, lambda: clock[0])
    room, granted = max(rate, burst), 0
    for pictures, pause in asked:
        clock[0] += pause
        try:
            assert allowance.take(pictures) == budget - granted - pictures
            granted += pictures
        except Shortage as short:
            assert (short.reason == "budget") == (pictures > budget - granted)
            if short.reason == "rate" and pictures <= room:
                clock[0] += short.wait + 1e-6
                assert allowance.take(pictures) == budget - granted - pictures
                granted += pictures
        assert granted <= budget and granted <= room + rate * clock[0] + 1e-6


def test_without_a_rate_only_the_budget_counts():
    allowance = Allowance(10, 0.0, 1, lambda: 0.0)
    assert allowance.take(9) == 1 and allowance.take(1) == 0
    with pytest.raises(Shortage, match="budget of 10 queries is spent"):
        allowance.take(1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": 70000}, "port 70000"),
        ({"budget": 0}, "budget 0"),
        ({"rate": float("nan")}, "rate nan"),
        ({"max_batch": 0}, "max_batch"),
        ({"dtype": "float8"}, "float8"),
        ({"host": "0.0.0.0"}, "a token, a certificate and a key"),
        ({"credentials": ServerCredentials(cert=Path("c"))}, "both or neither"),
    ],
)
def test_bad_settings_are_one_sentence(settings, words):
    with pytest.raises(UserError, match=words):
        OracleOptions(**settings)


def _picture(height, width, size=None):
    return pb.Picture(height=height, width=width, rgb=bytes(3 * height * width if size is None else size))


def _service(allowance, answer=None):
    description = pb.DescribeOracleResponse(max_batch=2, max_side=8, budget=4)
    one = pb.PictureFeatures(features=[encode(np.ones((1, 2, 2)), CodecSpec())])
    return OracleService(description, answer or (lambda p: [one] * len(p)), allowance, Metrics())


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ([], "1 to 2 pictures, not 0"),
        ([_picture(2, 2)] * 3, "not 3"),
        ([_picture(4, 9)], "9 × 4 pixels is too large: at most 8"),
        ([_picture(4, 4, size=47)], "47 bytes are no RGB picture"),
        ([_picture(0, 4, size=0)], "no RGB picture"),
    ],
)
def test_refused_pictures_cost_nothing(pictures, words):
    allowance = Allowance(4, 0.0, 2)
    service = _service(allowance)
    with pytest.raises(Refusal, match=words):
        service.query(pb.QueryRequest(pictures=pictures))
    assert allowance.left == 4


def test_a_rate_is_told_in_milliseconds():
    allowance = Allowance(4, 1.0, 2, lambda: 0.0)
    service = _service(allowance)
    request = pb.QueryRequest(pictures=[_picture(2, 2)] * 2)
    assert service.query(request).left == 2
    with pytest.raises(Refusal, match="at most 1 queries a second") as caught:
        service.query(request)
    assert dict(caught.value.trailing)[RETRY_MS] == "2000" and allowance.left == 2


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    log = tmp_path_factory.mktemp("oracle") / "log"
    secret = log.with_name("token")
    secret.write_text(TOKEN)
    arguments = ["--port", "0", "--metrics-port", "0", "--split", "L12", "--budget", "5", "--token-file", secret]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "scenarios", "oracle", *arguments, "--dtype", "float16", "--max-side", "128"],
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        ready = json.loads(process.stdout.readline() or "{}")
        assert ready.get("event") == "ready", log.read_text()
        yield SimpleNamespace(**ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["ready", "stopped"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_real_oracle_answers_what_the_edge_would_send(oracle):
    metadata = [("authorization", f"Bearer {TOKEN}")]
    with channel(Address("127.0.0.1", oracle.port)) as opened:
        health = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(service="splitsight.v1.Oracle"))
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = rpc.OracleStub(opened)
        for given_token in ([], [("authorization", "Bearer wrong")]):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Query(pb.QueryRequest(), metadata=given_token)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        about = stub.Describe(pb.DescribeOracleRequest(), metadata=metadata)
        target = targets.load("resnet18")
        session = SessionDescription.read(about.session)
        assert session == EdgePipeline(target, "L12").description()
        assert (about.left, session.input_size, about.codec.dtype) == (5, 64, tensor_pb2.DTYPE_FLOAT16)
        images = [np.random.default_rng(i).integers(0, 256, (64, 80 + i, 3), np.uint8) for i in range(2)]
        pictures = [pb.Picture(height=i.shape[0], width=i.shape[1], rgb=i.tobytes()) for i in images]
        answer = stub.Query(pb.QueryRequest(pictures=pictures), metadata=metadata)
        assert answer.left == 3 and len(answer.answers) == 2
        truth = target.head("L12")(to_tensor(np.stack([fit(i, 64) for i in images])))[0]
        for i, one in enumerate(answer.answers):
            assert one.features[0].dtype == tensor_pb2.DTYPE_FLOAT16
            found = torch.from_numpy(decode(one.features[0], session.features[0]))
            torch.testing.assert_close(found, truth[i], rtol=2e-3, atol=2e-3)
        with pytest.raises(grpc.RpcError, match="3 of 5 queries are left, not 4"):
            stub.Query(pb.QueryRequest(pictures=pictures * 2), metadata=metadata)
    with urllib.request.urlopen(f"http://127.0.0.1:{oracle.metrics_port}/metrics", timeout=10) as page:
        counted = page.read().decode()
    for line in (
        "splitsight_oracle_pictures_total 2.0",
        "splitsight_oracle_budget_left 3.0",
        'splitsight_oracle_refused_total{reason="token"} 2.0',
        'splitsight_oracle_refused_total{reason="budget"} 1.0',
    ):
        assert line in counted
