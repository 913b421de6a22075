"""How good reconstructions are, by every metric and evaluator of a run, each among its own gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenarios.evaluation import asked
from scenarios.run.inputs import Inputs
from splitsight.data import to_tensor
from splitsight.evaluators import Evaluator
from splitsight.metrics import Batch, measure, metrics

__all__ = ["Scorer"]

_AT_ONCE = 50
"""Images that are turned into floats together: a thousand of 224 pixels would be 600 MB."""


class Scorer:
    """The metrics of a run.

    Args:
        inputs: originals, and what they are to be told from.
        evaluators: independent classifiers; the first one's columns do not carry its name.
        labels: by evaluator, the classes of the originals ``(N,)``, −1 where it does not know them.

    Attributes:
        metrics: all of them.
    """

    def __init__(self, inputs: Inputs, evaluators: Sequence[Evaluator], labels: Mapping[str, Tensor]) -> None:
        self._inputs, self._evaluators, self._labels = inputs, list(evaluators), labels
        self.metrics = metrics([evaluator.name for evaluator in self._evaluators])
        self._pools: dict[str, Tensor] = {}

    def _gallery(self, evaluator: Evaluator, image: int) -> Tensor | None:
        """Features of an image and its rivals; ``None`` without any, since being found among one image says nothing."""
        rivals = self._inputs.rivals(image)
        if len(rivals) == 0:
            return None
        if evaluator.name not in self._pools:
            pool = self._inputs.pool
            parts = [evaluator.features(to_tensor(pool[i : i + _AT_ONCE])) for i in range(0, len(pool), _AT_ONCE)]
            self._pools[evaluator.name] = torch.cat(parts)
        return self._pools[evaluator.name][np.concatenate([[self._inputs.places[image]], rivals])]

    def measure(
        self,
        images: Tensor,
        originals: Tensor,
        index: Sequence[int],
        network: Callable[[Tensor], Tensor] | None = None,
        stride: int | None = None,
    ) -> dict[str, list[Any]]:
        """Every metric of every image, by column, and ``gallery``, the number of images that it was found among.

        Args:
            images: reconstructions ``(B, 3, H, W)`` in [0, 1], eight bits deep; NaN where an attack failed.
            originals: likewise.
            index: B positions among the inputs.
            network: the attacked one, as :class:`~splitsight.metrics.Batch` has it.
            stride: of the features, likewise.
        """
        plain = Batch(
            reconstruction=images,
            original=originals,
            label=torch.from_numpy(self._inputs.labels[list(index)]),
            network=network,
            stride=stride,
        )
        found = measure(self.metrics, plain)
        found |= asked(
            self.metrics,
            self._evaluators,
            plain,
            lambda evaluator: self._labels[evaluator.name][list(index)],
            lambda evaluator, i: self._gallery(evaluator, index[i]),
        )
        if self._evaluators:
            sizes = [len(self._inputs.rivals(i)) for i in index]
            found["gallery"] = [size + 1 if size else None for size in sizes]
        return found
