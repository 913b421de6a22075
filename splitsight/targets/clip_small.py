"""An image encoder and a text encoder in one space (CLIP; Radford et al., 2021, arXiv 2103.00020), for 64×64 images.

The image encoder is the network of :mod:`splitsight.targets.vit_small`, block for block, with a projection to 64
numbers where that has classes: what differs between the two at a split point is what they were trained for. Its points
have the same names, L3, L4, L5 and L8; ``output`` is the image's embedding, which CLIP sends as it is ("end to end").
The text encoder is a small CLIP one; it stays off the wire, and makes the zero-shot labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from splitsight.artifacts import asset, load_weights
from splitsight.targets import TARGETS, Normalize, Target, load_state, read_classes
from splitsight.targets.vit_small import POINTS, SmallViT, halves
from splitsight.tasks.embed import Embed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["DIMENSIONS", "LENGTH", "ClipSmall", "TextEncoder", "load_text_encoder"]

DIMENSIONS = 64
"""Of the common space."""

LENGTH = 24
"""Tokens of a text, at most."""

_LABELS = "labels"
"""The tensor, beside the text encoder's, that holds the embeddings of the class names."""


class TextEncoder(nn.Module):
    """Texts → ``(B, DIMENSIONS)``: transformers' CLIP text model, and a projection of its last token.

    Args:
        tokenizer: pads at the end, and ends each text with its last special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from transformers import (  # slow to import, and not needed to split an image encoder
            CLIPTextConfig,
            CLIPTextModel,
        )

        super().__init__()
        self.tokenizer = tokenizer
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=DIMENSIONS,
            intermediate_size=4 * DIMENSIONS,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=cast("int", tokenizer.bos_token_id),
            eos_token_id=cast("int", tokenizer.eos_token_id),
        )
        self.encoder = CLIPTextModel(config)
        self.projection = nn.Linear(DIMENSIONS, DIMENSIONS, bias=False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Not normalised."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(self.projection.weight.device)
        hidden = self.encoder(**tokens).last_hidden_state
        last = tokens["attention_mask"].sum(1) - 1
        return self.projection(hidden[torch.arange(len(hidden), device=hidden.device), last])


def load_text_encoder(folder: Path | None = None) -> TextEncoder:
    """The text encoder that ``splitsight train target clip-small`` wrote, in eval mode.

    Args:
        folder: with ``text.safetensors`` and ``tokenizer``; the embedded one by default.

    Raises:
        UserError: it is not there, or unreadable.
    """
    from transformers import PreTrainedTokenizerFast

    folder = folder or asset("targets", "clip-small")
    state = load_weights(folder / "text.safetensors")
    encoder = TextEncoder(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))
    encoder.load_state_dict({k: v for k, v in state.items() if k != _LABELS})
    return encoder.eval().requires_grad_(False)


@TARGETS.register("clip-small")
class ClipSmall(Target):
    """CLIP's image encoder, small, for ``(B, 3, 64, 64)``; 64 numbers, with zero-shot labels of 200 classes.

    Args:
        weights: of the image encoder, a safetensors file or PyTorch state dict; ``None`` for the embedded ones. The
            text encoder and the labels' embeddings lie beside a given file, where there is a ``text.safetensors``.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        folder = asset("targets", "clip-small")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = SmallViT(DIMENSIONS)
        load_state(model, weights or folder / "model.safetensors", name="clip-small", classifier="")
        beside = folder if weights is None else weights.parent
        self.folder = beside if (beside / "text.safetensors").is_file() else folder
        labels = [names[0] for names in read_classes(self.folder / "classes.tsv")]
        texts = load_weights(self.folder / "text.safetensors")[_LABELS]
        task = Embed(labels, texts, scale=config["scale"])
        preprocess = Normalize(config["mean"], config["std"])
        super().__init__("clip-small", model, preprocess, task, config["input_size"], POINTS)

        self.model: SmallViT = model

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """After the named blocks."""
        return halves(self.model, point)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``(B, DIMENSIONS)`` of texts of one's own, in the images' space."""
        return normalize(load_text_encoder(self.folder)(texts), dim=1)
