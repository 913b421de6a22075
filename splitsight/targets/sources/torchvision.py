"""``torchvision:NAME``: torchvision's classifiers, with the input size and normalisation of their published weights.

``--weights`` is a name that torchvision has for weights of the network (``IMAGENET1K_V2``), which are taken from its
cache; a file, whose number of classes the network is built for; or ``random``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from splitsight.errors import UserError
from splitsight.targets import Normalize, Target, load_state, read_state
from splitsight.targets.sources import (
    RANDOM,
    as_file,
    check_run,
    classes_of,
    classifier_of,
    classify,
    no_such,
    seeded,
)

__all__ = ["ALIASES", "build"]

ALIASES: dict[str, dict[str, str]] = {
    "resnet18": {f"L{4 * i}": f"layer{i}" for i in range(1, 5)},
    # counted in convolutions: ends of the bottleneck blocks 4, 8, 12 and 16
    "resnet50": {"L12": "layer2.0", "L24": "layer3.0", "L36": "layer3.4", "L48": "layer4.2"},
    # ends of encoder blocks
    "vit_b_16": {f"L{i}": f"encoder.layers.encoder_layer_{i - 1}" for i in (3, 4, 5, 8)},
}
"""Split points that the literature names."""


def build(what: str, weights: Path | None, input_size: int | None) -> Target:
    """Build one of torchvision's classifiers.

    Args:
        what: torchvision's name of it.
        weights: a name of its weights, a file, or ``random``.
        input_size: side of the images; that of the weights by default.

    Raises:
        UserError: unknown network or weights, a file that is not there or does not fit, or another input size.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if what not in known:
        raise no_such("torchvision", what, known)
    published: Any = torchvision.models.get_model_weights(what)
    name = f"torchvision:{what}"
    if weights is None:
        raise UserError(
            f"{name} needs weights: give --weights with one of {', '.join(published.__members__)}, a file, or {RANDOM}"
        )
    entry: Any = published.__members__.get(str(weights))
    labels: list[str] = list((entry or published.DEFAULT).meta["categories"])
    if entry is not None:
        model = _published(what, entry)
    elif str(weights) == RANDOM:
        model = seeded(lambda: torchvision.models.get_model(what, weights=None))
    else:
        state = read_state(as_file(weights))
        with torch.device("meta"):
            count = classes_of(state, torchvision.models.get_model(what, weights=None))
        model = torchvision.models.get_model(what, weights=None, **({} if count is None else {"num_classes": count}))
        load_state(model, weights, name=name, classifier=classifier_of(model))
    # the resizing that comes first in the library's transforms is the edge's, to the size that they crop
    transforms = (entry or published.DEFAULT).transforms()
    size = input_size or int(transforms.crop_size[0])
    preprocess = Normalize(transforms.mean, transforms.std)
    task = classify(check_run(model, preprocess, size, name), labels, name)
    return Target(name, model, preprocess, task, size, ALIASES.get(what))


def _published(what: str, entry: Any) -> nn.Module:
    """With weights that are in torchvision's cache, loaded as torchvision does it."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    if not file.is_file():
        raise UserError(
            f"the weights {entry.name} of torchvision:{what} are not at {file}: fetch them with "
            f"`curl --create-dirs -o {file} {entry.url}`"
        )
    try:
        return torchvision.models.get_model(what, weights=entry)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise UserError(
            f"{file} does not hold the weights {entry.name} of torchvision:{what} ({type(error).__name__}): remove and "
            "fetch it again"
        ) from error
