"""Detectors in the manner of YOLOv2 (Redmon and Farhadi, 2017) on a ResNet-50, and the small one for 64×64 images.

The body is a ResNet-50; a 1×1 and a 3×3 convolution read its last maps, and a last 1×1 one answers for the anchors of
each cell (:mod:`splitsight.yolov2`). There is no connection from finer maps past the last blocks, so that one tensor
crosses every split point; these are the ResNet-50's: L12, L24, L36, L48. In the small one the last blocks keep 4×4 maps
by dilation, so that a cell covers 16 pixels of the image. A detector of any size loads from a folder:
:mod:`splitsight.targets.sources.yolov2`.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from splitsight.artifacts import asset
from splitsight.targets import TARGETS, Normalize, Target, load_state
from splitsight.targets.resnet50_small import POINTS, WIDTH, NarrowResNet50, blocks
from splitsight.tasks.detect import Detect
from splitsight.yolov2 import YoloV2

__all__ = ["SHAPE", "ResNet50Yolo", "SmallYolo", "YoloSmall"]

SHAPE = {"width": WIDTH, "hidden": 128, "dilated": True}
"""Of the small one, as :class:`ResNet50Yolo` takes it."""


class ResNet50Yolo(NarrowResNet50):
    """A detector with random weights: normalised ``(B, 3, S, S)`` → ``(B, outputs, S/32, S/32)``.

    Args:
        outputs: channels of the answer.
        width: channels after the body's stem, 64 in ResNet-50.
        hidden: channels of the convolutions that read its last maps.
        dilated: answers for S/16 × S/16 cells, by dilation of the last blocks.
    """

    def __init__(self, outputs: int, width: int = 64, hidden: int = 1024, *, dilated: bool = False) -> None:
        super().__init__(1, width, dilated=dilated)
        del self.avgpool, self.fc
        self.detector = nn.Sequential(
            Conv2dNormActivation(32 * width, hidden, 1, activation_layer=nn.LeakyReLU),
            Conv2dNormActivation(hidden, hidden, 3, activation_layer=nn.LeakyReLU),
            nn.Conv2d(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map of answers."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.detector(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def body_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a small ResNet-50's weights, those that the body takes; its own for the detector.

        Raises:
            RuntimeError: they are not such weights.
        """
        own = self.state_dict()
        body = {k: v for k, v in state.items() if not k.startswith("fc.")}
        if set(body) != {k for k in own if not k.startswith("detector.")}:
            raise RuntimeError("not the weights of a small ResNet-50")
        return own | body

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """``(F1, F2)`` after any of the body's blocks, named as the literature or as the body does."""
        halves = blocks(self, point)
        return None if halves is None else (halves[0], nn.Sequential(*halves[1], self.detector))


class SmallYolo(ResNet50Yolo):
    """The small one: normalised ``(B, 3, 64, 64)`` → ``(B, outputs, 4, 4)``.

    Args:
        outputs: channels of the answer.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs, **SHAPE)


@TARGETS.register("yolo-small")
class YoloSmall(Target):
    """A YOLOv2-style detector on the small ResNet-50 for ``(B, 3, 64, 64)``; learnt from composed pictures.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the embedded ones.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        folder = asset("targets", "yolo-small")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        reader = YoloV2(config["anchors"], len(config["labels"]))
        model = SmallYolo(reader.channels)
        load_state(model, weights or folder / "model.safetensors", name="yolo-small", classifier="")
        task = Detect(config["labels"], reader.decode)
        preprocess = Normalize(config["mean"], config["std"])
        super().__init__("yolo-small", model, preprocess, task, config["input_size"], POINTS)
        self.model: SmallYolo = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """After any of the body's blocks."""
        return self.model.halves(point)
