"""F2 as served: features of several frames in, one reading of the output a frame out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cloud_server.options import CloudOptions
from splitsight import targets
from splitsight.pipeline import EdgePipeline
from splitsight.tasks import Reading
from splitsight.wire.tensors import COMPRESSIONS, DTYPES
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Served", "Tail"]


class Tail:
    """F2 as a server calls it.

    Args:
        pipeline: whose features come, and whose F2 it is.
    """

    def __init__(self, pipeline: EdgePipeline) -> None:
        self.target, self.specs = pipeline.target, pipeline.specs
        self._tail = pipeline.tail
        self._twice = False

    def warm_up(self, batch: int) -> None:
        """Run at the smallest and the largest batch, so that the first client does not pay for it.

        Finds out, too, whether a frame on its own is computed faster as two: PyTorch leaves oneDNN aside for a
        single small map, which takes ResNet-18 from L8 on half as long again.
        """
        zeros = [np.zeros(spec.shape, np.float32) for spec in self.specs]
        self([zeros] * batch)
        one, two = (min(self([zeros] * size)[1] for _ in range(3)) for size in (1, 2))
        self._twice = two < one

    def __call__(self, frames: Sequence[Sequence[np.ndarray]]) -> tuple[list[Reading | None], float]:
        """Compute a batch.

        Args:
            frames: for each frame its features, float32, without batch dimension.

        Returns:
            For each frame what the output says, or ``None`` where the network overflowed; and the seconds it took.
        """
        start = time.perf_counter()
        count = len(frames)
        if count == 1 and self._twice:
            frames = [*frames, *frames]
        with torch.inference_mode():
            output = self._tail(tuple(torch.from_numpy(np.stack(part)) for part in zip(*frames, strict=True)))
            finite = _finite(output, len(frames))
            readings = self.target.task.read(output)
        answers = [reading if ok else None for reading, ok in zip(readings[:count], finite[:count], strict=True)]
        return answers, time.perf_counter() - start


class Served(Tail):
    """The second part of a split network, and what is told about it.

    Args:
        options: names the target, the split, the defence and the limits.

    Raises:
        UserError: unknown target, split or defence, or weights that do not fit.
    """

    def __init__(self, options: CloudOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        target = targets.load(options.target, options.weights)
        pipeline = EdgePipeline(target, options.split, options.defense or "identity")
        super().__init__(pipeline)
        about = pipeline.description()
        self.description = pb.DescribeResponse(
            session=(about if options.defense else replace(about, defense="")).proto(),
            dtypes=list(DTYPES.values()),
            compressions=list(COMPRESSIONS.values()),
            max_message_bytes=int(options.max_message_mb * (1 << 20)),
            max_sessions=options.max_sessions,
            max_in_flight=options.max_in_flight,
            labels=target.labels,
            version=version("splitsight"),
        )


def _finite(output: object, batch: int) -> list[bool]:
    """For each frame whether all numbers of its output are finite."""
    good = torch.ones(batch, dtype=torch.bool)
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim and len(leaf) == batch:
            good &= leaf.flatten(1).isfinite().all(1).cpu() if leaf.ndim > 1 else leaf.isfinite().cpu()
    return good.tolist()
