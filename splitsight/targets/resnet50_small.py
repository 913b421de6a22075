"""ResNet-50 (He et al., 2016, arXiv 1512.03385) a quarter as wide, on 64×64 images.

The bottleneck blocks are ResNet-50's, 3-4-6-3, with its 7×7 stem and max-pooling; every map has a quarter of the
channels: 16 after the stem, then 64, 128, 256 and 512. Split points are counted in convolutions as the literature
does, three a block: L12, L24, L36 and L48 end blocks 4, 8, 12 and 16 (``layer2.0``, ``layer3.0``, ``layer3.4``,
``layer4.2``), where a 64×64 image has become 128×8×8, 256×4×4, 256×4×4 and 512×2×2 numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from splitsight.artifacts import asset
from splitsight.targets import TARGETS, Normalize, Target, load_state, read_classes
from splitsight.tasks.classify import Classify

__all__ = ["POINTS", "WIDTH", "NarrowResNet50", "ResNet50Small", "blocks"]

WIDTH = 16
"""Channels after the stem; ResNet-50 has 64."""

POINTS = {"L12": "layer2.0", "L24": "layer3.0", "L36": "layer3.4", "L48": "layer4.2"}
"""The literature's names of ResNet-50's split points, and the modules that they end."""

_BLOCKS = (3, 4, 6, 3)


class NarrowResNet50(ResNet):
    """ResNet-50 with fewer channels and random weights.

    Args:
        classes: outputs.
        width: channels after the stem, 64 in ResNet-50.
        dilated: keep the maps of ``layer4`` as large as those of ``layer3``, for dense predictions.
    """

    def __init__(self, classes: int, width: int = WIDTH, *, dilated: bool = False) -> None:
        with torch.device("meta"):  # every layer is replaced
            super().__init__(Bottleneck, list(_BLOCKS))
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i, count in enumerate(_BLOCKS):
            layer = self._make_layer(Bottleneck, width << i, count, min(i, 1) + 1, dilate=dilated and i == 3)
            setattr(self, f"layer{i + 1}", layer)
        self.fc = nn.Linear(width * 8 * Bottleneck.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # each block begins as the identity (Goyal et al., arXiv 1706.02677)
                nn.init.zeros_(cast("nn.BatchNorm2d", module.bn3).weight)


def blocks(model: ResNet, point: str) -> tuple[nn.Sequential, nn.Sequential] | None:
    """A ResNet-50's stem and blocks up to a point, and the blocks behind; ``None`` where it has none of that name."""
    order = [f"layer{i + 1}.{j}" for i, count in enumerate(_BLOCKS) for j in range(count)]
    at = POINTS.get(point, point)
    if at not in order:
        return None
    layers = [model.get_submodule(name) for name in order]
    count = order.index(at) + 1
    stem = [model.conv1, model.bn1, model.relu, model.maxpool]
    return nn.Sequential(*stem, *layers[:count]), nn.Sequential(*layers[count:])


@TARGETS.register("resnet50-small")
class ResNet50Small(Target):
    """ResNet-50 with a quarter of its channels for ``(B, 3, 64, 64)``, 200 classes.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the embedded ones.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        folder = asset("targets", "resnet50-small")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = NarrowResNet50(config["num_classes"])
        load_state(model, weights or folder / "model.safetensors", name="resnet50-small", classifier="fc.weight")
        synonyms = read_classes(folder / "classes.tsv")
        task = Classify([names[0] for names in synonyms], synonyms)
        preprocess = Normalize(config["mean"], config["std"])
        super().__init__("resnet50-small", model, preprocess, task, config["input_size"], POINTS)
        self.model: NarrowResNet50 = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """After any of the blocks."""
        halves = blocks(self.model, point)
        if halves is None:
            return None
        return halves[0], nn.Sequential(*halves[1], self.model.avgpool, nn.Flatten(1), self.model.fc)
