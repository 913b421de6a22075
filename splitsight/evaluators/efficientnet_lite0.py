"""EfficientNet-Lite0 as an evaluator: a network that nobody here trained, on images of ImageNet.

It knows ImageNet's 1,000 classes. Where what is attacked has the 200 of Tiny-ImageNet, it is asked about those alone:
the logits of the others are left out. The two lists are joined by the classes' WordNet ids; ImageNet's order is that of
the ids, which are in ``assets/imagenet/synsets.txt``.

Its perceptual distance follows LPIPS (Zhang et al., 2018, arXiv 1801.03924, equation 1) with every channel's weight 1,
since nobody has fitted weights to judgements of people for this network: of the features y_l at the ends of its stages,
each position's channels scaled to unit length,

    d(x, x₀) = mean_l  mean_hw  ‖ŷ_l − ŷ_l⁰‖²,

which is from 0 to 4. It is not LPIPS, and its figures compare with nothing but themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from splitsight.artifacts import asset, digest
from splitsight.evaluators.evaluator import Evaluator
from splitsight.targets import read_classes
from splitsight.targets.efficientnet_lite0 import BLOCKS, NAME, build, preprocessing
from splitsight.targets.sources import imagenet_labels

__all__ = ["NAME", "EfficientNetLite0Evaluator", "tiny_imagenet"]

_SMALL, _SIDE, _FULL = 64, 160, 224
"""Images of up to 64 pixels a side are enlarged to 160, others to 224 pixels."""


def tiny_imagenet() -> tuple[list[int], list[list[str]]]:
    """Places of Tiny-ImageNet's classes among ImageNet's, and their names, both in Tiny-ImageNet's order."""
    table = asset("targets", "resnet18") / "classes.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    order = (asset("imagenet") / "synsets.txt").read_text(encoding="utf-8").split()
    synsets = {int(number): synset for number, synset, *_ in rows}
    return [order.index(synsets[i]) for i in range(len(synsets))], read_classes(table)


class EfficientNetLite0Evaluator(Evaluator):
    """The published network, asked about 1,000 classes or 200.

    Args:
        classes: all names of each class of what is attacked, in label order; those of Tiny-ImageNet restrict it to
            them.

    Raises:
        UserError: the extra ``imagenet`` is not installed.
    """

    def __init__(self, classes: list[list[str]] | None = None) -> None:
        network: Any = build()
        places, names = tiny_imagenet()
        if classes != names:
            places, names = list(range(1000)), [[label] for label in imagenet_labels()]
        body = nn.Sequential(
            network._conv_stem,
            network._bn0,
            network._swish,
            *network._blocks,
            network._conv_head,
            network._bn1,
            network._swish,
            network._avg_pooling,
            nn.Flatten(1),
        )
        classifier = nn.Linear(network._fc.in_features, len(places))
        classifier.weight.data, classifier.bias.data = network._fc.weight[places], network._fc.bias[places]
        model = nn.Sequential()
        model.add_module("body", body)
        model.add_module("classifier", classifier)
        super().__init__(NAME, model, preprocessing(), names, _FULL)
        self.network_digest = digest(network.state_dict())

    def side(self, images: Tensor) -> int:
        """160 for images of up to 64 pixels a side, 224 for others."""
        return _SIDE if max(images.shape[-2:]) <= _SMALL else _FULL

    @torch.no_grad()
    def distance(self, reconstruction: Tensor, original: Tensor, *, batch: int = 32) -> Tensor:
        """The perceptual distance, ``(B,)``, of ``(B, 3, H, W)`` in [0, 1]; NaN for an image that holds NaN."""
        parts = []
        for pair in zip(reconstruction.split(batch), original.split(batch), strict=True):
            stages = zip(*map(self._stages, pair), strict=True)
            parts.append(torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in stages]).mean(0))
        return torch.cat(parts) if parts else torch.zeros(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """Features at the ends of the stages, of unit length at each position."""
        x, found = self._input(images), []
        stem, ends = 3, set(BLOCKS.values())
        for count, layer in enumerate(self.model.get_submodule("body").children(), start=1 - stem):
            x = layer(x)
            if count in ends:
                found.append(normalize(x, dim=1))
            if len(found) == len(ends):
                break
        return found
