"""The recipe of ``resnet50-small``: SGD over crops of growing resolution."""

from __future__ import annotations

from torch import nn

from splitsight.recipes import RECIPES
from splitsight.recipes.classification import Classification
from splitsight.targets.resnet50_small import WIDTH, NarrowResNet50

__all__ = ["ResNet50SmallRecipe"]


@RECIPES.register("resnet50-small")
class ResNet50SmallRecipe(Classification):
    """A sixteenth of ResNet-50's parameters, which underfits: it wants less of a penalty."""

    name = "resnet50-small"
    weight_decay = 1e-4

    def build(self, classes: int) -> nn.Module:
        """Random weights."""
        return NarrowResNet50(classes)

    def describe(self) -> dict[str, str]:
        """What the card says."""
        words = super().describe()
        return words | {
            "what": f"A ResNet-50 with {WIDTH} instead of 64 channels after the stem, and so on at every depth "
            "(bottleneck blocks 3-4-6-3, 7 × 7 stem, max-pooling; `splitsight/targets/resnet50_small.py`), "
            + words["what"]
        }
