"""Recipes: how ``splitsight train target NAME`` makes each target again.

One loop (:mod:`splitsight.recipes._loop`) trains all of them; a recipe says what is particular to one. It is one file
in this package (or in another, by the entry-point group ``splitsight.recipes``): a class that derives from
:class:`Recipe` and registers itself with ``@RECIPES.register("name")`` under its target's name. Those that share a loss
derive from one base: :mod:`splitsight.recipes.classification`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.registry import Registry
from splitsight.training_data import TrainingSet

__all__ = ["MEAN", "RECIPES", "STD", "Draw", "Options", "Recipe"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in [0, 1]: what inputs are normalised by."""


@dataclass(frozen=True)
class Options:
    """What a training is given.

    Attributes:
        data: images to train on, and held out.
        device: where to train.
        seed: of weights and draws.
        start: safetensors file of earlier weights to go on from; ``None`` for random ones.
        teacher: target whose answers are learnt from beside the labels; ``None`` for labels alone.
        photos: larger photographs, for recipes that need them.
    """

    data: TrainingSet
    device: torch.device
    seed: int = 0
    start: Path | None = None
    teacher: str | None = None
    photos: Path | None = None


@dataclass(frozen=True)
class Draw:
    """One step's draws, which depend on the seed and the step alone, so that a resumed run repeats none and skips none.

    Attributes:
        fraction: of the budget that is spent, in [0, 1].
        index: ``(B,)`` numbers of the examples, ascending; each occurs once an epoch.
        generator: for whatever else is drawn.
    """

    fraction: float
    index: np.ndarray
    generator: torch.Generator


class Recipe(ABC):
    """What is particular to one target's training.

    Attributes:
        model: what is trained, on the options' device.
        count: examples of an epoch.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``.
        batch: examples a step.
        peak: highest learning rate of the one cycle.
        weight_decay: not applied to biases and normalisation.
        clip: norm that gradients are cut to; ``None`` for none.
        average: decay of the moving average of the weights, which is what is kept. Short: a longer one lags behind the
            anneal at the end (0.998 instead of 0.99 cost a ResNet-18 1.7 points).
    """

    model: nn.Module
    count: int
    optimizer: ClassVar[Literal["sgd", "adamw"]] = "sgd"
    batch: int = 128
    peak: float = 0.1
    weight_decay: float = 5e-4
    clip: float | None = None
    average: float = 0.99

    @abstractmethod
    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step, and figures of it for the log (each over one step; the log has their means)."""

    @abstractmethod
    def measure(self, model: nn.Module, most: int | None = None) -> dict[str, float]:
        """How good a model is on what is held out.

        Args:
            model: of the same kind as :attr:`model`.
            most: look at so many examples only; ``None`` for all.
        """

    @abstractmethod
    def save(self, folder: Path, model: nn.Module) -> None:
        """Write a trained model as its target loads it."""

    @abstractmethod
    def restore(self, folder: Path, model: nn.Module) -> None:
        """Give a model the weights that :meth:`save` wrote, which are rounded, so that figures are of what is kept."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Words for the card: ``what`` it is, ``data``, ``notes``."""


RECIPES: Registry[Callable[[Options], Recipe]] = Registry("recipe", __name__)
"""By the name of the target that they make."""
