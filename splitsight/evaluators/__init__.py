"""Evaluators: classifiers that measure what a reconstruction gives away, and that no attack ever sees.

PSNR and SSIM reward a blur. An evaluator asks what a person would ask: is this recognisable as what it was, and can it
be told from a thousand other images? Its answers count as independent only because nothing under ``adversary`` may
import this package (a test holds that) and because its architecture is none of the attacked ones.
"""

from __future__ import annotations

import json
from pathlib import Path

from splitsight.artifacts import asset
from splitsight.errors import UserError
from splitsight.evaluators import efficientnet_lite0, mbconv
from splitsight.evaluators.evaluator import Evaluator
from splitsight.targets import Normalize, load_state, read_classes

__all__ = ["EMBEDDED", "Evaluator", "evaluator_names", "load"]

EMBEDDED = "mbconv"
"""Name of the evaluator that ships with the package."""

_ARCHITECTURES = {"mbconv": mbconv.build}


def evaluator_names() -> list[str]:
    """Names of the embedded evaluators, sorted."""
    folder = asset("evaluators")
    return sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file()) if folder.is_dir() else []


def load(evaluator: str | Path = EMBEDDED, classes: list[list[str]] | None = None) -> Evaluator:
    """Load an evaluator by name, or from the folder that ``splitsight train evaluator`` wrote.

    Args:
        evaluator: an embedded one's name, ``efficientnet-lite0``, or a folder: ``config.json``, ``model.safetensors``,
            ``classes.tsv``.
        classes: all names of each class of what is attacked; one that knows more classes than those may be restricted
            to them.

    Raises:
        UserError: there is none of that name, it is not installed, or the folder is incomplete or does not fit.
    """
    if evaluator == efficientnet_lite0.NAME:
        return efficientnet_lite0.EfficientNetLite0Evaluator(classes)
    given = Path(evaluator)
    folder = given if given.is_dir() else asset("evaluators", str(evaluator))
    if not (folder / "config.json").is_file():
        if given.is_dir():
            raise UserError(
                f"{given} is not an evaluator: it has no config.json; give a folder that `splitsight train evaluator` "
                "wrote"
            )
        if evaluator == EMBEDDED:
            raise UserError(
                f"the evaluator '{EMBEDDED}' is not in this installation: make one with "
                "`splitsight train evaluator` and give its folder"
            )
        known = "".join(f"{name}, " for name in [*evaluator_names(), efficientnet_lite0.NAME])
        raise UserError(
            f"unknown evaluator '{evaluator}': give {known}or a folder that `splitsight train evaluator` wrote"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        build = _ARCHITECTURES[config["architecture"]]
        model = build(int(config["num_classes"]))
        preprocess = Normalize(config["mean"], config["std"])
        size = int(config["input_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe an evaluator ({type(error).__name__}: {error}): retrain it "
            "with `splitsight train evaluator`"
        ) from error
    load_state(model, folder / "model.safetensors", name=f"the evaluator {folder.name}", classifier="classifier.weight")
    name = config.get("name") or folder.name
    return Evaluator(name, model, preprocess, read_classes(folder / "classes.tsv"), size)
