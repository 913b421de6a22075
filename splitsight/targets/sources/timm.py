"""``timm:NAME``: classifiers of PyTorch Image Models (``pip install timm``), with their own size and normalisation.

``NAME.TAG`` are published weights, taken from the Hugging Face cache; ``--weights`` may name the tag instead, or a
file, whose number of classes the network is built for, or ``random``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from splitsight.errors import UserError
from splitsight.targets import Normalize, Target, load_state, read_state
from splitsight.targets.sources import (
    RANDOM,
    as_file,
    check_run,
    classes_of,
    classifier_of,
    classify,
    imagenet_labels,
    no_such,
    seeded,
)

__all__ = ["build"]

_FILE = "model.safetensors"


def build(what: str, weights: Path | None, input_size: int | None) -> Target:
    """Build one of timm's classifiers.

    Args:
        what: timm's name of it, with or without the tag of its weights.
        weights: a tag, a file, or ``random``; may be ``None`` where ``what`` has a tag.
        input_size: side of the images; that of the weights by default.

    Raises:
        UserError: timm is not installed, unknown network or weights, a file that is not there or does not fit, or
            another input size.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise UserError("timm is not installed: install it with `pip install timm`") from error
    name, (base, _, tag) = f"timm:{what}", what.partition(".")
    if base not in (known := timm.list_models()):
        raise no_such("timm", base, known)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if weights is None and not tag:
        given = f"one of {', '.join(tags)}, " if tags else ""
        raise UserError(f"{name} needs weights: give --weights with {given}a file, or {RANDOM}")
    if weights is not None and str(weights) in tags:
        tag, weights = str(weights), None
    if tag and tag not in tags:
        raise UserError(f"timm has no weights '{tag}' of {base}: give one of {', '.join(tags) or RANDOM}")
    full = f"{base}.{tag}" if tag else base
    settings: dict[str, Any] = {}
    state = None
    if weights is None:
        state = read_state(weights := _cached(timm, full))
    elif str(weights) != RANDOM:
        state = read_state(as_file(weights))
    if state is not None:
        with torch.device("meta"):
            count = classes_of(state, timm.create_model(full, pretrained=False))
        settings = {} if count is None else {"num_classes": count}
    model = seeded(lambda: timm.create_model(full, pretrained=False, **settings))
    if state is not None:
        load_state(model, weights, name=name, classifier=classifier_of(model))
    data = timm.data.resolve_model_data_config(model)
    preprocess, size = Normalize(data["mean"], data["std"]), input_size or int(data["input_size"][-1])
    task = classify(check_run(model, preprocess, size, name), imagenet_labels(), name)
    return Target(name, model, preprocess, task, size)


def _cached(timm: Any, full: str) -> Path:
    """The file of published weights in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    repository = timm.get_pretrained_cfg(full).hf_hub_id or f"timm/{full}"
    repository = repository if repository != "timm/" else f"timm/{full}"
    found = try_to_load_from_cache(repository, _FILE)
    if not isinstance(found, str):
        raise UserError(
            f"the weights of timm:{full} ({repository}, {_FILE}) are not in the Hugging Face cache: fetch them with "
            f"`hf download {repository} {_FILE}`"
        )
    return Path(found)
