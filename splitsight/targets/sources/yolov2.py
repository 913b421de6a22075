"""``yolov2:FOLDER``: a YOLOv2-style detector on a ResNet-50, of a folder with two files.

``config.json`` says what the numbers mean; ``model.safetensors`` (or ``model.pt``, ``model.pth``: what ``torch.save``
wrote of the state dict) has the weights::

    {"labels": ["person", "bicycle", …],           names of the C classes, in the order of their scores
     "anchors": [[0.10, 0.13], [0.25, 0.31], …],    (width, height) of the A anchors, as parts of the image's sides
     "input_size": 416,                             side of the images in pixels, a multiple of 32
     "width": 64, "hidden": 1024, "dilated": false, of the network; these are the defaults
     "mean": […], "std": […]}                       three numbers each, ImageNet's by default

Names of the weights are torchvision's for the body (``conv1.weight``, ``bn1.…``, ``layer1.0.conv1.weight`` …
``layer4.2.…``, a ResNet-50 without its ``fc``) and, behind it, ``detector.0`` (1×1 convolution ``.0`` to ``hidden``
channels, batch norm ``.1``, leaky ReLU), ``detector.1`` (likewise, 3×3) and ``detector.2`` (1×1 convolution with bias,
to A · (5 + C) channels). Its output is read as :mod:`splitsight.yolov2` says: anchor by anchor t_x, t_y, t_w, t_h, t_o
and C scores. ``width`` is the number of channels after the stem, ``dilated`` keeps the last maps twice as large (cells
of 16 pixels). What ``splitsight train target yolo-small`` leaves under ``model/`` is such a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from splitsight.errors import UserError
from splitsight.recipes import MEAN, STD
from splitsight.targets import Normalize, Target, load_state
from splitsight.targets.resnet50_small import POINTS
from splitsight.targets.sources import RANDOM, as_file, check_run, seeded
from splitsight.targets.yolo_small import ResNet50Yolo
from splitsight.tasks.detect import Detect
from splitsight.yolov2 import YoloV2

__all__ = ["FILES", "Config", "Detector", "build"]

FILES = ("model.safetensors", "model.pt", "model.pth")
"""Where the weights are looked for."""

_Side = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """``config.json``; keys that it does not know are left alone.

    Attributes:
        labels: names of the classes.
        anchors: width and height of each anchor, as parts of the image's sides.
        input_size: side of the images in pixels, a multiple of 32.
        width: channels after the stem.
        hidden: channels of the convolutions behind the body.
        dilated: whether the last maps are twice as large.
        mean: of colours in [0, 1].
        std: likewise.
    """

    labels: list[str] = Field(min_length=1)
    anchors: list[tuple[_Side, _Side]] = Field(min_length=1)
    input_size: int = Field(gt=0, multiple_of=32)
    width: int = Field(default=64, ge=1)
    hidden: int = Field(default=1024, ge=1)
    dilated: bool = False
    mean: tuple[float, float, float] = MEAN
    std: tuple[_Positive, _Positive, _Positive] = STD


class Detector(Target):
    """A detector that was loaded from a folder.

    Args:
        name: of the target.
        model: the network.
        config: of the folder.
        input_size: side of the images, where it is not the configuration's.
    """

    def __init__(self, name: str, model: ResNet50Yolo, config: Config, input_size: int) -> None:
        reader = YoloV2(config.anchors, len(config.labels))
        preprocess = Normalize(config.mean, config.std)
        check_run(model, preprocess, input_size, name)
        super().__init__(name, model, preprocess, Detect(config.labels, reader.decode), input_size, POINTS)
        self.model: ResNet50Yolo = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """After any of the body's blocks."""
        return self.model.halves(point)


def build(what: str, weights: Path | None, input_size: int | None) -> Target:
    """Load a detector.

    Args:
        what: its folder.
        weights: another file of weights for it, or ``random``.
        input_size: side of the images; that of the folder by default.

    Raises:
        UserError: no such folder, a file that is missing or not of this form, or weights that do not fit.
    """
    folder, name = Path(what), f"yolov2:{what}"
    if not folder.is_dir():
        raise UserError(f"{what} is no folder: give one with config.json and {FILES[0]}, as docs/targets.md has it")
    config = _config(folder / "config.json")
    outputs = YoloV2(config.anchors, len(config.labels)).channels
    model = seeded(lambda: ResNet50Yolo(outputs, config.width, config.hidden, dilated=config.dilated))
    if str(weights) != RANDOM:
        load_state(model, _weights(folder) if weights is None else as_file(weights), name=name, classifier=None)
    return Detector(name, model, config, input_size or config.input_size)


def _config(file: Path) -> Config:
    try:
        return Config.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            f"{file} is not there: write it beside the weights; it has labels, anchors and input_size, as "
            "docs/targets.md has it"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{file}: '{'.'.join(map(str, first['loc']))}': {first['msg']}: mend it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no readable JSON ({error}): mend it") from error


def _weights(folder: Path) -> Path:
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder / FILES[0]} is not there: save the state dict of the detector into that folder, or make one with "
            "`splitsight train target yolo-small`"
        )
    return found[0]
