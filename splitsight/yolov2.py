"""YOLOv2's output (Redmon and Farhadi, 2017, arXiv 1612.08242): decoded to boxes, and its loss.

A network ends in a map ``(B, A · (5 + C), G, G)``: for each of G × G cells and A anchors, t_x, t_y, t_w, t_h, t_o and C
class scores. With the cell's corner (c_x, c_y), in cells, and the anchor's sides (p_w, p_h), parts of the image's::

    b_x = (σ(t_x) + c_x) / G    b_y = (σ(t_y) + c_y) / G    b_w = p_w exp(t_w)    b_h = p_h exp(t_h)
    confidence of class c = σ(t_o) · softmax(class scores)_c

The loss is the reference implementation's (its ``region`` layer): a truth belongs to the cell of its middle and the
anchor whose shape is most like its own. That predictor pays ``(2 − w h) · ‖(σ(t_x), σ(t_y), t_w, t_h) − its truth‖²``,
``5 · (σ(t_o) − IoU)²`` and the cross-entropy of its class; every other one pays ``σ(t_o)²`` unless its box overlaps
some truth by more than 0.6. Classes cost cross-entropy where the original has squared errors, and the original's extra
pull to the anchors' shapes over the first 12,800 images is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.ops import box_convert, box_iou

from splitsight.tasks.detect import Found

__all__ = ["YoloV2"]

_OBJECT, _OVERLAP = 5.0, 0.6
_LARGEST = 4.0
"""Of t_w and t_h that are decoded: 55 times the anchor, more than any image holds."""


class YoloV2:
    """Reads, and trains, a network's output.

    Args:
        anchors: sides of each anchor, ``(width, height)`` as parts of the image's, in (0, 1].
        classes: C.
    """

    def __init__(self, anchors: Sequence[Sequence[float]], classes: int) -> None:
        self.anchors = torch.tensor([list(a) for a in anchors], dtype=torch.float32)
        self.classes = classes

    @property
    def channels(self) -> int:
        """A · (5 + C), of the network's output."""
        return len(self.anchors) * (5 + self.classes)

    def _predictors(self, output: Tensor) -> Tensor:
        """``(B, A · (5 + C), G, G)`` → ``(B, A, G, G, 5 + C)``."""
        return output.float().unflatten(1, (len(self.anchors), -1)).permute(0, 1, 3, 4, 2)

    def boxes(self, output: Tensor) -> Tensor:
        """Boxes of all predictors, ``(B, A, G, G, 4)``: left, top, right, bottom as parts of the image's sides."""
        t = self._predictors(output)
        rows, columns = (torch.arange(n, device=t.device, dtype=torch.float32) for n in t.shape[2:4])
        corner = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        cells = t.new_tensor([t.shape[3], t.shape[2]])
        middle = (t[..., :2].sigmoid() + corner) / cells
        sides = self.anchors.to(t.device)[:, None, None] * t[..., 2:4].clamp(max=_LARGEST).exp()
        return box_convert(torch.cat([middle, sides], -1), "cxcywh", "xyxy")

    def decode(self, output: Tensor) -> list[Found]:
        """A batch's output → for each image the most probable class of each predictor, and its confidence."""
        t, boxes = self._predictors(output), self.boxes(output)
        best = t[..., 5:].softmax(-1).max(-1)
        scores = t[..., 4].sigmoid() * best.values
        return [
            {"boxes": b.reshape(-1, 4), "scores": s.flatten(), "labels": c.flatten()}
            for b, s, c in zip(boxes, scores, best.indices, strict=True)
        ]

    def assign(self, boxes: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Which predictor each truth belongs to: its anchor, row and column.

        Args:
            boxes: ``(N, 4)``, left, top, right, bottom in [0, 1].
            grid: rows and columns.
        """
        middle = box_convert(boxes, "xyxy", "cxcywh")
        # shapes are compared as boxes with a common corner
        shapes = torch.cat([torch.zeros_like(middle[:, 2:]), middle[:, 2:]], 1)
        anchors = self.anchors.to(boxes.device)
        anchor = box_iou(shapes, torch.cat([torch.zeros_like(anchors), anchors], 1)).argmax(1)
        row, column = ((middle[:, i] * n).long().clamp(0, n - 1) for i, n in ((1, grid[0]), (0, grid[1])))
        return anchor, row, column

    def loss(self, output: Tensor, truth: Sequence[Found]) -> dict[str, Tensor]:
        """``box``, ``object``, ``nothing`` and ``class``, each the sum over an image's predictors, the batch's mean.

        Args:
            output: ``(B, A · (5 + C), G, G)``.
            truth: each image's ``boxes`` ``(N, 4)`` in [0, 1] and ``labels`` ``(N,)``; there may be none.
        """
        t, found = self._predictors(output), self.boxes(output)
        confidence = t[..., 4].sigmoid()
        anchors = self.anchors.to(t.device)
        grid = (t.shape[2], t.shape[3])
        free = torch.ones_like(confidence, dtype=torch.bool)
        sums = {name: t.new_zeros(()) for name in ("box", "object", "nothing", "class")}
        for i, one in enumerate(truth):
            boxes, labels = one["boxes"].to(t.device).float(), one["labels"].to(t.device)
            if len(boxes) == 0:
                continue
            overlap = box_iou(found[i].detach().reshape(-1, 4), boxes)
            free[i] &= (overlap.max(1).values <= _OVERLAP).reshape(free[i].shape)
            anchor, row, column = self.assign(boxes, grid)
            free[i, anchor, row, column] = False
            own = t[i, anchor, row, column]
            middle = box_convert(boxes, "xyxy", "cxcywh")
            place = middle[:, :2] * t.new_tensor([grid[1], grid[0]]) - torch.stack([column, row], 1)
            shape = (middle[:, 2:] / anchors[anchor]).log()
            given = torch.cat([own[:, :2].sigmoid(), own[:, 2:4]], 1)
            weight = 2 - middle[:, 2] * middle[:, 3]
            sums["box"] = sums["box"] + (weight[:, None] * (given - torch.cat([place, shape], 1)).square()).sum()
            predictors = overlap.reshape(*free[i].shape, len(boxes))[anchor, row, column]
            reached = predictors.diagonal()
            sums["object"] = sums["object"] + _OBJECT * (own[:, 4].sigmoid() - reached).square().sum()
            sums["class"] = sums["class"] + cross_entropy(own[:, 5:], labels, reduction="sum")
        sums["nothing"] = (confidence.square() * free).sum()
        return {name: value / len(t) for name, value in sums.items()}
