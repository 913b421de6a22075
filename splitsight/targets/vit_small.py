"""A vision transformer (Dosovitskiy et al., 2021, arXiv 2010.11929) an eighth as wide as ViT-base, on 64×64 images.

torchvision's class with ViT-base's 12 encoder blocks and its proportions: 96 numbers a token where ViT-base has 768,
heads of 32, four times as many hidden units; patches of 8×8 pixels, 64 of them, and a class token. Split points count
encoder blocks, so that L3, L4, L5 and L8 are as deep as in ViT-base, in blocks and relative to the whole: 65 tokens of
96 numbers cross each of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from splitsight.artifacts import asset
from splitsight.targets import TARGETS, Normalize, Target, load_state, read_classes
from splitsight.tasks.classify import Classify

__all__ = ["POINTS", "WIDTH", "SmallViT", "ViTSmall", "encode", "halves"]

WIDTH = 96
"""Numbers a token; ViT-base has 768."""

POINTS = {f"L{n}": f"encoder.layers.encoder_layer_{n - 1}" for n in (3, 4, 5, 8)}
"""The literature's names of ViT-base's split points, and the modules that they end."""

_SIZE, _PATCH, _BLOCKS, _HEADS = 64, 8, 12, 3


class SmallViT(VisionTransformer):
    """The network with random weights.

    Args:
        outputs: of the last linear layer.
    """

    tokens = (_SIZE // _PATCH) ** 2
    """Patches of an image."""

    def __init__(self, outputs: int) -> None:
        super().__init__(
            image_size=_SIZE,
            patch_size=_PATCH,
            num_layers=_BLOCKS,
            num_heads=_HEADS,
            hidden_dim=WIDTH,
            mlp_dim=4 * WIDTH,
            num_classes=outputs,
        )


class _Front(nn.Module):
    """Normalised images → tokens behind the first ``count`` blocks ``(B, 1 + K, WIDTH)``."""

    def __init__(self, model: SmallViT, count: int) -> None:
        super().__init__()
        self.conv_proj, self.class_token = model.conv_proj, model.class_token
        self.pos_embedding, self.layers = model.encoder.pos_embedding, model.encoder.layers[:count]

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2) + self.pos_embedding[:, 1:]
        if kept is not None:
            patches = patches.gather(1, kept.to(x.device)[..., None].expand(-1, -1, WIDTH))
        first = (self.class_token + self.pos_embedding[:, :1]).expand(len(x), -1, -1)
        return self.layers(torch.cat([first, patches], 1))


class _Back(nn.Module):
    """Tokens behind the first ``count`` blocks → outputs."""

    def __init__(self, model: SmallViT, count: int) -> None:
        super().__init__()
        self.layers, self.ln, self.heads = model.encoder.layers[count:], model.encoder.ln, model.heads

    def forward(self, tokens: Tensor) -> Tensor:
        return self.heads(self.ln(self.layers(tokens))[:, 0])


def encode(model: SmallViT, x: Tensor, kept: Tensor | None = None) -> Tensor:
    """What the network answers ``(B, outputs)``, of all patches or of some.

    Args:
        model: in training.
        x: normalised images ``(B, 3, 64, 64)``.
        kept: ``(B, K)`` numbers of the patches that are looked at; ``None`` for all.
    """
    return _Back(model, _BLOCKS)(_Front(model, _BLOCKS)(x, kept))


def halves(model: SmallViT, point: str) -> tuple[nn.Module, nn.Module] | None:
    """The network before and behind one of :data:`POINTS`; ``None`` where it has none of that name."""
    if point not in POINTS:
        return None
    count = int(point.removeprefix("L"))
    return _Front(model, count), _Back(model, count)


@TARGETS.register("vit-small")
class ViTSmall(Target):
    """A vision transformer of 12 blocks, 96 wide, for ``(B, 3, 64, 64)``, 200 classes.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the embedded ones.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        folder = asset("targets", "vit-small")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = SmallViT(config["num_classes"])
        load_state(model, weights or folder / "model.safetensors", name="vit-small", classifier="heads.head.weight")
        synonyms = read_classes(folder / "classes.tsv")
        task = Classify([names[0] for names in synonyms], synonyms)
        super().__init__(
            "vit-small", model, Normalize(config["mean"], config["std"]), task, config["input_size"], POINTS
        )
        self.model: SmallViT = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """After the named blocks."""
        return halves(self.model, point)
