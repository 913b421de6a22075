"""Networks that are no registered family: one file a source, each with ``build(what, weights, input_size) → Target``.

A source is chosen by the prefix of a specification (:mod:`splitsight.specification`). Nothing here reaches for a
network: weights are in a file, in a folder, or in the cache of the library that they belong to; where they are not, one
sentence names the file and the command that fetches it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from splitsight.errors import UserError
from splitsight.tasks.classify import Classify

__all__ = [
    "RANDOM",
    "as_file",
    "check_run",
    "classes_of",
    "classifier_of",
    "classify",
    "imagenet_labels",
    "no_such",
    "seeded",
]

T = TypeVar("T")

RANDOM = "random"
"""What ``--weights`` takes for the weights that the architecture starts its training from; the same in each process."""


def seeded(build: Callable[[], T]) -> T:
    """Build a network whose random weights do not depend on the process; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def no_such(kind: str, name: str, known: Sequence[str]) -> UserError:
    """The error for a name that a library does not have; says which are like it."""
    close = difflib.get_close_matches(name, known, n=3)
    like = f"; those like it are {', '.join(close)}" if close else ""
    return UserError(f"{kind} has no classifier '{name}'{like}: give one that it has")


def classifier_of(model: nn.Module) -> str | None:
    """The last weight of a model, by convention its classifier's; ``None`` where it has no parameters."""
    return next(reversed([name for name, _ in model.named_parameters()]), None)


def classes_of(state: dict[str, Tensor], model: nn.Module) -> int | None:
    """Number of classes that a state dict was trained on, by the classifier of a model of the same architecture."""
    classifier = classifier_of(model)
    return len(state[classifier]) if classifier in state else None


@torch.no_grad()
def check_run(model: nn.Module, preprocess: nn.Module, input_size: int, name: str) -> Tensor:
    """What a model makes of a batch of two black images.

    Args:
        model: takes preprocessed images; set to eval mode.
        preprocess: images in [0, 1] → the model's input.
        input_size: side of the images.
        name: of the target, for messages.

    Raises:
        UserError: it does not take images of this size, or gives no single tensor.
    """
    try:
        output = model.eval()(preprocess(torch.zeros(2, 3, input_size, input_size)))
    except Exception as error:  # whatever the model's code raises
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} does not take RGB images of {input_size} × {input_size} ({type(error).__name__}: {why}): give the "
            "size that it was made for with --input"
        ) from error
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"the output of {name} for two images is {found}, which no task can read: give a module that returns one "
            "tensor with the batch first, or let the callable return a Target with a task of its own"
        )
    return output


def classify(output: Tensor, labels: Sequence[str], name: str) -> Classify:
    """The task of a classifier.

    Args:
        output: of a batch.
        labels: names of the classes; their numbers are used where the model has more or fewer.
        name: of the target, for messages.

    Raises:
        UserError: the output is no logits.
    """
    if output.ndim != 2:
        raise UserError(
            f"the output of {name} is {tuple(output.shape)}, no logits (B, classes): let the callable return a Target "
            "with a task of its own"
        )
    count = output.shape[1]
    return Classify(labels if len(labels) == count else [str(i) for i in range(count)])


def imagenet_labels() -> list[str]:
    """Names of ImageNet's 1,000 classes, in the order in which all public networks have them (torchvision's list)."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return list(_IMAGENET_CATEGORIES)


def as_file(weights: Path) -> Path:
    """``weights`` if there is such a file.

    Raises:
        UserError: there is none.
    """
    if not weights.is_file():
        raise UserError(f"no weights at {weights}: check the path")
    return weights
