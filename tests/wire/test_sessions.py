"""A session's description: there and back, and the sentence that says what differs."""

from dataclasses import replace

import pytest

from splitsight.features import FeatureSpec
from splitsight.wire.sessions import SessionDescription, difference
from splitsight.wire.tensors import CodecSpec
from splitsight.wire.v1 import session_pb2, tensor_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

FEATURES = (FeatureSpec("z0", (128, 8, 8)),)
ABOUT = SessionDescription(
    "resnet18", "L8", FEATURES, head_digest="a" * 64, tail_digest="c" * 64, task="classify", input_size=64
)
SERVED = pb.DescribeResponse(session=ABOUT.proto(), dtypes=[1, 2], compressions=[0])


def opening(**changes):
    codec = changes.pop("codec", CodecSpec().proto())
    return pb.SessionOpen(session=replace(ABOUT, **changes).proto(), codec=codec)


def test_there_and_back():
    both = replace(ABOUT, features=(*FEATURES, FeatureSpec("z1", (49, 96), "vector")), defense="gaussian:sigma=0.5")
    assert SessionDescription.read(both.proto()) == both == SessionDescription.from_dict(both.to_dict())
    assert SessionDescription.read(session_pb2.SessionDescription.FromString(both.proto().SerializeToString())) == both


@pytest.mark.parametrize(
    "broken",
    [{"features": 3}, {"target": 1}, {"input_size": "64"}, {"features": [{"name": "z", "shape": [1]}]}],
    ids=str,
)
def test_plain_data_that_cannot_be(broken):
    with pytest.raises(ValueError, match="description"):
        SessionDescription.from_dict(ABOUT.to_dict() | broken)


def test_a_layout_that_cannot_be():
    message = ABOUT.proto()
    message.features[0].layout = "tokens"
    with pytest.raises(ValueError, match="the layout tokens has 2 dimensions, not 128×8×8"):
        SessionDescription.read(message)
    assert "schema" in difference(pb.SessionOpen(session=message, codec=CodecSpec().proto()), SERVED)


def test_what_fits_has_no_difference():
    assert difference(opening(), SERVED) is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"target": "vit"}, ["resnet18", "vit"]),
        ({"split": "L4"}, ["L8", "L4"]),
        ({"head_digest": "b" * 64}, ["weights of F1", "aaaa", "bbbb"]),
        ({"head_digest": ""}, ["weights of F1", "none"]),
        ({"tail_digest": "b" * 64}, ["weights of F2", "cccc", "bbbb"]),
        ({"defense": "gaussian:sigma=1"}, ["defence", "identity", "gaussian:sigma=1"]),
        ({"defense_digest": "b" * 64}, ["weights of the defence", "none", "bbbb"]),
        ({"features": ()}, ["features", "128×8×8", "none"]),
        ({"features": (FeatureSpec("z0", (64, 16, 16)),)}, ["features", "128×8×8", "64×16×16"]),
        ({"features": (FeatureSpec("z0", (128, 8, 8), "vector"),)}, ["features", "map", "vector"]),
        ({"features": FEATURES * 2}, ["features"]),
        ({"task": "detect"}, ["task", "classify", "detect"]),
        ({"input_size": 224}, ["image size 64", "224"]),
        ({"codec": CodecSpec("int8").proto()}, ["int8"]),
        ({"codec": CodecSpec("float32", "zstd").proto()}, ["zstd"]),
        ({"codec": tensor_pb2.Codec()}, ["codec", "dtype"]),
    ],
)
def test_sentence_names_both_sides(changes, parts):
    text = difference(opening(**changes), SERVED)
    assert text and all(part in text for part in parts), text


def test_a_server_that_asks_for_no_defence_takes_any_with_the_same_shapes_and_tail():
    free = pb.DescribeResponse(session=replace(ABOUT, defense="").proto(), dtypes=[1], compressions=[0])
    assert difference(opening(defense="gaussian:sigma=1", defense_digest="d" * 64), free) is None
    assert "weights of F2" in difference(opening(defense="shredder", tail_digest="e" * 64), free)


@pytest.mark.parametrize("asked", ["identity", ""], ids=["one defence", "any defence"])
def test_a_session_that_says_nothing_of_its_defence_or_too_much_is_refused(asked):
    """As an edge of another version would, which knows no defences, or ones that this server has never heard of."""
    served = pb.DescribeResponse(session=replace(ABOUT, defense=asked).proto(), dtypes=[1, 2], compressions=[0])
    assert difference(opening(), served) is None
    silent = difference(opening(defense=""), served)
    assert silent and ("identity" in silent and ("none" in silent or "does not say" in silent))
    newer = opening()
    newer.session.MergeFromString(b"\xa2\x06\x03abc")  # field 100, of a later version
    assert "says more of itself than this server understands" in difference(newer, served)
