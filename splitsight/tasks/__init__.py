"""Tasks: what a network's output means, how it is sent, and how good it is.

A task is one file in this package (or in another, by the entry-point group ``splitsight.tasks``): a class that derives
from :class:`Task` and registers itself with ``@TASKS.register("name")``, and the :class:`Reading` that it makes of an
output. A reading travels as one branch of the answer's ``oneof``; a task of another package that fits none of
``classes``, ``boxes`` and ``embedding`` sends plain data (:class:`Free`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from splitsight.registry import Registry
from splitsight.wire.v1 import session_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TASKS", "Free", "Ranked", "Reading", "Task", "labels_of", "ranked", "read_answer"]


class Ranked(NamedTuple):
    """One class of a reading: index, label, probability (or confidence) in [0, 1]."""

    index: int
    name: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"index": self.index, "name": self.name, "probability": round(self.probability, 6)}


class Reading(ABC):
    """What an output says about one image."""

    @abstractmethod
    def headline(self) -> str:
        """It in a few words."""

    def best(self) -> Ranked | None:
        """The one class that stands for it, if one does."""
        return None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""

    @abstractmethod
    def put(self, answer: pb.Answer) -> None:
        """Into a message."""


@dataclass(frozen=True)
class Free(Reading):
    """Plain data of any form.

    Attributes:
        data: a JSON object; its ``headline``, where it has one, is shown to people.
    """

    data: dict[str, Any]

    def headline(self) -> str:
        """Its own, or all of it."""
        return str(self.data.get("headline", json.dumps(self.data, ensure_ascii=False)[:80]))

    def to_dict(self) -> dict[str, Any]:
        """The data."""
        return self.data

    def put(self, answer: pb.Answer) -> None:
        """As JSON."""
        answer.other.json = json.dumps(self.data, allow_nan=False)

    @classmethod
    def read(cls, message: session_pb2.Other) -> Free:
        """The inverse of :meth:`put`.

        Raises:
            ValueError: not a JSON object.
        """
        data = json.loads(message.json)
        if not isinstance(data, dict):
            raise ValueError("an answer is not a JSON object")
        return cls(data)


class Task(ABC):
    """What a target's output means.

    Attributes:
        name: under which it is registered, and which sessions carry.
        labels: names of the classes; empty where the task has none.
    """

    name: ClassVar[str]
    labels: Sequence[str] = ()

    @abstractmethod
    def read(self, output: Any) -> list[Reading]:
        """A batch's output → one reading an image."""

    @abstractmethod
    def utility(self, outputs: Any, truth: Any) -> dict[str, Tensor]:
        """How good outputs are.

        Args:
            outputs: of a batch, as the model gives them.
            truth: what is right, in the form that the task documents.

        Returns:
            By name: one number an image ``(B,)``, or one for all of them ``()`` where no image has one.
        """


TASKS: Registry[type[Task]] = Registry("task", __name__)


def ranked(probabilities: Tensor, labels: Sequence[str], most: int = 5) -> list[list[Ranked]]:
    """``(B, classes)`` → the most probable ones of each row, best first."""
    top = probabilities.detach().float().topk(min(most, probabilities.shape[1]), dim=1)
    values: list[list[float]] = top.values.tolist()
    indices: list[list[int]] = top.indices.tolist()
    return [
        [Ranked(i, labels[i], p) for p, i in zip(best, where, strict=True)]
        for best, where in zip(values, indices, strict=True)
    ]


def labels_of(messages: Sequence[session_pb2.Label]) -> tuple[Ranked, ...]:
    """Labels out of a message."""
    return tuple(Ranked(m.index, m.name, m.probability) for m in messages)


def read_answer(answer: pb.Answer) -> Reading | None:
    """The reading that an answer carries; ``None`` where it carries none.

    Raises:
        ValueError: it is damaged.
    """
    from splitsight.tasks.classify import Classes
    from splitsight.tasks.detect import Boxes
    from splitsight.tasks.embed import Embedding

    kind = answer.WhichOneof("result")
    if kind is None:
        return None
    readers = {"classes": Classes, "boxes": Boxes, "embedding": Embedding, "other": Free}
    return readers[kind].read(getattr(answer, kind))
