"""The recipe of ``yolo-small``: YOLOv2's loss on pictures composed anew at every step.

Objects are the images of ten groups of classes (:data:`GROUPS`), since a network of this size cannot tell 200 kinds of
things at 16 to 45 pixels apart; classes in no group are not used. They are pasted on photographs
(:mod:`splitsight.compositions`). Figures are measured on compositions of held-out images and held-out photographs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.artifacts import kernels, load_weights, save_weights
from splitsight.compositions import Composer, Composition
from splitsight.data import read_classes, to_tensor
from splitsight.errors import UserError
from splitsight.files import write_text
from splitsight.photographs import Photographs
from splitsight.recipes import MEAN, RECIPES, STD, Draw, Options, Recipe
from splitsight.targets import Normalize
from splitsight.targets.yolo_small import SHAPE, SmallYolo
from splitsight.tasks.detect import Detect, Found
from splitsight.yolov2 import YoloV2

__all__ = ["GROUPS", "YoloSmallRecipe", "grouped"]

GROUPS = {
    "dog": (
        "Chihuahua", "Yorkshire terrier", "golden retriever", "Labrador retriever", "German shepherd",
        "standard poodle",
    ),
    "cat": ("tabby", "Persian cat", "Egyptian cat", "cougar", "lion"),
    "hoofed or large mammal": (
        "brown bear", "hog", "ox", "bison", "bighorn", "gazelle", "Arabian camel", "African elephant",
    ),
    "bird": ("goose", "black stork", "king penguin", "albatross"),
    "insect or spider": (
        "scorpion", "black widow", "tarantula", "centipede", "ladybug", "fly", "bee", "grasshopper", "walking stick",
        "cockroach", "mantis", "dragonfly", "monarch", "sulphur butterfly",
    ),
    "vehicle": (
        "beach wagon", "bullet train", "convertible", "freight car", "go-kart", "limousine", "moving van", "police van",
        "school bus", "sports car", "tractor", "trolleybus",
    ),
    "building": (
        "barn", "beacon", "obelisk", "steel arch bridge", "suspension bridge", "thatch", "triumphal arch", "viaduct",
        "water tower",
    ),
    "food": (
        "guacamole", "ice cream", "pretzel", "mashed potato", "cauliflower", "bell pepper", "mushroom", "orange",
        "lemon", "banana", "pomegranate", "meat loaf", "pizza", "potpie", "espresso",
    ),
    "clothing": (
        "academic gown", "apron", "bikini", "cardigan", "fur coat", "kimono", "military uniform", "miniskirt", "poncho",
        "swimming trunks", "vestment",
    ),
    "vessel": ("barrel", "beaker", "beer bottle", "bucket", "pill bottle", "pop bottle", "teapot", "water jug"),
}  # fmt: skip
"""What the detector tells apart, and the classes of Tiny-ImageNet that belong to each."""

_ANCHORS = ((0.28, 0.28), (0.35, 0.34), (0.42, 0.43), (0.52, 0.52), (0.63, 0.63))
"""By k-means of 20,000 drawn boxes' shapes, with 1 − IoU for a distance, as published."""

_HELD, _FEW = 2000, 300


def grouped(labels: np.ndarray, names: list[list[str]]) -> np.ndarray:
    """Group of each label, −1 where its class is in none.

    Args:
        labels: ``(N,)`` numbers of classes.
        names: synonyms of each class.

    Raises:
        UserError: no class is in a group.
    """
    of = {name: i for i, members in enumerate(GROUPS.values()) for name in members}
    table = np.array([of.get(synonyms[0], -1) for synonyms in names])
    if (table < 0).all():
        raise UserError("none of the data's classes is in a group that yolo-small tells apart: give Tiny-ImageNet")
    return table[labels]


def _truth(pictures: list[Composition]) -> list[Found]:
    return [{"boxes": torch.from_numpy(p.boxes), "labels": torch.from_numpy(p.labels)} for p in pictures]


@RECIPES.register("yolo-small")
class YoloSmallRecipe(Recipe):
    """A detector of composed objects.

    Args:
        options: of the training; ``start`` may be a small ResNet-50's weights, for the body.

    Raises:
        UserError: no photographs, no suitable classes, a teacher, or other ``start`` weights.
    """

    optimizer = "adamw"
    batch = 64
    peak = 1.5e-3
    weight_decay = 0.01
    clip = 10.0
    average = 0.995
    size = 64

    def __init__(self, options: Options) -> None:
        if options.photos is None:
            raise UserError("yolo-small pastes objects on photographs: give a Parquet file of them with --photos")
        if options.teacher is not None:
            raise UserError("yolo-small learns from boxes alone: leave --teacher out")
        self._options = options
        photographs = Photographs([options.photos])
        assert options.data.classes is not None
        names = read_classes(options.data.classes)
        images, held = options.data.images(self.size)
        labels, held_labels = (grouped(part, names) for part in options.data.classified(self.size))
        try:
            self.compose = Composer(images, labels, photographs, photographs.train, self.size)
            held_composer = Composer(held, held_labels, photographs, photographs.held, self.size)
        except ValueError as error:
            raise UserError(f"{options.data.source} cannot be composed: {error}") from error
        rng = np.random.default_rng(0)  # the same pictures for every run
        self._held = [held_composer(rng) for _ in range(_HELD)]
        self.count = int((labels >= 0).sum())
        self.reader = YoloV2(_ANCHORS, len(GROUPS))
        self._task = Detect(list(GROUPS), self.reader.decode)
        self.preprocess = Normalize(MEAN, STD).to(options.device)
        torch.manual_seed(options.seed)
        model = SmallYolo(self.reader.channels)
        if options.start is not None:
            state = load_weights(options.start)
            try:
                model.load_state_dict(state if "detector.2.weight" in state else model.body_state(state))
            except RuntimeError as error:
                raise UserError(
                    f"{options.start} holds weights of neither a yolo-small nor a resnet50-small: give another "
                    "--start, or none"
                ) from error
        self.model = model.to(options.device).to(memory_format=torch.channels_last)

    def _output(self, model: nn.Module, pictures: list[Composition]) -> Tensor:
        images = to_tensor(np.stack([p.image for p in pictures])).to(self._options.device)
        return model(self.preprocess(images).contiguous(memory_format=torch.channels_last))

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """YOLOv2's, of freshly composed pictures; the log has its parts."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=draw.generator)))
        pictures = [self.compose(rng) for _ in draw.index]
        parts = self.reader.loss(self._output(self.model, pictures), _truth(pictures))
        return torch.stack(list(parts.values())).sum(), {name: float(value.detach()) for name, value in parts.items()}

    @torch.no_grad()
    def measure(self, model: nn.Module, most: int | None = None) -> dict[str, float]:
        """``map`` (COCO's, IoU 0.5 to 0.95) and ``map_50``."""
        held = self._held if most is None else self._held[:_FEW]
        outputs = torch.cat([self._output(model, held[i : i + 250]).cpu() for i in range(0, len(held), 250)])
        return {name: float(value) for name, value in self._task.utility(outputs, _truth(held)).items()}

    def save(self, folder: Path, model: nn.Module) -> None:
        """``model.safetensors`` and ``config.json``, as :mod:`splitsight.targets.sources.yolov2` reads them."""
        save_weights(folder / "model.safetensors", model.state_dict(), eight_bit=kernels(model))
        config = {
            "architecture": "yolo-small",
            "labels": list(GROUPS),
            "anchors": _ANCHORS,
            "input_size": self.size,
            **SHAPE,
            "mean": MEAN,
            "std": STD,
        }
        write_text(folder / "config.json", json.dumps(config) + "\n")

    def restore(self, folder: Path, model: nn.Module) -> None:
        """From ``model.safetensors``."""
        cast("SmallYolo", model).load_state_dict(load_weights(folder / "model.safetensors"))

    def describe(self) -> dict[str, str]:
        """What the card says."""
        begun = " The body began with the weights of a classifier (--start)." if self._options.start else ""
        return {
            "what": "A YOLOv2-style detector (five anchors, 4 × 4 cells) on a ResNet-50 a quarter as wide, with "
            "dilated last blocks (`splitsight/targets/yolo_small.py`), input 64 × 64, 8-bit kernels. It tells "
            f"{len(GROUPS)} groups of things apart: {', '.join(GROUPS)}.",
            "data": f"Compositions, not photographs of scenes (`splitsight/compositions.py`): one to three objects of "
            f"{self._options.data.source.name}, which are the middles of its images, pasted with soft edges at random "
            f"places and sizes on photographs of {cast('Path', self._options.photos).name}. The last shard, and every "
            f"tenth photograph, were held out; {_HELD:,} compositions of them gave the figures.",
            "notes": "Made to be attacked. What a photograph shows by itself has no box, also where it is a thing of "
            f"one of the groups.{begun}",
        }
