"""Tensor codec: exact or bounded on everything finite, and a sentence for everything else."""

import math
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from splitsight.features import FeatureSpec
from splitsight.wire.tensors import CodecSpec, WireError, decode, encode
from splitsight.wire.v1 import tensor_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
compressions = st.sampled_from(["none", "zstd"])
shapes = array_shapes(min_dims=1, max_dims=4, max_side=6)


def finite(limit=None):
    bound = None if limit is None else np.float32(limit).item()
    element = st.floats(
        width=32, allow_nan=False, allow_infinity=False, min_value=None if bound is None else -bound, max_value=bound
    )
    return shapes.flatmap(lambda s: arrays(np.float32, s, elements=element))


def through(array, codec):
    message = tensor_pb2.Tensor.FromString(encode(array, codec).SerializeToString())
    return message, decode(message, SimpleNamespace(shape=array.shape))


def refused(message, shape, code=INVALID, **limits):
    with pytest.raises(WireError) as caught:
        decode(message, SimpleNamespace(shape=shape), **limits)
    assert caught.value.code is code
    return caught.value.message


@given(finite(), compressions)
def test_float32_is_exact(array, compression):
    _, back = through(array, CodecSpec("float32", compression))
    assert back.dtype == np.float32 and back.tobytes() == array.tobytes()


@given(finite(limit=65504), compressions)
def test_float16_is_bounded(array, compression):
    _, back = through(array, CodecSpec("float16", compression))
    x = array.astype(np.float64)
    assert (np.abs(back - x) <= 2.0**-11 * np.abs(x) + 2.0**-25).all()


@given(finite(), compressions)
def test_int8_is_bounded_by_half_a_scale(array, compression):
    message, back = through(array, CodecSpec("int8", compression))
    axis = FeatureSpec("z", array.shape).scale_axis
    rows = [a[None] if axis is None else np.moveaxis(a, axis, 0) for a in (array, back)]
    x, back = (a.reshape(len(a), -1).astype(np.float64) for a in rows)
    scale = np.asarray(message.scales, dtype=np.float64)[:, None]
    assert len(message.scales) == (1 if axis is None else array.shape[axis])
    # what scales take is less than what eight bits save
    assert array.size + 4 * len(message.scales) <= 4 * array.size or array.size == 1
    peak = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(scale - peak / 127) <= 1e-6 * scale + 2e-45).all()
    # half a scale, and what float32 itself rounds
    bound = scale * (0.5 + 127 * 2.0**-22) + 2.0**-149
    assert (np.abs(back - x) <= bound).all()


@given(st.floats(min_value=65520, max_value=1e38), st.sampled_from([-1, 1]))
def test_float16_overflow_is_refused(value, sign):
    with pytest.raises(WireError, match="does not fit float16"):
        encode(np.array([0, sign * value], dtype=np.float32), CodecSpec("float16"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused_on_both_sides(dtype, value):
    with pytest.raises(WireError, match="NaN or infinite"):
        encode(np.array([1, value], dtype=np.float32), CodecSpec(dtype))
    message = encode(np.ones((2, 3), np.float32), CodecSpec(dtype))
    if dtype == "int8":
        message.scales[0] = value
        assert "scale" in refused(message, (2, 3))
    else:
        message.data = np.full((2, 3), value, dtype=f"<f{4 if dtype == 'float32' else 2}").tobytes()
        assert "NaN or infinite" in refused(message, (2, 3))


@pytest.mark.parametrize("array", [np.empty((0,)), np.empty((3, 0, 2)), np.float32(1).reshape(())])
def test_empty_is_refused_by_encode(array):
    with pytest.raises(WireError, match="nothing to send"):
        encode(array, CodecSpec())


def test_not_numbers_are_refused_by_encode():
    with pytest.raises(WireError, match="real numbers"):
        encode(np.array(["a"]), CodecSpec())
    with pytest.raises(WireError, match="real numbers"):
        encode(np.array([1j]), CodecSpec())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_empty_is_refused_by_decode(shape):
    assert "holds nothing" in refused(tensor_pb2.Tensor(dtype=1, shape=shape), shape)


@given(finite(), shapes)
def test_wrong_shape_is_refused(array, other):
    if array.shape != other:
        assert "agreed on" in refused(encode(array, CodecSpec()), other)


def test_float64_and_other_layouts_are_accepted():
    array = np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1)
    _, back = through(array, CodecSpec())
    np.testing.assert_array_equal(back, array)
    with pytest.raises(WireError, match="NaN or infinite"):
        encode(np.array([1e300]), CodecSpec())


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_oversized_is_refused_before_it_is_unpacked(compression):
    message = encode(np.zeros((1, 1000), np.float32), CodecSpec("int8", compression))
    text = refused(message, (1, 1000), grpc.StatusCode.RESOURCE_EXHAUSTED, max_bytes=3999)
    assert "4000 bytes where at most 3999" in text
    assert decode(message, SimpleNamespace(shape=(1, 1000)), max_bytes=4000).shape == (1, 1000)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_wrong_length_is_refused(dtype, change):
    message = encode(np.ones((2, 3), np.float32), CodecSpec(dtype))
    message.data = change(message.data)
    assert "bytes but" in refused(message, (2, 3))


def bomb(with_size):
    packer = zstandard.ZstdCompressor(write_content_size=with_size)
    if with_size:
        return packer.compress(bytes(1 << 28))
    stream = packer.compressobj()
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(256)) + stream.flush()


@pytest.mark.parametrize("with_size", [True, False])
def test_zstd_bomb_is_refused(with_size):
    message = encode(np.ones((2, 3), np.float32), CodecSpec("float32", "zstd"))
    message.data = bomb(with_size)
    assert len(message.data) < 1 << 16
    refused(message, (2, 3))


def test_zstd_without_content_size_is_accepted():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = encode(array, CodecSpec("float32", "zstd"))
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    message.data = stream.compress(array.tobytes()) + stream.flush()
    np.testing.assert_array_equal(decode(message, SimpleNamespace(shape=(2, 3))), array)


def test_zstd_huge_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    message = encode(np.ones((2, 3), np.float32), CodecSpec("float32", "zstd"))
    message.data = stream.compress(np.ones((2, 3), np.float32).tobytes()) + stream.flush()
    refused(message, (2, 3))


@settings(max_examples=200)
@given(st.data())
def test_damaged_zstd_never_gives_anything_but_a_tensor_or_a_sentence(data):
    array = np.linspace(-3, 3, 64, dtype=np.float32).reshape(4, 16)
    message = encode(array, CodecSpec("float32", "zstd"))
    raw = bytearray(message.data)
    kind = data.draw(st.sampled_from(["cut", "flip", "append", "noise"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif kind == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "append":
        raw += data.draw(st.binary(min_size=1, max_size=20))
    else:
        raw = bytearray(data.draw(st.binary(max_size=400)))
    message.data = bytes(raw)
    try:
        back = decode(message, SimpleNamespace(shape=(4, 16)))
    except WireError as error:
        assert error.code is INVALID and str(error)
        return
    assert kind in ("flip", "noise") and back.shape == (4, 16) and np.isfinite(back).all()


def test_unknown_dtype_and_compression_are_refused():
    message = encode(np.ones((2,), np.float32), CodecSpec())
    message.dtype = 0
    assert "unknown dtype number 0" in refused(message, (2,))
    message.dtype = 77
    refused(message, (2,))
    message.dtype, message.compression = 1, 9
    assert "unknown compression number 9" in refused(message, (2,))
    with pytest.raises(WireError, match="float64"):
        CodecSpec("float64")
    with pytest.raises(WireError, match="lz4"):
        CodecSpec("int8", "lz4")
    with pytest.raises(WireError, match="dtype"):
        CodecSpec.read(tensor_pb2.Codec())


def test_int8_details_are_checked():
    shape = (2, 2, 2)
    message = encode(np.ones(shape, np.float32), CodecSpec("int8"))
    message.data = b"\x80" * 8
    assert "-128" in refused(message, shape)
    message = encode(np.ones(shape, np.float32), CodecSpec("int8"))
    del message.scales[1]
    assert "one a channel" in refused(message, shape)
    message.scales[:] = [1, -1]
    assert "negative" in refused(message, shape)
    message.data, message.scales[:] = b"\x7f" * 8, [3e38, 1]
    assert "NaN or infinite" in refused(message, shape)
    message = encode(np.ones((2, 3), np.float32), CodecSpec())
    message.scales.append(1)
    assert "only int8" in refused(message, (2, 3))


@pytest.mark.parametrize("codec", [CodecSpec("int8", "zstd"), CodecSpec("float16"), CodecSpec()])
def test_codec_crosses_the_wire(codec):
    assert CodecSpec.read(codec.proto()) == codec
