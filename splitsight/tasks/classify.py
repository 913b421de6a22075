"""Classification: logits ``(B, classes)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splitsight.tasks import TASKS, Ranked, Reading, Task, labels_of, ranked
from splitsight.wire.v1 import session_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Classes", "Classify"]


@dataclass(frozen=True)
class Classes(Reading):
    """Attributes: ``top``, the most probable class first; five, or all where there are fewer."""

    top: tuple[Ranked, ...]

    def headline(self) -> str:
        """The first one and its probability."""
        return f"{self.top[0].name} {self.top[0].probability:.0%}" if self.top else "nothing"

    def best(self) -> Ranked | None:
        """The first one."""
        return self.top[0] if self.top else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"top": [label.to_dict() for label in self.top]}

    def put(self, answer: pb.Answer) -> None:
        """Into a message."""
        answer.classes.top.extend(session_pb2.Label(**label._asdict()) for label in self.top)

    @classmethod
    def read(cls, message: session_pb2.Classes) -> Classes:
        """The inverse of :meth:`put`."""
        return cls(labels_of(message.top))


@TASKS.register("classify")
class Classify(Task):
    """One class an image.

    Args:
        labels: in the order of the logits.
        synonyms: further names of each class, its label first; by default the label alone.
    """

    name = "classify"

    def __init__(self, labels: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None) -> None:
        self.labels = list(labels)
        self.synonyms = [list(names) for names in synonyms or [[label] for label in labels]]

    def read(self, output: Tensor) -> list[Reading]:
        """Logits ``(B, classes)`` → the most probable classes."""
        return [Classes(tuple(top)) for top in ranked(output.float().softmax(1), self.labels)]

    def utility(self, outputs: Tensor, truth: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """``top1`` and ``top5``, each ``(B,)`` of 0 and 1.

        Args:
            outputs: logits ``(B, classes)``.
            truth: B class indices.
        """
        right = torch.as_tensor(truth).to(outputs.device)[:, None]
        order = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
        return {"top1": (order[:, :1] == right).any(1).float(), "top5": (order == right).any(1).float()}
