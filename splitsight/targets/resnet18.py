"""ResNet-18 (He et al., 2016) as torchvision builds it, on 64×64 images and the 200 classes of Tiny-ImageNet.

Split points are counted in convolutions as the literature does: L4, L8, L12 and L16 end ``layer1`` … ``layer4``,
where a 64×64 image has become 64×16×16, 128×8×8, 256×4×4 and 512×2×2 numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn
from torchvision.models import ResNet, resnet18

from splitsight.artifacts import asset
from splitsight.targets import TARGETS, Normalize, Target, load_state, read_classes
from splitsight.tasks.classify import Classify

__all__ = ["ResNet18", "build", "preprocessing"]

_LAYERS = {"L4": 1, "L8": 2, "L12": 3, "L16": 4}


def _config() -> dict:
    return json.loads((asset("targets", "resnet18") / "config.json").read_text())


def build() -> ResNet:
    """The architecture with fresh random weights (what ``splitsight train target`` starts from)."""
    return resnet18(weights=None, num_classes=_config()["num_classes"])


def preprocessing() -> Normalize:
    """Images in [0, 1] → the model's input."""
    config = _config()
    return Normalize(config["mean"], config["std"])


@TARGETS.register("resnet18")
class ResNet18(Target):
    """ResNet-18 for ``(B, 3, 64, 64)``, 200 classes.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the embedded ones.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        folder = asset("targets", "resnet18")
        model = build()
        load_state(model, weights or folder / "model.safetensors", name="resnet18", classifier="fc.weight")
        synonyms = read_classes(folder / "classes.tsv")
        task = Classify([names[0] for names in synonyms], synonyms)
        aliases = {name: f"layer{count}" for name, count in _LAYERS.items()}
        super().__init__("resnet18", model, preprocessing(), task, _config()["input_size"], aliases)
        self.model: ResNet = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """``L4`` … ``L16``, cut after ``layer1`` … ``layer4``."""
        if point not in _LAYERS:
            return None
        m, cut = self.model, _LAYERS[point]
        layers = [m.layer1, m.layer2, m.layer3, m.layer4]
        f1 = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool, *layers[:cut])
        f2 = nn.Sequential(*layers[cut:], m.avgpool, nn.Flatten(1), m.fc)
        return f1, f2
