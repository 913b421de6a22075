"""What a network is still good for when it is cut: its task's measure, or agreement with itself uncut.

Where images have labels, utility is the first measure of the task (``top1`` of a classifier), of the cut and of the
uncut network. Where they have none, it is how far the two agree: the same class (or the same word for word), the cosine
of embeddings, the mean average precision with the uncut network's boxes for truth. The uncut network has 1 then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils import _pytree as pytree

from splitsight.tasks import Task
from splitsight.tasks.detect import Boxes, Detect

__all__ = ["AGREEMENT", "agreement", "largest_difference", "task_utility"]

AGREEMENT = "agreement"
"""What agreement with the uncut network is called."""


def task_utility(task: Task, outputs: Any, labels: Sequence[int]) -> tuple[str, list[float]]:
    """The first measure of a task, and one number an image.

    Args:
        task: what outputs mean.
        outputs: of the images.
        labels: their classes.
    """
    name, values = next(iter(task.utility(outputs, labels).items()))
    return name, [float(v) for v in values.reshape(-1)]


@torch.no_grad()
def agreement(task: Task, outputs: Any, uncut: Any) -> list[float]:
    """How far outputs agree with the uncut network's, one number in [0, 1] an image; of boxes, one for all images."""
    if isinstance(task, Detect):
        truth = [
            {
                "boxes": torch.tensor([corners for corners, _ in boxes]).reshape(-1, 4),
                "labels": torch.tensor([label for _, label in boxes], dtype=torch.int64),
            }
            for boxes in _boxes(task, uncut)
        ]
        found = float(next(iter(task.utility(outputs, truth).values())))
        return [found if found >= 0 else math.nan]  # −1: there is nothing to find
    ours, others = task.read(outputs), task.read(uncut)
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and any(reading.best() is None for reading in others):
        return cosine_similarity(outputs.float(), uncut.float(), dim=1).clamp(0, 1).tolist()
    pairs = [(a.best(), b.best()) for a, b in zip(ours, others, strict=True)]
    return [
        float(a.to_dict() == b.to_dict() if x is None or y is None else x.index == y.index)
        for a, b, (x, y) in zip(ours, others, pairs, strict=True)
    ]


def _boxes(task: Detect, outputs: Any) -> list[list[tuple[tuple[float, ...], int]]]:
    found = [one.boxes if isinstance(one, Boxes) else () for one in task.read(outputs)]
    return [[((b.left, b.top, b.right, b.bottom), b.label.index) for b in boxes] for boxes in found]


def largest_difference(outputs: Any, uncut: Any) -> float:
    """The largest absolute difference between any two numbers of two outputs."""
    pairs = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(uncut), strict=True)
    return max(
        (float((a.double() - b.double()).abs().max()) for a, b in pairs if isinstance(a, Tensor) and a.numel()),
        default=0.0,
    )
