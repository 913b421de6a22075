"""Detection: boxes with a class and a confidence.

A network's output is either what torchvision's detectors give, for each image ``{"boxes": (N, 4), "scores": (N,),
"labels": (N,)}``, or whatever a ``decode`` function turns into that. Corners are (left, top, right, bottom) as parts of
the image's sides, in [0, 1]. Overlapping boxes of one class are thinned out by torchvision's non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from splitsight.tasks import TASKS, Ranked, Reading, Task, labels_of
from splitsight.wire.v1 import session_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Box", "Boxes", "Detect", "Found"]

Found = dict[str, Tensor]
"""One image's ``boxes``, ``scores`` and ``labels``."""


@dataclass(frozen=True)
class Box:
    """One object: corners as parts of the image's sides, and what it is."""

    left: float
    top: float
    right: float
    bottom: float
    label: Ranked


@dataclass(frozen=True)
class Boxes(Reading):
    """Attributes: ``boxes``, most confident first."""

    boxes: tuple[Box, ...]

    def headline(self) -> str:
        """How many, and the most confident ones."""
        named = ", ".join(f"{b.label.name} {b.label.probability:.0%}" for b in self.boxes[:3])
        return f"{len(self.boxes)} object{'s' * (len(self.boxes) != 1)}" + (f": {named}" if named else "")

    def best(self) -> Ranked | None:
        """The most confident one's class."""
        return self.boxes[0].label if self.boxes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "boxes": [
                {"box": [round(v, 5) for v in (b.left, b.top, b.right, b.bottom)], **b.label.to_dict()}
                for b in self.boxes
            ]
        }

    def put(self, answer: pb.Answer) -> None:
        """Into a message."""
        answer.boxes.SetInParent()
        for b in self.boxes:
            corners = {"left": b.left, "top": b.top, "right": b.right, "bottom": b.bottom}
            answer.boxes.boxes.append(session_pb2.Box(**corners, label=session_pb2.Label(**b.label._asdict())))

    @classmethod
    def read(cls, message: session_pb2.Boxes) -> Boxes:
        """The inverse of :meth:`put`."""
        return cls(tuple(Box(b.left, b.top, b.right, b.bottom, labels_of([b.label])[0]) for b in message.boxes))


@TASKS.register("detect")
class Detect(Task):
    """Objects and where they are.

    Args:
        labels: names of the classes.
        decode: a batch's output → one :data:`Found` an image; ``None`` where the output is that already.
        least: confidence below which a box is left out.
        overlap: intersection over union from which two boxes of one class count as the same object.
        most: boxes an image, at most.
    """

    name = "detect"

    def __init__(
        self,
        labels: Sequence[str],
        decode: Callable[[Any], list[Found]] | None = None,
        *,
        least: float = 0.25,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        self.labels = list(labels)
        self._decode, self._least, self._overlap, self._most = decode, least, overlap, most

    def _found(self, output: Any, least: float) -> list[Found]:
        found = []
        for one in output if self._decode is None else self._decode(output):
            boxes, scores, labels = one["boxes"].float(), one["scores"].float(), one["labels"].long()
            sure = scores >= least
            boxes, scores, labels = boxes[sure].clamp(0, 1), scores[sure], labels[sure]
            kept = batched_nms(boxes, scores, labels, self._overlap)[: self._most]
            found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return found

    @torch.no_grad()
    def read(self, output: Any) -> list[Reading]:
        """A batch's output → the objects of each image."""
        readings: list[Reading] = []
        for one in self._found(output, self._least):
            boxes: list[tuple[float, float, float, float]] = one["boxes"].tolist()
            scores: list[float] = one["scores"].tolist()
            labels: list[int] = one["labels"].tolist()
            rows = zip(boxes, scores, labels, strict=True)
            readings.append(
                Boxes(
                    tuple(
                        Box(left, top, right, bottom, Ranked(label, self.labels[label], score))
                        for (left, top, right, bottom), score, label in rows
                    )
                )
            )
        return readings

    @torch.no_grad()
    def utility(self, outputs: Any, truth: Sequence[Found]) -> dict[str, Tensor]:
        """Mean average precision over the batch, by torchmetrics: ``map`` (COCO's, IoU 0.5 to 0.95) and ``map_50``.

        Args:
            outputs: of a batch.
            truth: each image's ``boxes`` and ``labels``.
        """
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_type="bbox")
        # the curve over all confidences is what counts
        metric.update(self._found(outputs, 0.0), [{k: v for k, v in one.items() if k != "scores"} for one in truth])
        found = metric.compute()
        return {"map": found["map"], "map_50": found["map_50"]}
