"""Tensors as bytes: dtype, shape and little-endian numbers in C order, optionally compressed by zstd.

With ``x`` the float32 values of one tensor (no batch dimension):

* float32: exact;
* float16: ``x`` rounded to nearest, so ``|x̂ − x| ≤ 2⁻¹¹ |x| + 2⁻²⁵``; values beyond ±65504 are refused;
* int8: one scale for each channel ``c`` of a map or of tokens, one in all for a vector (:mod:`splitsight.int8`,
  :attr:`~splitsight.features.FeatureSpec.scale_axis`), ``|x̂_c − x_c| ≤ max |x_c| / 254``.

Whatever a peer sends is checked before memory is spent on it: sizes follow from the agreed shape, never from
the message, and a compressed tensor may not grow beyond them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import grpc
import numpy as np
import zstandard

from splitsight.features import FeatureSpec
from splitsight.int8 import dequantize, quantize
from splitsight.names import printable
from splitsight.wire.v1 import tensor_pb2

__all__ = ["COMPRESSIONS", "DTYPES", "CodecSpec", "HasShape", "WireError", "decode", "encode"]

DTYPES: dict[str, tensor_pb2.DType] = {
    "float32": tensor_pb2.DTYPE_FLOAT32,
    "float16": tensor_pb2.DTYPE_FLOAT16,
    "int8": tensor_pb2.DTYPE_INT8,
}
COMPRESSIONS: dict[str, tensor_pb2.Compression] = {
    "none": tensor_pb2.COMPRESSION_NONE,
    "zstd": tensor_pb2.COMPRESSION_ZSTD,
}
_STORAGE = {
    tensor_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DTYPE_INT8: np.dtype("i1"),
}

_LONGEST = 400  # characters of a status; percent-encoded they must fit in the 8 kB of HTTP/2 headers that gRPC takes
_LEVEL = 1  # features are near noise to a compressor: higher levels cost milliseconds and win a percent
_MIN_WINDOW = 1 << 23  # bytes; a decoder that honours any window can be made to reserve 128 MiB by ten bytes


class WireError(Exception):
    """Something that may not cross the wire.

    Args:
        code: gRPC status that a server answers with.
        message: one sentence that says what is wrong; what a peer wrote into it is kept on one line, and cut where it
            would not fit a gRPC status.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        message = printable(message if len(message) <= _LONGEST else message[:_LONGEST] + "…")
        super().__init__(message)
        self.code = code
        self.message = message


class HasShape(Protocol):
    """Anything with the shape of one tensor without batch dimension: a proto ``TensorSpec``, a feature spec.

    A ``layout`` beside it says what the dimensions mean; without one, how many there are does.
    """

    @property
    def shape(self) -> Sequence[int]:
        """Positive sizes."""
        ...


@dataclass(frozen=True)
class CodecSpec:
    """How an edge encodes what it sends.

    Args:
        dtype: ``float32``, ``float16`` or ``int8``.
        compression: ``none`` or ``zstd``.

    Raises:
        WireError: unknown dtype or compression.
    """

    dtype: str = "float32"
    compression: str = "none"

    def __post_init__(self) -> None:
        for kind, value, known in (("dtype", self.dtype, DTYPES), ("compression", self.compression, COMPRESSIONS)):
            if value not in known:
                raise _bad(f"unknown {kind} '{value}': choose one of {', '.join(known)}")

    def proto(self) -> tensor_pb2.Codec:
        """The message that announces it."""
        return tensor_pb2.Codec(dtype=DTYPES[self.dtype], compression=COMPRESSIONS[self.compression])

    @classmethod
    def read(cls, message: tensor_pb2.Codec) -> CodecSpec:
        """The inverse of :meth:`proto`.

        Raises:
            WireError: a number that stands for no dtype or compression.
        """
        return cls(_name(DTYPES, message.dtype, "dtype"), _name(COMPRESSIONS, message.compression, "compression"))


def _scale_axis(spec: HasShape) -> int | None:
    return FeatureSpec("", tuple(spec.shape), getattr(spec, "layout", "")).scale_axis


def encode(array: np.ndarray, codec: CodecSpec, spec: HasShape | None = None) -> tensor_pb2.Tensor:
    """Turn the numbers of one tensor into a message.

    Args:
        array: float values, at least one dimension, no batch dimension.
        codec: how to store them.
        spec: the shape and layout that were agreed on; by default those that ``array`` has.

    Raises:
        WireError: empty, without dimensions, not real numbers, NaN or infinite, or too large for float16.
    """
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise _bad(f"a tensor of {array.dtype} cannot be sent: give real numbers")
    if array.ndim == 0 or array.size == 0:
        raise _bad(f"a tensor of shape {_show(array.shape)} holds nothing to send: every dimension must be positive")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise _bad("the tensor holds NaN or infinite values: only finite features can be sent")
    scales: list[float] = []
    if codec.dtype == "float32":
        stored = values
    elif codec.dtype == "float16":
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            raise _bad(f"a value of {np.abs(values).max():g} does not fit float16 (at most 65504): use float32 or int8")
    else:
        stored, found = quantize(values, _scale_axis(values if spec is None else spec))
        scales = found.tolist()
    data = stored.astype(_STORAGE[DTYPES[codec.dtype]], copy=False).tobytes()
    if codec.compression == "zstd":
        data = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return tensor_pb2.Tensor(
        dtype=DTYPES[codec.dtype],
        shape=array.shape,
        data=data,
        compression=COMPRESSIONS[codec.compression],
        scales=scales,
    )


def decode(message: tensor_pb2.Tensor, spec: HasShape, *, max_bytes: int = 1 << 26) -> np.ndarray:
    """Turn a message back into numbers.

    Args:
        message: as :func:`encode` makes it; nothing about it is trusted.
        spec: the shape that was agreed on for the session.
        max_bytes: most that the numbers may take in memory as float32.

    Returns:
        Finite float32 values of ``spec.shape``; read-only where they share memory with the message.

    Raises:
        WireError: ``RESOURCE_EXHAUSTED`` for what is larger than ``max_bytes``, ``INVALID_ARGUMENT`` for
            anything else that is not a tensor of this shape.
    """
    shape = tuple(spec.shape)
    dtype = _name(DTYPES, message.dtype, "dtype")
    compression = _name(COMPRESSIONS, message.compression, "compression")
    if tuple(message.shape) != shape:
        raise _bad(f"a tensor of shape {_show(message.shape)} came where {_show(shape)} was agreed on")
    numbers = prod(shape)
    if not shape or numbers <= 0:
        raise _bad(f"a tensor of shape {_show(shape)} holds nothing: every dimension must be positive")
    if 4 * numbers > max_bytes:
        raise WireError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"a tensor of shape {_show(shape)} takes {4 * numbers} bytes where at most {max_bytes} are allowed",
        )
    storage = _STORAGE[message.dtype]
    size = numbers * storage.itemsize
    data = message.data
    if compression == "zstd":
        data = _decompress(data, size)
    if len(data) != size:
        raise _bad(f"a {dtype} tensor of shape {_show(shape)} takes {size} bytes but {len(data)} came")
    stored = np.frombuffer(data, dtype=storage).reshape(shape)
    if dtype != "int8":
        if message.scales:
            raise _bad(f"a {dtype} tensor came with scales, which only int8 has")
        values = stored.astype(np.float32, copy=False)
    else:
        try:
            values = dequantize(stored, np.asarray(message.scales, dtype=np.float32), _scale_axis(spec))
        except ValueError as error:
            raise _bad(str(error)) from error
    if not np.isfinite(values).all():
        raise _bad("the tensor holds NaN or infinite values: only finite features are accepted")
    return values


def _decompress(data: bytes, size: int) -> bytes:
    try:
        stated = zstandard.frame_content_size(data)  # -1: the frame does not say
        if stated not in (-1, size):
            raise _bad(f"a compressed tensor unpacks to {stated} bytes where {size} were agreed on")
        window = max(_MIN_WINDOW, 1 << (size - 1).bit_length())
        unpacked = zstandard.ZstdDecompressor(max_window_size=window).decompress(
            data, max_output_size=size, allow_extra_data=False
        )
    except (zstandard.ZstdError, MemoryError) as error:
        raise _bad(f"a compressed tensor is not {size} bytes packed by zstd ({str(error).rstrip('.')})") from error
    return unpacked


def _name(table: Mapping[str, int], number: int, kind: str) -> str:
    for name, value in table.items():
        if value == number:
            return name
    raise _bad(f"unknown {kind} number {number}: {', '.join(f'{v} is {k}' for k, v in table.items())}")


def _bad(message: str) -> WireError:
    return WireError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _show(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"
