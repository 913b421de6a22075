"""F2 as served: features of several frames in, ranked labels out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch

from cloud_server.options import CloudOptions
from splitsight import targets
from splitsight.wire.sessions import tensor_specs
from splitsight.wire.tensors import COMPRESSIONS, DTYPES
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["Served"]


class Served:
    """The second part of a split network, and what is told about it.

    Args:
        options: names the target, the split and the limits.

    Raises:
        UserError: unknown target or split, or weights that do not fit.
    """

    def __init__(self, options: CloudOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.target = targets.load(options.target, options.weights)
        self.specs = self.target.feature_specs(options.split)
        self._tail = self.target.tail(options.split)
        self._twice = False
        self.description = pb.DescribeResponse(
            target=self.target.name,
            split=options.split,
            features=tensor_specs(self.specs),
            weights_digest=self.target.digest,
            dtypes=list(DTYPES.values()),  # type: ignore[arg-type]
            compressions=list(COMPRESSIONS.values()),  # type: ignore[arg-type]
            max_message_bytes=int(options.max_message_mb * (1 << 20)),
            max_sessions=options.max_sessions,
            max_in_flight=options.max_in_flight,
            labels=self.target.labels,
            input_size=self.target.input_size,
            version=version("splitsight"),
        )

    def warm_up(self, batch: int) -> None:
        """Run at the smallest and the largest batch, so that the first client does not pay for it.

        Finds out, too, whether a frame on its own is computed faster as two: PyTorch leaves oneDNN aside for a
        single small map, which takes ResNet-18 from L8 on half as long again.
        """
        zeros = [np.zeros(spec.shape, np.float32) for spec in self.specs]
        self([zeros] * batch)
        one, two = (min(self([zeros] * size)[1] for _ in range(3)) for size in (1, 2))
        self._twice = two < one

    def __call__(self, frames: Sequence[Sequence[np.ndarray]]) -> tuple[list[list[pb.Label] | None], float]:
        """Classify a batch.

        Args:
            frames: for each frame its features, float32, without batch dimension.

        Returns:
            For each frame its labels, most probable first, or ``None`` where the network overflowed; and the
            seconds it took.
        """
        start = time.perf_counter()
        count = len(frames)
        if count == 1 and self._twice:
            frames = [*frames, *frames]
        with torch.inference_mode():
            features = tuple(torch.from_numpy(np.stack(part)) for part in zip(*frames, strict=True))
            logits = self._tail(features)
            finite = torch.isfinite(logits).all(dim=1).tolist()
            predictions = self.target.read(logits)
        answers = [
            [pb.Label(index=i, name=name, probability=p) for i, name, p in prediction.top] if ok else None
            for prediction, ok in zip(predictions[:count], finite[:count], strict=True)
        ]
        return answers, time.perf_counter() - start
