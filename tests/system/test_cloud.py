"""A real server process on loopback: who is refused and why, fairness, the tap, resume, drain."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import replace

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloud_server.__main__ import main
from splitsight import targets
from splitsight.defenses import parse_defense
from splitsight.pipeline import EdgePipeline
from splitsight.wire.certs import make_certificates
from splitsight.wire.channels import Address, channel
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials, read_token
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tap_pb2, tensor_pb2
from splitsight.wire.v1.split_inference_pb2_grpc import SplitInferenceStub
from splitsight.wire.v1.tap_pb2_grpc import TapStub

INFER = "/splitsight.v1.SplitInference/Infer"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SHAPE = (128, 8, 8)


def command(*arguments):
    return [sys.executable, "-m", "cloud_server", "--threads", "1", *map(str, arguments)]


class Server:
    """A server process; its log is kept for messages."""

    def __init__(self, folder, *arguments):
        self.log = folder / f"{uuid.uuid4().hex}.log"
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=errors, env=ENV)
        self.ready = json.loads(self.process.stdout.readline() or "{}")
        assert self.ready.get("event") == "ready", self.log.read_text()
        self.port, self.tap_port = self.ready["port"], self.ready["tap_port"]

    def stop(self, which=signal.SIGTERM, timeout=20):
        if self.process.poll() is None:
            self.process.send_signal(which)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(
        tmp_path_factory.mktemp("server"), "--tap-port", 0, "--metrics-port", 0, "--max-sessions", 10,
        "--max-message-mb", 0.25, "--resume-seconds", 2.0,
    )  # fmt: skip
    yield made
    assert made.stop() == 0
    for line in made.log.read_text().splitlines():
        assert json.loads(line)["level"] in ("info", "warning"), line


@pytest.fixture
def start(tmp_path):
    made = []

    def begin(*arguments):
        made.append(Server(tmp_path, *arguments))
        return made[-1]

    yield begin
    for child in made:
        child.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def target():
    return targets.load("resnet18")


@pytest.fixture(scope="module")
def about(target):
    return EdgePipeline(target, "L8").description()


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def frame(sequence, codec=None, seed=0, **fields):
    values = np.maximum(np.random.default_rng(seed).normal(size=SHAPE), 0).astype(np.float32)
    tensors = [encode(values, codec or CodecSpec())]
    return pb.Frame(**{"sequence": sequence, "capture_time_us": 1000 * sequence, "features": tensors, **fields})


_SESSION = tuple(SessionDescription.__dataclass_fields__)


class Edge:
    """One stream; requests are bytes, so that tests can send what no client of ours would."""

    def __init__(self, port, about, *, open=True, timeout=60, credentials=ANONYMOUS, **opening):
        self.channel = credentials.channel(Address("127.0.0.1", port))
        self.requests = queue.SimpleQueue()
        infer = self.channel.stream_stream(
            INFER, request_serializer=None, response_deserializer=pb.InferResponse.FromString
        )
        self.call = infer(iter(self.requests.get, None), timeout=timeout)
        self.opening = pb.SessionOpen(
            **{
                "session_id": uuid.uuid4().hex,
                "session": replace(about, **{k: opening.pop(k) for k in _SESSION if k in opening}).proto(),
                "codec": CodecSpec().proto(),
                "resume_after": -1,
                **opening,
            }
        )
        if open:
            self.put(pb.InferRequest(open=self.opening))

    def put(self, message):
        self.requests.put(message if isinstance(message, bytes) else message.SerializeToString())

    def opened(self):
        return next(self.call).opened

    def ask(self, *frames):
        for f in frames:
            self.put(pb.InferRequest(frame=f))
        return [next(self.call).answer for _ in frames]

    def refusal(self):
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                next(self.call)
        text = caught.value.details()
        assert text and "\n" not in text
        return caught.value.code(), text

    def finish(self):
        self.requests.put(None)
        return list(self.call)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # cancelled first: an end of requests that overtakes the cancelling would end the session cleanly
        self.call.cancel()
        self.requests.put(None)
        self.channel.close()


@contextlib.contextmanager
def subscribed(port, **request):
    with channel(Address("127.0.0.1", port)) as opened:
        call = TapStub(opened).Subscribe(tap_pb2.SubscribeRequest(**request))
        call.initial_metadata()
        yield call
        call.cancel()


# -- what is served ----------------------------------------------------------------------------------------


def test_describe_health_reflection_metrics(server, target, about):
    with channel(Address("127.0.0.1", server.port)) as opened:
        served = SplitInferenceStub(opened).Describe(pb.DescribeRequest())
        assert SessionDescription.read(served.session) == replace(about, defense="")
        assert [tuple(f.shape) for f in served.session.features] == [SHAPE]
        assert list(served.labels) == target.labels and served.session.input_size == 64 and served.version
        assert (served.max_sessions, served.max_message_bytes, served.max_in_flight) == (10, 1 << 18, 8)
        health = health_pb2_grpc.HealthStub(opened)
        for name in ("", "splitsight.v1.SplitInference"):
            status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(opened)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="splitsight.v1.SplitInference"),
        ]
        listed, described = reflection.ServerReflectionInfo(iter(asked))
        assert "splitsight.v1.SplitInference" in [s.name for s in listed.list_services_response.service]
        file = FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
        assert file.package == "splitsight.v1"
    with Edge(server.port, about) as edge:
        edge.opened()
        edge.ask(frame(0))
        edge.finish()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics") as page:
        text = page.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["splitsight_answers_total"]) >= 1 and "splitsight_latency_seconds_count" in values


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_answers_are_those_of_the_whole_model(server, target, dtype, compression, about):
    codec = CodecSpec(dtype, compression)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (features,) = target.head("L8")(images)
        expected = target.model(target.preprocess(images)).softmax(1)
    with Edge(server.port, about, codec=codec.proto()) as edge:
        assert edge.opened() == pb.SessionOpened(session_id=edge.opening.session_id, max_in_flight=8)
        answers = edge.ask(*(frame(i, features=[encode(z.numpy(), codec)]) for i, z in enumerate(features)))
        assert edge.finish() == [] and edge.call.code() is grpc.StatusCode.OK
    assert [a.sequence for a in answers] == [0, 1, 2]
    for answer, probabilities in zip(answers, expected, strict=True):
        assert len(answer.classes.top) == 5 and answer.compute_us > 0 and answer.batch_size >= 1
        shown = [label.probability for label in answer.classes.top]
        assert shown == sorted(shown, reverse=True)
        tolerance = {"float32": 1e-4, "float16": 0.01, "int8": 0.1}[dtype]
        for label in answer.classes.top:
            assert label.name == target.labels[label.index]
            assert label.probability == pytest.approx(float(probabilities[label.index]), abs=tolerance)


# -- who is refused ----------------------------------------------------------------------------------------

PRECONDITION, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("opening", "code", "parts"),
    [
        ({"head_digest": "0" * 64}, PRECONDITION, ["weights of F1", "000000000000"]),
        ({"target": "vit"}, PRECONDITION, ["resnet18", "vit"]),
        ({"split": "L4"}, PRECONDITION, ["L8", "L4"]),
        ({"features": ()}, PRECONDITION, ["features", "128×8×8"]),
        ({"codec": tensor_pb2.Codec(dtype=9)}, PRECONDITION, ["codec", "9"]),
        ({"session_id": ""}, INVALID, ["id"]),
        ({"resume_after": -2}, INVALID, ["-2"]),
    ],
)
def test_an_opening_that_does_not_fit_is_refused(server, about, opening, code, parts):
    with Edge(server.port, about, **opening) as edge:
        got, text = edge.refusal()
        assert got is code and all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (pb.InferRequest(frame=frame(1)), INVALID, "frame 1 came where 0 was due"),
        (pb.InferRequest(open=pb.SessionOpen()), INVALID, "only frames"),
        (pb.InferRequest(frame=pb.Frame()), INVALID, "0 tensors where 1"),
        (pb.InferRequest(frame=frame(0, CodecSpec("int8"))), INVALID, "float32, none"),
        (b"\xff\xff", INVALID, "InferRequest"),
        (
            pb.InferRequest(frame=pb.Frame(features=[encode(np.ones((2, 2)), CodecSpec())])),
            INVALID,
            "2×2 came where 128×8×8",
        ),
        (
            pb.InferRequest(
                frame=pb.Frame(
                    features=[tensor_pb2.Tensor(dtype=1, shape=SHAPE, data=np.full(SHAPE, np.nan, "<f4").tobytes())]
                )
            ),
            INVALID,
            "NaN",
        ),
        (bytes(300_000), EXHAUSTED, "300000 bytes"),
        (bytes(3_000_000), EXHAUSTED, "larger than max"),
        (
            pb.InferRequest(frame=pb.Frame(features=[encode(np.full(SHAPE, 3e38), CodecSpec())])),
            INVALID,
            "overflow",
        ),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(server, about, sent, code, text):
    with Edge(server.port, about) as edge:
        edge.opened()
        edge.put(sent)
        got, said = edge.refusal()
        assert got is code and text in said, said


def test_a_required_defence_is_enforced_with_its_parameters_and_digest(start, target, tmp_path):
    """And what it guarantees is counted, over the frames of a session, each once."""
    required = "clip:norm=20+gaussian:epsilon=8"
    server = start("--require-defense", required, "--metrics-port", 0)
    about = EdgePipeline(target, "L8", required).description()
    refused = [
        ({"defense": "identity"}, ["defence clip:norm=20+gaussian:epsilon=8", "identity"]),
        ({"defense": ""}, ["defence clip:norm=20+gaussian:epsilon=8", "none"]),
        ({"defense": "clip:norm=20+gaussian:epsilon=9"}, ["epsilon=8", "epsilon=9"]),
        ({"defense": "gaussian:sigma=24"}, ["epsilon=8", "sigma=24"]),
        ({"defense_digest": "d" * 64}, ["weights of the defence", "dddd"]),
    ]
    for opening, parts in refused:
        with Edge(server.port, about, **opening) as edge:
            code, text = edge.refusal()
            assert code is PRECONDITION and all(part in text for part in parts), text
    newer = about.proto()
    newer.MergeFromString(b"\xa2\x06\x03abc")
    with Edge(server.port, about, open=False) as edge:
        edge.opening.session.CopyFrom(newer)
        edge.put(pb.InferRequest(open=edge.opening))
        code, text = edge.refusal()
        assert code is PRECONDITION and "says more of itself" in text
    with Edge(server.port, about) as edge:
        edge.opened()
        edge.ask(frame(0), frame(1))
        with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics") as page:
            values = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line[0] != "#")
        two = parse_defense(required).mechanism.epsilon(2)
        assert float(values["splitsight_stream_epsilon"]) == pytest.approx(two)
        edge.finish()


def test_a_keyed_defence_is_undone_by_the_server_that_has_the_key_and_by_no_other(start, target, tmp_path):
    keys = [tmp_path / "key", tmp_path / "elsewhere" / "key"]
    for i, key in enumerate(keys):
        key.parent.mkdir(exist_ok=True)
        key.write_bytes(bytes(range(i, 32 + i)))
    pipeline = EdgePipeline(target, "L8", f"permutation:key={keys[0]}")
    server = start("--defense", f"permutation:key={keys[0]}")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (sent,) = pipeline(images)
        expected = target.model(target.preprocess(images)).softmax(1)[0]
        assert not torch.equal(sent, target.head("L8")(images)[0])
    with Edge(server.port, pipeline.description()) as edge:
        edge.opened()
        (answer,) = edge.ask(frame(0, features=[encode(sent[0].numpy(), CodecSpec())]))
    best = answer.classes.top[0]
    assert best.index == int(expected.argmax()) and best.probability == pytest.approx(float(expected.max()), abs=1e-4)
    # the same words with another key
    keys[0].write_bytes(keys[1].read_bytes())
    with Edge(server.port, EdgePipeline(target, "L8", f"permutation:key={keys[0]}").description()) as edge:
        code, text = edge.refusal()
        assert code is PRECONDITION and "weights of the defence" in text


def test_frames_before_the_bad_one_are_answered(server, about):
    with Edge(server.port, about) as edge:
        edge.opened()
        for sequence in (0, 1, 2, 7):
            edge.put(pb.InferRequest(frame=frame(sequence)))
        assert [next(edge.call).answer.sequence for _ in range(3)] == [0, 1, 2]
        assert edge.refusal() == (INVALID, "frame 7 came where 3 was due: sequence numbers grow by one")


def test_a_stream_must_open_first(server, about):
    with Edge(server.port, about, open=False) as edge:
        edge.put(pb.InferRequest(frame=frame(0)))
        assert edge.refusal()[1] == "the first message of a stream must open the session"
    with Edge(server.port, about, open=False) as edge:
        edge.requests.put(None)
        assert edge.refusal()[0] is INVALID


def sessions_now(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics") as page:
        return float(
            next(x for x in page.read().decode().splitlines() if x.startswith("splitsight_sessions ")).split()[1]
        )


def test_sessions_are_limited_and_slots_come_back(server, about):
    wait_until(lambda: sessions_now(server) == 0)
    with contextlib.ExitStack() as stack:
        edges = [stack.enter_context(Edge(server.port, about)) for _ in range(10)]
        for edge in edges:
            edge.opened()
        late = stack.enter_context(Edge(server.port, about))
        code, text = late.refusal()
        assert code is EXHAUSTED and "10 sessions" in text
        edges[0].call.cancel()
        wait_until(lambda: sessions_now(server) == 9)
        stack.enter_context(Edge(server.port, about)).opened()


def test_deadlines_are_honoured(server, about):
    wait_until(lambda: sessions_now(server) == 0)
    with Edge(server.port, about, timeout=0.5) as edge:
        edge.opened()
        edge.ask(frame(0))
        assert edge.refusal()[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: sessions_now(server) == 0)


# -- fairness ----------------------------------------------------------------------------------------------


def test_eight_edges_are_served_fairly(server, target, about):
    """Seven that send as fast as they may do not starve one that sends now and then."""
    stop = threading.Event()
    counts = [0] * 7

    def greedy(i):
        with Edge(server.port, about) as edge:
            edge.opened()
            sent = [pb.InferRequest(frame=frame(0, seed=i)).SerializeToString()]
            tensors = pb.InferRequest.FromString(sent[0]).frame.features
            for sequence in range(8):
                edge.put(pb.InferRequest(frame=pb.Frame(sequence=sequence, features=tensors)))
            while not stop.is_set():
                assert next(edge.call).answer.sequence == counts[i]
                edge.put(pb.InferRequest(frame=pb.Frame(sequence=counts[i] + 8, features=tensors)))
                counts[i] += 1
            edge.requests.put(None)
            assert len(list(edge.call)) == 8

    threads = [threading.Thread(target=greedy, args=(i,)) for i in range(7)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(counts) >= 5, 30)
        before = list(counts)
        begin, waits, sizes = time.perf_counter(), [], []
        with Edge(server.port, about) as edge:
            edge.opened()
            for sequence in range(15):
                start = time.perf_counter()
                (answer,) = edge.ask(frame(sequence))
                waits.append(time.perf_counter() - start)
                sizes.append(answer.batch_size)
                time.sleep(0.02)
        seconds = time.perf_counter() - begin
        served = np.array(counts) - before
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert max(sizes) > 1, "concurrent sessions share batches"
    assert served.min() >= 0.6 * served.max(), served
    # behind first come, first served it would queue behind 7 × 8 frames every time
    backlog = 56 * seconds / max(1, served.sum())
    assert np.median(waits) < 0.7 * backlog, (np.median(waits), backlog)


# -- the tap -----------------------------------------------------------------------------------------------


def test_the_tap_forwards_the_bytes_as_they_came(server, about):
    plain = frame(0).SerializeToString()
    # fields in another order and one that this version does not know: serializing again would not give these bytes
    tensor = encode(np.ones(SHAPE), CodecSpec()).SerializeToString()
    size = bytes([len(tensor) & 0x7F | 0x80, len(tensor) >> 7 & 0x7F | 0x80, len(tensor) >> 14])
    odd = b"\x1a" + size + tensor + b"\x10\x05" + b"\xfa\x06\x03abc" + b"\x08\x81\x00"
    assert pb.Frame.FromString(odd).sequence == 1
    key = b"\x12" + bytes([len(odd) & 0x7F | 0x80, len(odd) >> 7 & 0x7F | 0x80, len(odd) >> 14])
    before = time.time_ns() // 1000
    name = uuid.uuid4().hex
    with (
        subscribed(server.tap_port, session_id=name) as tap,
        Edge(server.port, about, session_id=name, defense="none") as edge,
    ):
        edge.opened()
        edge.ask(pb.Frame.FromString(plain))
        edge.put(key + odd)
        assert next(edge.call).answer.sequence == 1
        edge.finish()
        session, first, second, end = (next(tap) for _ in range(4))
    assert session.session == edge.opening
    assert first.frame.frame == plain and second.frame.frame == odd
    assert before <= first.frame.arrival_time_us <= second.frame.arrival_time_us <= time.time_ns() // 1000
    assert {first.frame.session_id, second.frame.session_id, end.end.session_id} == {edge.opening.session_id}
    assert second.frame.dropped == 0


def test_a_lost_session_ends_at_the_tap_only_when_it_does_not_come_back(server, about):
    name = uuid.uuid4().hex
    with subscribed(server.tap_port, session_id=name) as tap:
        for start in (0, 1):
            with Edge(server.port, about, session_id=name, resume_after=start - 1) as edge:
                edge.opened()
                edge.ask(frame(start))
        events = [next(tap) for _ in range(4)]
    assert [e.WhichOneof("event") for e in events] == ["session", "frame", "frame", "end"]


def test_a_subscriber_that_hangs_holds_up_nothing(server, about):
    total = 150
    with subscribed(server.tap_port, ring=4) as hanging, Edge(server.port, about) as edge:
        edge.opened()
        for start in range(0, total, 5):
            assert [a.sequence for a in edge.ask(*map(frame, range(start, start + 5)))][-1] == start + 4
        edge.finish()
        # it wakes up: what its connection and its ring held, in order, and how many it missed
        seen = []
        for event in hanging:
            if event.HasField("end") and event.end.session_id == edge.opening.session_id:
                break
            if event.HasField("frame") and event.frame.session_id == edge.opening.session_id:
                seen.append(event.frame)
    sequences = [pb.Frame.FromString(f.frame).sequence for f in seen]
    assert sequences == sorted(set(sequences)) and sequences[-1] == total - 1
    assert 0 < len(seen) < total
    assert seen[-1].dropped == total - len(seen)


def test_the_tap_is_nowhere_but_on_its_own_port(server):
    with channel(Address("127.0.0.1", server.port)) as opened, pytest.raises(grpc.RpcError) as caught:
        next(TapStub(opened).Subscribe(tap_pb2.SubscribeRequest()))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_guarded_tap_asks_for_the_token_over_tls(start, about, tmp_path):
    make_certificates(tmp_path, [])
    token = read_token(tmp_path / "tap.token", "tap")
    right = (("authorization", f"Bearer {token}"),)
    server = start(
        *("--tap-port", 0, "--tap-token-file", tmp_path / "tap.token", "--max-subscribers", 1),
        *("--cert", tmp_path / "server.pem", "--key", tmp_path / "server.key"),
    )
    client = ClientCredentials(ca=tmp_path / "ca.pem")
    with client.channel(Address("localhost", server.tap_port)) as opened:
        stub = TapStub(opened)
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", token),)):
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.Subscribe(tap_pb2.SubscribeRequest(), metadata=metadata))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED and "Bearer" in caught.value.details()
        call = stub.Subscribe(tap_pb2.SubscribeRequest(), metadata=right)
        call.initial_metadata()
        with Edge(server.port, about, credentials=client) as edge:
            edge.opened()
            edge.ask(frame(0))
            assert [next(call).WhichOneof("event") for _ in range(2)] == ["session", "frame"]
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Subscribe(tap_pb2.SubscribeRequest(), metadata=right))
        assert caught.value.code() is EXHAUSTED and "1 subscribers" in caught.value.details()
        call.cancel()
    with channel(Address("127.0.0.1", server.tap_port)) as opened, pytest.raises(grpc.RpcError):
        next(TapStub(opened).Subscribe(tap_pb2.SubscribeRequest(), timeout=5))


# -- coming and going --------------------------------------------------------------------------------------


def test_without_its_token_a_server_serves_nobody(start, about, tmp_path):
    make_certificates(tmp_path, [])
    server = start("--token-file", tmp_path / "edge.token")
    with pytest.raises(grpc.RpcError) as caught, Edge(server.port, about) as edge:
        edge.opened()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with channel(Address("127.0.0.1", server.port)) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            SplitInferenceStub(opened).Describe(pb.DescribeRequest())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        checked = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest())
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
    edge = ["edge", "--server", f"127.0.0.1:{server.port}", "--seconds", "1", "--fps", "4", "--json"]
    for token, code in ((tmp_path / "tap.token", 2), (tmp_path / "edge.token", 0)):
        run = subprocess.run(
            [sys.executable, "-m", "scenarios", *edge, "--token-file", token], capture_output=True, text=True
        )
        assert run.returncode == code, run.stderr
    assert json.loads(run.stdout)["answered"] == 4


def test_a_session_without_frames_is_ended_and_may_resume(start, about):
    server = start("--idle-seconds", 0.5, "--max-streams-per-peer", 1)
    with Edge(server.port, about) as edge:
        edge.opened()
        edge.ask(frame(0))
        with Edge(server.port, about) as second:
            code, sentence = second.refusal()
            assert code is EXHAUSTED and "already has 1 streams" in sentence
        code, sentence = edge.refusal()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert sentence == "no frame came for 0.5 s: reconnect and resume the session"
    with Edge(server.port, about, session_id=edge.opening.session_id, resume_after=0) as again:
        again.opened()
        assert [answer.sequence for answer in again.ask(frame(1))] == [1]


def test_a_session_goes_on_at_a_restarted_server(start, about):
    name = uuid.uuid4().hex
    first = start()
    with Edge(first.port, about, session_id=name) as edge:
        edge.opened()
        answers = edge.ask(*(frame(i, seed=i) for i in range(4)))
        edge.put(pb.InferRequest(frame=frame(4, seed=4)))  # whether this is answered, nobody will know
        first.process.kill()
        code, _ = edge.refusal()
        assert code is grpc.StatusCode.UNAVAILABLE
    first.process.wait()
    second = start("--port", first.port)
    # the client counts only what it was told before: 2 and 3 come once more, with the same answers
    with Edge(second.port, about, session_id=name, resume_after=1) as edge:
        assert edge.opened().session_id == name
        again = edge.ask(*(frame(i, seed=i) for i in range(2, 7)))
        edge.finish()
    assert [a.sequence for a in again] == [2, 3, 4, 5, 6]
    for old, new in zip(answers[2:], again, strict=False):
        assert [label.index for label in old.classes.top] == [label.index for label in new.classes.top]
    assert second.stop(signal.SIGINT) == 130


def test_reopening_takes_a_session_over(server, about):
    with Edge(server.port, about) as edge:
        edge.opened()
        edge.ask(frame(0))
        with Edge(server.port, about, session_id=edge.opening.session_id, resume_after=0) as again:
            again.opened()
            assert edge.refusal()[0] is grpc.StatusCode.ABORTED
            assert again.ask(frame(1))[0].sequence == 1


def test_sigterm_answers_what_was_accepted_and_exits_zero(start, about):
    server = start("--tap-port", 0)
    with (
        subscribed(server.tap_port),  # hangs
        subscribed(server.tap_port) as tap,
        Edge(server.port, about) as idle,
        Edge(server.port, about) as edge,
    ):
        idle.opened()
        edge.opened()
        message = frame(0)
        answered = []
        for sequence in range(40):
            message.sequence = sequence
            edge.put(pb.InferRequest(frame=message))
        answered.append(next(edge.call).answer.sequence)
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                answered.append(next(edge.call).answer.sequence)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the server is shutting down: reconnect and resume the session"
        assert idle.refusal()[0] is grpc.StatusCode.UNAVAILABLE
        events = []
        with pytest.raises(grpc.RpcError, match="the server shuts down while sessions go on"):
            for event in tap:
                events.append(event)
        assert server.stop() == 0
        assert time.monotonic() - begin < 10
    # every frame that the server took, as the tap saw it, was answered; no other was
    tapped = [pb.Frame.FromString(e.frame.frame).sequence for e in events if e.HasField("frame")]
    assert answered == tapped == list(range(len(answered))) and len(answered) < 40
    # no end of the sessions is told: they go on at the next server
    assert not any(event.HasField("end") for event in events)


def test_a_port_in_use_is_one_sentence(server):
    done = subprocess.run(command("--port", server.port), capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    # gRPC writes a line of its own before ours
    sentence = done.stderr.strip().splitlines()[-1]
    assert f"127.0.0.1:{server.port}" in sentence and "in use" in sentence and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tap-port", "PORT"], "in use"),
        (["--metrics-port", "PORT"], "in use"),
        (["--split", "L5"], "unknown split"),
        (["--target", "nosuch"], "unknown target"),
        (["--weights", "/nosuch.safetensors"], "/nosuch.safetensors"),
        (["--tap-port", "0", "--cert", "/nosuch.pem", "--key", "/nosuch.pem"], "cannot be read"),
        (["--tap-port", "0", "--cert", __file__, "--key", __file__], "PEM"),
    ],
)
def test_a_mistake_at_the_start_is_one_sentence(server, capsys, options, text):
    # in this process: each start of another costs seconds
    assert main([str(server.port) if option == "PORT" else option for option in options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and text in captured.err and captured.err.count("\n") == 1
