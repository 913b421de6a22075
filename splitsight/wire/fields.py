"""Messages as they come from a stranger: bytes that may be anything.

gRPC's own deserialization answers what it cannot read with ``INTERNAL`` and no reason, so servers here take bytes and
read them by :func:`parsed`. :func:`fields` is the top level of a message without objects for what it holds: a message
of two bytes a field can make a parser allocate thirty times its size. The encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from splitsight.wire.tensors import WireError

__all__ = ["fields", "parsed"]

M = TypeVar("M", bound=Message)
_FIXED = {1: 8, 5: 4}


def parsed(kind: type[M], raw: bytes, limit: int = 1 << 16) -> M:
    """A message out of the bytes that came.

    Args:
        kind: of message.
        raw: what came.
        limit: bytes that it may take.

    Raises:
        WireError: ``RESOURCE_EXHAUSTED`` for a larger one, ``INVALID_ARGUMENT`` for what is none.
    """
    if len(raw) > limit:
        text = f"a message of {len(raw)} bytes came where at most {limit} may"
        raise WireError(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        text = f"a message is not a {kind.DESCRIPTOR.full_name}"
        raise WireError(grpc.StatusCode.INVALID_ARGUMENT, text) from error


def fields(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Number and payload of each field, in order; the payload is ``None`` where the field is not length-delimited.

    Args:
        data: a serialized message. Groups, which proto3 does not make but parsers take, are passed over.

    Raises:
        ValueError: it is none, as far as it was read.
    """
    at = depth = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            kind, payload = key & 7, None
            if kind == 2:
                size, at = _varint(data, at)
                payload = data[at : at + size] if not depth else None
                at += size
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind in (3, 4):
                depth += 1 if kind == 3 else -1
                if depth < 0:
                    raise ValueError("a group ends that has not begun")
                continue
            else:
                at += _FIXED[kind]
            if at > len(data):
                raise ValueError("the message is cut off")
            if not depth:
                yield key >> 3, payload
    except (IndexError, KeyError) as error:
        raise ValueError("not a protobuf message") from error
    if depth:
        raise ValueError("a group does not end")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number takes more than ten bytes")
