"""What both ends of a session must agree on, and the sentence that says where they do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from google.protobuf.unknown_fields import UnknownFieldSet

from splitsight.features import FeatureSpec
from splitsight.names import printable
from splitsight.wire.tensors import COMPRESSIONS, DTYPES, CodecSpec, WireError
from splitsight.wire.v1 import session_pb2, split_inference_pb2, tensor_pb2

__all__ = ["UNDEFENDED", "SessionDescription", "difference", "show"]

T = TypeVar("T")
_SHOWN = 80

UNDEFENDED = "identity"
"""How a session says that nothing is done to the features."""


@dataclass(frozen=True)
class SessionDescription:
    """What an edge does to an image, and what is made of it.

    Attributes:
        target: name of the split network.
        split: name of the cut, as the target knows it.
        features: what crosses, in order, behind the defence.
        defense: what is done to the features, with its parameters, in the form that ``--defense`` takes; empty only in
            what a server asks for, where any will do.
        head_digest: SHA-256 (hex) over the weights that F1 reads, its preprocessing included.
        tail_digest: likewise of F2.
        defense_digest: likewise of the defence; empty where it has no weights.
        task: name of the task.
        input_size: side of the square image that F1 takes, in pixels.
    """

    target: str
    split: str
    features: tuple[FeatureSpec, ...]
    defense: str = UNDEFENDED
    head_digest: str = ""
    tail_digest: str = ""
    defense_digest: str = ""
    task: str = "classify"
    input_size: int = 0

    def proto(self) -> session_pb2.SessionDescription:
        """The message."""
        specs = [tensor_pb2.TensorSpec(name=f.name, shape=f.shape, layout=f.layout) for f in self.features]
        return session_pb2.SessionDescription(
            target=self.target,
            split=self.split,
            features=specs,
            defense=self.defense,
            head_digest=self.head_digest,
            tail_digest=self.tail_digest,
            defense_digest=self.defense_digest,
            task=self.task,
            input_size=self.input_size,
        )

    @classmethod
    def read(cls, message: session_pb2.SessionDescription) -> SessionDescription:
        """The inverse of :meth:`proto`.

        Raises:
            ValueError: a layout that its shape cannot have; one sentence.
        """
        features = tuple(FeatureSpec(f.name, tuple(f.shape), f.layout) for f in message.features)
        return cls(
            target=message.target,
            split=message.split,
            features=features,
            defense=message.defense,
            head_digest=message.head_digest,
            tail_digest=message.tail_digest,
            defense_digest=message.defense_digest,
            task=message.task,
            input_size=message.input_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as rows and summaries carry it."""
        features = [{"name": f.name, "shape": list(f.shape), "layout": f.layout} for f in self.features]
        plain = asdict(self)
        del plain["features"]
        return plain | {"features": features}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SessionDescription:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a field is missing or of the wrong kind.
        """
        try:
            features = tuple(
                FeatureSpec(str(f["name"]), tuple(int(n) for n in f["shape"]), str(f["layout"]))
                for f in data["features"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError("'features' of the session's description is missing or incomplete") from error

        def field(name: str, kind: type[T]) -> T:
            value = data.get(name)
            if not isinstance(value, kind):
                raise ValueError(f"'{name}' of the session's description is missing or of the wrong kind")
            return value

        return cls(
            target=field("target", str),
            split=field("split", str),
            features=features,
            defense=field("defense", str),
            head_digest=field("head_digest", str),
            tail_digest=field("tail_digest", str),
            defense_digest=field("defense_digest", str),
            task=field("task", str),
            input_size=field("input_size", int),
        )

    def difference(self, other: SessionDescription) -> str | None:
        """What first differs, in words (ours, then theirs); ``None`` where nothing does.

        Target, cut and defence come first: where they differ, digests and shapes differ as a matter of course.
        """
        for name, word in _WORDS.items():
            ours, theirs = getattr(self, name), getattr(other, name)
            if name == "features" and [(f.shape, f.layout) for f in ours] != [(f.shape, f.layout) for f in theirs]:
                return f"{word} {_line(show(ours))}, not {_line(show(theirs)) or 'none'}"
            if name != "features" and ours != theirs:
                return f"{word} {_short(name, ours)}, not {_short(name, theirs)}"
        return None


_WORDS = {
    "target": "target",
    "split": "split point",
    "defense": "defence",
    "head_digest": "weights of F1 with digest",
    "tail_digest": "weights of F2 with digest",
    "defense_digest": "weights of the defence with digest",
    "features": "features",
    "task": "task",
    "input_size": "image size",
}
"""What a description is compared by, in this order."""


def _short(name: str, value: object) -> str:
    text = _line(str(value)[:12]) + "…" if name.endswith("digest") and value else _line(str(value))
    return text or "none"


def _line(text: str) -> str:
    """What a peer wrote, on one line of at most 80 characters."""
    return printable(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def show(features: Iterable[FeatureSpec]) -> str:
    """What crosses, for people."""
    return ", ".join(f"{f.name} {f.show} ({f.layout})" for f in features)


def difference(wanted: split_inference_pb2.SessionOpen, served: split_inference_pb2.DescribeResponse) -> str | None:
    """Why a session does not fit what is served, or ``None`` where it does.

    Args:
        wanted: what the edge opens with.
        served: what the server describes.

    Returns:
        One sentence with both sides' values.
    """
    # a newer edge may do, and say, what this server has never heard of: taking it would be to overlook it
    if len(UnknownFieldSet(wanted.session)):
        return "the session says more of itself than this server understands: run the same version on both sides"
    try:
        ours, theirs = SessionDescription.read(served.session), SessionDescription.read(wanted.session)
        codec = CodecSpec.read(wanted.codec)
    except WireError as error:
        return f"the codec cannot be used: {error.message}"
    except ValueError as error:
        return f"the features' schema cannot be used: {error}"
    what = ours.difference(_any_defense(theirs) if not ours.defense else theirs)
    if what is None and not theirs.defense:
        return (
            f"the session does not say what is done to its features, '{UNDEFENDED}' where nothing is: run the same "
            "version on both sides"
        )
    if what is not None:
        return f"the two sides differ: this server has {what.replace(', not ', ', the edge ')}"
    if DTYPES[codec.dtype] not in served.dtypes:
        return f"this server does not take {codec.dtype} tensors"
    if COMPRESSIONS[codec.compression] not in served.compressions:
        return f"this server does not take tensors packed by {codec.compression}"
    return None


def _any_defense(session: SessionDescription) -> SessionDescription:
    """The same without a word about its defence, for a server that takes any."""
    return replace(session, defense="", defense_digest="")
