"""The recipe of ``resnet18``: SGD over crops of growing resolution."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet18

from splitsight.recipes import RECIPES
from splitsight.recipes.classification import Classification

__all__ = ["ResNet18Recipe"]


@RECIPES.register("resnet18")
class ResNet18Recipe(Classification):
    """torchvision's ResNet-18, kept in float16."""

    name = "resnet18"
    eight_bit = False

    def build(self, classes: int) -> nn.Module:
        """With its 7 × 7 stem and max-pooling."""
        return resnet18(num_classes=classes)

    def describe(self) -> dict[str, str]:
        """What the card says."""
        words = super().describe()
        return words | {"what": f"torchvision's ResNet-18 (7 × 7 stem, max-pooling), {words['what']}"}
