"""The recipe of ``clip-small``: images and captions in one space, by contrast.

With unit embeddings u_i of images and w_j of their captions, and a learnt temperature τ (Radford et al., 2021)::

    L = ½ · mean_i CE(u_i · w_j / τ over j) + ½ · mean_j CE(u_i · w_j / τ over i)

Where captions of a batch are equal each is as right as the other (UniCL, Yang et al., arXiv 2204.03610). A caption
names the image's class in one of :data:`TEMPLATES`, with a synonym at times, and says what its pixels show
(:mod:`splitsight.captions`), so that images of one class are told apart too. Zero-shot accuracy is measured with
:data:`UNSEEN` templates as well. Tokens are dropped as for ``vit-small``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from splitsight.artifacts import kernels, load_weights, save_weights
from splitsight.captions import WORDS, build_tokenizer, caption, measured, read_class_names
from splitsight.data import to_tensor
from splitsight.errors import UserError
from splitsight.files import write_text
from splitsight.recipes import MEAN, RECIPES, STD, Draw, Options, Recipe
from splitsight.recipes.vit_small import kept_tokens
from splitsight.targets import Normalize
from splitsight.targets.clip_small import _LABELS, DIMENSIONS, LENGTH, TextEncoder
from splitsight.targets.vit_small import WIDTH, SmallViT, encode
from splitsight.training import random_crops

__all__ = ["PROMPT", "TEMPLATES", "UNSEEN", "ClipSmallRecipe", "contrastive_loss"]

TEMPLATES = (
    "{}", "a {}", "the {}", "a photo of a {}", "a picture of the {}", "a {} in a photo", "the picture with a {}",
)  # fmt: skip
"""What captions are made from."""

UNSEEN = ("the photo with the {}", "a picture of {}", "the {} in the picture")
"""What zero-shot accuracy is measured with, beside :data:`PROMPT`; no caption has them."""

PROMPT = "a photo of a {}"
"""What the labels' embeddings are made from."""

_LEAST = 0.01
"""Lowest temperature, as published."""


def contrastive_loss(images: Tensor, texts: Tensor, temperature: Tensor, captions: list[str]) -> Tensor:
    """See the module.

    Args:
        images: ``(B, D)``, normalised here.
        texts: ``(B, D)``, likewise.
        temperature: one number.
        captions: of the batch; equal ones count as one.
    """
    logits = normalize(images.float(), dim=1) @ normalize(texts.float(), dim=1).T / temperature
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    which = torch.tensor([number[text] for text in captions], device=logits.device)
    right = (which[:, None] == which).float()
    right = right / right.sum(1, keepdim=True)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


class _Pair(nn.Module):
    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.image = SmallViT(DIMENSIONS)
        # not zeros, as a classifier's: embeddings without a length have no direction
        nn.init.normal_(cast("nn.Linear", self.image.heads.head).weight, std=WIDTH**-0.5)
        self.text = text
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(min=_LEAST)


@RECIPES.register("clip-small")
class ClipSmallRecipe(Recipe):
    """Both encoders, from scratch.

    Args:
        options: of the training.

    Raises:
        UserError: something given that it does not take, or no labels.
    """

    optimizer = "adamw"
    batch = 256
    peak = 1.5e-3
    weight_decay = 0.05
    clip = 1.0
    size = 64

    def __init__(self, options: Options) -> None:
        for name in ("photos", "teacher", "start"):
            if getattr(options, name) is not None:
                raise UserError(f"clip-small learns from --data alone, from the start: leave --{name} out")
        self._options = options
        self._images, self._held = options.data.images(self.size)
        self._labels, self._held_labels = options.data.classified(self.size)
        assert options.data.classes is not None
        self._names = read_class_names(options.data.classes)
        self._words = measured(self._images)
        self.count = len(self._images)
        self.preprocess = Normalize(MEAN, STD).to(options.device)
        torch.manual_seed(options.seed)
        self.model = _Pair(TextEncoder(build_tokenizer(self._names, LENGTH))).to(options.device)

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """The contrastive one; the log has how often an image's own caption is the nearest."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=draw.generator)))
        known = [(self._names[self._labels[i]], int(self._words[i])) for i in draw.index]
        captions = [caption(names, words, rng, TEMPLATES, complete=True) for names, words in known]
        x = to_tensor(self._images[draw.index]).to(self._options.device)
        x = random_crops(x, self.size, (0.6, 1.0), draw.generator)
        pair = cast("_Pair", self.model)
        kept = kept_tokens(pair.image.tokens, len(x), draw)
        u, w = encode(pair.image, self.preprocess(x), kept), pair.text(captions)
        loss = contrastive_loss(u, w, pair.temperature(), captions)
        return loss, {"temperature": float(pair.temperature().detach())}

    @torch.no_grad()
    def _label_embeddings(self, pair: _Pair, templates: tuple[str, ...]) -> Tensor:
        """Unit vectors ``(classes, D)``: the mean of a class's first name in each template."""
        texts = [normalize(pair.text([t.format(names[0]) for names in self._names]), dim=1) for t in templates]
        return normalize(torch.stack(texts).mean(0), dim=1)

    @torch.no_grad()
    def measure(self, model: nn.Module, most: int | None = None) -> dict[str, float]:
        """Zero-shot ``top1`` and ``top5`` with :data:`PROMPT`, and ``unseen_top1``: the mean over those templates."""
        pair = cast("_Pair", model)
        images, labels = self._held[:most], self._held_labels[:most]
        parts = [to_tensor(images[i : i + 250]).to(self._options.device) for i in range(0, len(images), 250)]
        found = torch.cat([normalize(pair.image(self.preprocess(x)), dim=1).cpu() for x in parts])

        def scores(*templates: str) -> dict[str, float]:
            texts = self._label_embeddings(pair, templates).cpu()
            order = (found @ texts.T).topk(min(5, len(texts))).indices
            hit = order == torch.from_numpy(labels)[:, None]
            return {"top1": float(hit[:, 0].float().mean()), "top5": float(hit.any(1).float().mean())}

        unseen = [scores(template)["top1"] for template in UNSEEN]
        return {**scores(PROMPT), "unseen_top1": sum(unseen) / len(unseen)}

    def save(self, folder: Path, model: nn.Module) -> None:
        """The image encoder is ``model.safetensors``; ``text.safetensors`` has the text encoder and the labels."""
        pair = cast("_Pair", model)
        save_weights(folder / "model.safetensors", pair.image.state_dict(), eight_bit=kernels(pair.image))
        text = pair.text.state_dict() | {_LABELS: self._label_embeddings(pair, (PROMPT,))}
        save_weights(folder / "text.safetensors", text)
        pair.text.tokenizer.save_pretrained(folder / "tokenizer")
        config = {
            "architecture": "clip-small",
            "scale": 1 / float(pair.temperature().detach()),
            "input_size": self.size,
            "mean": MEAN,
            "std": STD,
        }
        write_text(folder / "config.json", json.dumps(config) + "\n")
        assert self._options.data.classes is not None
        shutil.copyfile(self._options.data.classes, folder / "classes.tsv")

    def restore(self, folder: Path, model: nn.Module) -> None:
        """From both files."""
        pair = cast("_Pair", model)
        pair.image.load_state_dict(load_weights(folder / "model.safetensors"))
        text = load_weights(folder / "text.safetensors")
        pair.text.load_state_dict({k: v for k, v in text.items() if k != _LABELS})

    def describe(self) -> dict[str, str]:
        """What the card says."""
        return {
            "what": "CLIP, small: an image encoder like vit-small (12 encoder blocks, 96 wide, patches of 8 pixels) "
            f"and a CLIP text encoder of two blocks, both with {DIMENSIONS} numbers out "
            "(`splitsight/targets/clip_small.py`), input 64 × 64, 8-bit kernels. Labels are zero-shot: the class whose "
            f"name, in “{PROMPT}”, lies nearest.",
            "data": f"{self._options.data.description}. Captions are made from class names and from what can be "
            "measured in the pixels (`splitsight/captions.py`).",
            "notes": f"Made to be attacked. Its captions name {len(self._names)} classes and {len(WORDS)} properties "
            "of pixels, so it knows no other words; zero-shot means that no classifier was trained, not that the "
            "classes were never seen. `unseen_top1` is with templates that no caption had: "
            f"{', '.join(f'“{t}”' for t in UNSEEN)}.",
        }
