"""The sentence says what differs."""

import pytest

from splitsight.wire.sessions import difference, tensor_specs
from splitsight.wire.tensors import CodecSpec
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tensor_pb2

FEATURES = [tensor_pb2.TensorSpec(name="z0", shape=[128, 8, 8])]
SERVED = pb.DescribeResponse(
    target="resnet18", split="L8", features=FEATURES, weights_digest="a" * 64, dtypes=[1, 2], compressions=[0]
)


def opening(**changes):
    fields = {"target": "resnet18", "split": "L8", "features": FEATURES, "weights_digest": "a" * 64}
    return pb.SessionOpen(**{**fields, "codec": CodecSpec().proto(), **changes})


def test_what_fits_has_no_difference():
    assert difference(opening(), SERVED) is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"target": "vit"}, ["resnet18", "vit"]),
        ({"split": "L4"}, ["L8", "L4"]),
        ({"weights_digest": "b" * 64}, ["weights", "aaaa", "bbbb"]),
        ({"weights_digest": ""}, ["weights", "none"]),
        ({"features": []}, ["schema", "128×8×8", "nothing"]),
        ({"features": [tensor_pb2.TensorSpec(name="z0", shape=[64, 16, 16])]}, ["schema", "128×8×8", "64×16×16"]),
        ({"features": FEATURES * 2}, ["schema"]),
        ({"codec": CodecSpec("int8").proto()}, ["int8"]),
        ({"codec": CodecSpec("float32", "zstd").proto()}, ["zstd"]),
        ({"codec": tensor_pb2.Codec()}, ["codec", "dtype"]),
    ],
)
def test_sentence_names_both_sides(changes, parts):
    text = difference(opening(**changes), SERVED)
    assert text and all(part in text for part in parts), text


def test_tensor_specs():
    assert tensor_specs(FEATURES) == FEATURES
