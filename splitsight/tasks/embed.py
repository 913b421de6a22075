"""Embedding: a vector, and the prompts or classes that lie nearest to it (zero-shot labels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from splitsight.tasks import TASKS, Ranked, Reading, Task, labels_of, ranked
from splitsight.wire.v1 import session_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Embed", "Embedding"]


@dataclass(frozen=True)
class Embedding(Reading):
    """Attributes: ``values`` of unit length; ``nearest`` labels, best first; none where the target has no texts."""

    values: tuple[float, ...]
    nearest: tuple[Ranked, ...] = ()

    def headline(self) -> str:
        """The nearest label, or how many numbers there are."""
        if self.nearest:
            return f"{self.nearest[0].name} {self.nearest[0].probability:.0%}"
        return f"{len(self.values)} numbers"

    def best(self) -> Ranked | None:
        """The nearest label."""
        return self.nearest[0] if self.nearest else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"embedding": [round(v, 6) for v in self.values], "top": [label.to_dict() for label in self.nearest]}

    def put(self, answer: pb.Answer) -> None:
        """Into a message."""
        answer.embedding.values.extend(self.values)
        answer.embedding.nearest.extend(session_pb2.Label(**label._asdict()) for label in self.nearest)

    @classmethod
    def read(cls, message: session_pb2.Embedding) -> Embedding:
        """The inverse of :meth:`put`."""
        return cls(tuple(message.values), labels_of(message.nearest))


@TASKS.register("embed")
class Embed(Task):
    """A vector that stands for the image.

    Args:
        labels: names of what ``texts`` stand for.
        texts: their embeddings ``(labels, D)`` in the same space; ``None`` for no zero-shot labels.
        scale: factor on the cosine similarity before the softmax (CLIP's learnt temperature ends at 100).
    """

    name = "embed"

    def __init__(self, labels: Sequence[str] = (), texts: Tensor | None = None, *, scale: float = 100.0) -> None:
        self.labels, self._scale = list(labels), scale
        self._texts = None if texts is None else normalize(texts.float(), dim=1)

    def read(self, output: Tensor) -> list[Reading]:
        """Embeddings ``(B, D)`` → unit vectors with their nearest labels."""
        vectors = normalize(output.detach().float(), dim=1)
        nearest: list[list[Ranked]] = [[] for _ in vectors]
        if self._texts is not None:
            similarity = vectors @ self._texts.to(vectors.device).T
            nearest = ranked((self._scale * similarity).softmax(1), self.labels)
        return [Embedding(tuple(v), tuple(n)) for v, n in zip(vectors.tolist(), nearest, strict=True)]

    def utility(self, outputs: Tensor, truth: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """``cosine`` to the embeddings that are right, or ``top1`` of the zero-shot labels, each ``(B,)``.

        Args:
            outputs: embeddings ``(B, D)``.
            truth: embeddings ``(B, D)``, or B labels' indices.

        Raises:
            ValueError: labels were given and the target has no texts.
        """
        right = torch.as_tensor(truth).to(outputs.device)
        if right.ndim == 2:
            return {"cosine": cosine_similarity(outputs.float(), right.float(), dim=1)}
        if self._texts is None:
            raise ValueError("a target without texts has no zero-shot labels to score")
        found = (normalize(outputs.float(), dim=1) @ self._texts.to(outputs.device).T).argmax(1)
        return {"top1": (found == right).float()}
