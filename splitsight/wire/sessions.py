"""What both ends of a session must agree on, and the sentence that says where they do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from splitsight.wire.tensors import COMPRESSIONS, DTYPES, CodecSpec, HasShape, WireError
from splitsight.wire.v1 import split_inference_pb2, tensor_pb2

__all__ = ["NamedShape", "difference", "tensor_specs"]


class NamedShape(HasShape, Protocol):
    """A shape with a name."""

    @property
    def name(self) -> str:
        """Stable within a split point."""


def tensor_specs(features: Iterable[NamedShape]) -> list[tensor_pb2.TensorSpec]:
    """The messages for what crosses a split point, in order."""
    return [tensor_pb2.TensorSpec(name=f.name, shape=f.shape) for f in features]


def difference(wanted: split_inference_pb2.SessionOpen, served: split_inference_pb2.DescribeResponse) -> str | None:
    """Why a session does not fit what is served, or ``None`` where it does.

    Target and split come first: where they differ, digest and schema differ as a matter of course.

    Args:
        wanted: what the edge opens with.
        served: what the server describes.

    Returns:
        One sentence with both sides' values.
    """
    if wanted.target != served.target:
        return f"this server runs the target '{served.target}', not '{wanted.target}'"
    if wanted.split != served.split:
        return f"this server is split at {served.split}, not at '{wanted.split}'"
    if wanted.weights_digest != served.weights_digest:
        return (
            f"the weights differ: this server holds {served.target} with digest {served.weights_digest[:12]}…, "
            f"the edge {wanted.weights_digest[:12] or 'none'}…; load the same file on both sides"
        )
    ours, theirs = _schema(served.features), _schema(wanted.features)
    if ours != theirs:
        return f"the feature schema differs: this server takes {ours}, the edge sends {theirs or 'nothing'}"
    try:
        codec = CodecSpec.read(wanted.codec)
    except WireError as error:
        return f"the codec cannot be used: {error.message}"
    if DTYPES[codec.dtype] not in served.dtypes:
        return f"this server does not take {codec.dtype} tensors"
    if COMPRESSIONS[codec.compression] not in served.compressions:
        return f"this server does not take tensors packed by {codec.compression}"
    return None


def _schema(features: Iterable[NamedShape]) -> str:
    return ", ".join(f"{f.name} {'×'.join(map(str, f.shape))}" for f in features)
