"""The committed stubs are those that the protos give."""

import pickle
import re

from splitsight.wire import generate
from splitsight.wire.v1 import split_inference_pb2, split_inference_pb2_grpc, tap_pb2_grpc, tensor_pb2

# the one thing that may differ: which versions of protoc and of its gRPC plugin wrote the file
_VERSION = re.compile(
    r"# Protobuf Python Version: \S+"
    r"|(?<=_runtime_version\.Domain\.PUBLIC,\n)(?:    \d+,\n){3}"
    r"|GRPC_GENERATED_VERSION = \S+"
)


def test_committed_stubs_match_the_protos(tmp_path):
    fresh = generate.generate(tmp_path / "v1")
    committed = sorted(p for p in generate.STUBS.iterdir() if p.is_file())
    assert [p.name for p in fresh] == [p.name for p in committed]
    for new, old in zip(fresh, committed, strict=True):
        assert _VERSION.sub("", new.read_text()) == _VERSION.sub("", old.read_text()), f"{old.name} is out of date"


def test_stubs_import_inside_the_package():
    assert split_inference_pb2.DESCRIPTOR.package == "splitsight.v1"
    assert hasattr(split_inference_pb2_grpc, "SplitInferenceServicer") and hasattr(tap_pb2_grpc, "TapServicer")
    frame = split_inference_pb2.Frame(sequence=3, features=[tensor_pb2.Tensor(shape=[1, 2])])
    assert pickle.loads(pickle.dumps(frame)) == frame
