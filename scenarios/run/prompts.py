"""Prompts of the text prior, made for each image from a template."""

from __future__ import annotations

import string

import numpy as np

from splitsight.captions import WORDS, measure
from splitsight.errors import UserError

__all__ = ["background", "check_template", "fill", "needs_label"]

_FIELDS = ("class", "other", "background")
_SCENERY = ("blue sky", "grass", "snow", "white background", "black background", "water", "plain background")


def check_template(template: str) -> None:
    """Whether a template can be filled.

    Raises:
        UserError: it names something else than ``{class}``, ``{other}``, ``{background}``.
    """
    for name in _names(template):
        if name not in _FIELDS:
            known = ", ".join(f"{{{f}}}" for f in _FIELDS)
            raise UserError(f"the prompt '{template}' asks for '{{{name}}}': a prompt may hold {known}")


def _names(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"the prompt '{template}' cannot be read ({error}): write {{{{ and }}}} for braces") from error


def needs_label(template: str) -> bool:
    """Whether the image's class must be known to fill it."""
    return bool({"class", "other"} & set(_names(template)))


def background(image: np.ndarray) -> str:
    """Words for what surrounds the object: scenery that the pixels show, else their colours.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    bits = measure(image)
    held = [word for i, word in enumerate(WORDS) if bits >> i & 1]
    return ", ".join([word for word in held if word in _SCENERY] or held)


def fill(template: str, image: np.ndarray, label: int, classes: list[str], seed: int) -> str:
    """The prompt for one image.

    Args:
        template: checked.
        image: ``(H, W, 3)`` uint8 RGB.
        label: class index, −1 where unknown.
        classes: their names.
        seed: which class ``{other}`` is.

    Raises:
        UserError: the class is needed and unknown.
    """
    if not template:
        return ""
    values = {}
    if needs_label(template):
        if not 0 <= label < len(classes):
            raise UserError(
                f"the prompt '{template}' needs the class of each image and the data have none that the target knows: "
                "give a Parquet file with a column 'label'"
            )
        other = int(np.random.default_rng(seed).integers(len(classes) - 1))
        values = {"class": classes[label], "other": classes[other + (other >= label)]}
    if "background" in _names(template):
        values["background"] = background(image)
    return template.format(**values)
