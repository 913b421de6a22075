"""The recipe of ``vit-small``: AdamW, and few tokens of each image at first.

A quarter of an image's tokens are kept until a third of the budget is spent, half of them after that, all at the end
(PatchDropout, Liu et al., arXiv 2208.07220), which on a CPU buys about three times the epochs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from splitsight.recipes import RECIPES, Draw
from splitsight.recipes.classification import Classification
from splitsight.targets.vit_small import SmallViT, encode

__all__ = ["ViTSmallRecipe", "kept_tokens"]

# (from this spent fraction on, part of the tokens)
_KEPT = ((0.0, 0.25), (0.35, 0.5), (0.85, 1.0))


def kept_tokens(count: int, batch: int, draw: Draw) -> Tensor | None:
    """Which of an image's tokens a step looks at, ``(batch, kept)`` ascending; ``None`` for all of ``count``."""
    part = next(part for start, part in reversed(_KEPT) if draw.fraction >= start)
    if part == 1:
        return None
    order = torch.rand(batch, count, generator=draw.generator).argsort(1)
    return order[:, : int(count * part)].sort(1).values


@RECIPES.register("vit-small")
class ViTSmallRecipe(Classification):
    """Trained from scratch on few images, which a transformer takes badly: a teacher helps (DeiT, arXiv 2012.12877)."""

    name = "vit-small"
    optimizer = "adamw"
    peak = 1.5e-3
    weight_decay = 0.05
    clip = 1.0

    def build(self, classes: int) -> nn.Module:
        """Random weights."""
        return SmallViT(classes)

    def stage(self, fraction: float) -> tuple[int, tuple[float, float]]:
        """All pixels from the start: the tokens' places are learnt for one size."""
        return self.size, (0.5, 1.0)

    def logits(self, model: nn.Module, images: Tensor, draw: Draw) -> Tensor:
        """Of some of the tokens."""
        vit = cast("SmallViT", model)
        kept = kept_tokens(vit.tokens, len(images), draw)
        return encode(vit, self.preprocess(images), kept)

    def describe(self) -> dict[str, str]:
        """What the card says."""
        words = super().describe()
        return words | {
            "what": "A vision transformer of 12 encoder blocks as ViT-base has, 96 instead of 768 wide, patches of 8 "
            f"pixels (torchvision's class; `splitsight/targets/vit_small.py`), {words['what']}"
        }
