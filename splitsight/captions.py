"""Captions for a text-conditional prior: names of what is shown, and words for what can be measured.

Every word of a caption is either a class name (one of its synonyms, drawn at random) or follows from the
pixels by a rule stated here, so a prompt such as ``"blue sky, grass"`` means something testable. Names
and words are dropped at random, all of them sometimes, so that the empty prompt is trained too.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from splitsight.artifacts import home

__all__ = ["WORDS", "build_tokenizer", "caption", "measure", "measured", "read_class_names"]

WORDS = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "gray",
    "dark", "bright", "colorful", "blue sky", "grass", "snow", "white background", "black "
    "background", "water", "plain background",
)  # fmt: skip
"""What :func:`measure` can say; bit i of its answer is ``WORDS[i]``."""

_GLUE = ("a", "an", "the", "photo", "picture", "of", "with", "on", "in", "and", "background")
_TEMPLATES = ("{}", "{}", "a photo of a {}", "a photo of {}", "a {}")


def _shares(hsv: np.ndarray) -> np.ndarray:
    """Part of the pixels (…, 3; HSV with H in [0, 180)) that shows each of the first twelve words, ``(12,)``."""
    h, s, v = (hsv[..., i].astype(int) for i in range(3))
    black, white = v < 50, (s < 40) & (v > 200)
    gray = (s < 40) & ~black & ~white
    vivid = ~(black | white | gray)
    dull = vivid & (v < 150) & (s < 200)
    parts = [
        vivid & ((h < 8) | (h >= 172)) & ~dull,
        vivid & (h >= 8) & (h < 20) & ~dull,
        vivid & (h >= 20) & (h < 33) & ~dull,
        vivid & (h >= 33) & (h < 82),
        vivid & (h >= 82) & (h < 97),
        vivid & (h >= 97) & (h < 130),
        vivid & (h >= 130) & (h < 150),
        vivid & (h >= 150) & (h < 172),
        dull & ((h < 33) | (h >= 172)),
        black,
        white,
        gray,
    ]
    return np.array([p.mean() for p in parts])


def measure(image: np.ndarray) -> int:
    """Which of :data:`WORDS` hold for an image, as a bit set.

    A colour holds when it covers a quarter of the image. ``blue sky`` and ``snow`` look at the upper and
    lower third, ``grass`` and ``water`` at the lower third, the backgrounds at a frame of one eighth.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    size = image.shape[0]
    shares = _shares(hsv)
    held = [i for i, share in enumerate(shares) if share > 0.25]
    brightness = float(hsv[..., 2].mean())
    top, bottom = hsv[: size // 3], hsv[-size // 3 :]
    edge = size // 8
    border = np.concatenate(
        [
            hsv[:edge].reshape(-1, 3),
            hsv[-edge:].reshape(-1, 3),
            hsv[:, :edge].reshape(-1, 3),
            hsv[:, -edge:].reshape(-1, 3),
        ]
    )
    upper, lower, rim = _shares(top), _shares(bottom), _shares(border)
    calm_top = float(top[..., 2].std()) < 40
    rules = {
        "dark": brightness < 75,
        "bright": brightness > 175,
        "colorful": float(hsv[..., 1].mean()) > 130,
        "blue sky": upper[5] + upper[4] > 0.6 and calm_top and float(top[..., 2].mean()) > 110,
        "grass": lower[3] > 0.6,
        "snow": lower[10] > 0.6 and shares[10] < 0.75 and rim[10] < 0.9,
        "white background": rim[10] > 0.8,
        "black background": rim[9] > 0.8,
        "water": lower[5] + lower[4] > 0.6,
        "plain background": float(border[:, 2].std()) < 18 and float(border[:, 1].std()) < 18,
    }
    held += [WORDS.index(word) for word, holds in rules.items() if holds]
    return sum(1 << i for i in held)


def measured(images: np.ndarray) -> np.ndarray:
    """:func:`measure` of each of ``(N, H, W, 3)``, ``(N,)`` int64; kept in the cache."""
    folder = home() / "latents"
    folder.mkdir(exist_ok=True)
    file = folder / f"words-{hashlib.sha256(images[::500].tobytes()).hexdigest()[:16]}-{len(images)}.npy"
    if not file.is_file():
        np.save(file, np.array([measure(image) for image in images], np.int64))
    return np.load(file)


def read_class_names(path: Path) -> list[list[str]]:
    """Synonyms of each class from a table ``label ⟶ WordNet id ⟶ names`` (tab-separated), in label order."""
    with path.open(newline="") as file:
        rows = sorted(csv.reader(file, delimiter="\t"), key=lambda row: int(row[0]))
    return [[name.strip().lower() for name in row[2].split(",")] for row in rows]


def caption(
    names: list[str] | None,
    measured: int,
    rng: np.random.Generator,
    templates: Sequence[str] = _TEMPLATES,
    *,
    complete: bool = False,
) -> str:
    """Draw one caption for an image.

    Args:
        names: synonyms of its class; ``None`` where the class is unknown.
        measured: bit set from :func:`measure`.
        rng: source of the draws.
        templates: what a name is put into.
        complete: never leave out the name; by default it is missing now and then, and everything too.
    """
    if not complete and rng.random() < 0.12:
        return ""
    parts = []
    if names and (complete or rng.random() < 0.85):
        # the first synonym is the usual name; the others are drawn less often
        name = names[0] if rng.random() < 0.6 else names[rng.integers(len(names))]
        parts.append(templates[int(rng.integers(len(templates)))].format(name))
    words = [WORDS[i] for i in range(len(WORDS)) if measured >> i & 1]
    parts += [w for w in rng.permutation(words).tolist() if rng.random() < 0.5]
    return ", ".join(parts)


def build_tokenizer(names: Iterable[Iterable[str]], length: int = 16) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the class names and :data:`WORDS`; unknown words become ``<unk>``."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    splitter = pre_tokenizers.Split(Regex(r"[a-z0-9']+"), behavior="removed", invert=True)
    for text in [*_GLUE, *WORDS, *(n for synonyms in names for n in synonyms)]:
        for word, _ in splitter.pre_tokenize_str(text.lower()):
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )
