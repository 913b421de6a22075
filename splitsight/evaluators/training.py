"""``splitsight train evaluator``: the independent classifier, from shards to an embeddable folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from splitsight.artifacts import save_weights
from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.evaluators import EMBEDDED
from splitsight.evaluators.mbconv import build
from splitsight.files import write_text
from splitsight.targets import Normalize
from splitsight.targets._train import train_classifier
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

__all__ = ["train_evaluator_command"]

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_SIZE = 64
# a network a tenth of ResNet-18's size underfits: it wants less of a penalty
_WEIGHT_DECAY = 1e-4


def train_evaluator_command(
    *,
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
) -> Path:
    """Train (or go on training) the evaluator in ``out/run``; write the model to ``out/model``.

    Args:
        data: Parquet file, or folder of them, in Hugging Face image format with ``classes.tsv``; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`).
        out: folder of the run.
        minutes: time budget, summed over resumed runs.
        steps: step budget.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights, order and crops.
        threads: CPU threads; PyTorch's default where not given.

    Returns:
        The model's folder: ``model.safetensors``, ``config.json``, ``classes.tsv``, ``README.md``.

    Raises:
        UserError: no such data, or no budget.
    """
    if threads:
        torch.set_num_threads(threads)
    pictures = TrainingSet.open(data, labelled=True)
    classes = pictures.classes
    assert classes is not None
    count = sum(1 for line in classes.read_text(encoding="utf-8").splitlines() if line.strip())
    torch.manual_seed(seed)
    budget = Budget(minutes * 60 if minutes else None, steps)
    state, figures = train_classifier(
        build(count),
        Normalize(_MEAN, _STD),
        pictures,
        out / "run",
        budget,
        title="train evaluator",
        size=_SIZE,
        weight_decay=_WEIGHT_DECAY,
        seed=seed,
        device=pick_device(device),
    )
    folder = out / "model"
    save_weights(folder / "model.safetensors", state)
    config = {
        "name": EMBEDDED,
        "architecture": "mbconv",
        "num_classes": count,
        "input_size": _SIZE,
        "mean": _MEAN,
        "std": _STD,
    }
    write_text(folder / "config.json", json.dumps(config) + "\n")
    shutil.copyfile(classes, folder / "classes.tsv")
    write_card(
        folder,
        f"{EMBEDDED}, the evaluator",
        what=(
            f"A small network of inverted bottlenecks (`splitsight/evaluators/mbconv.py`), {count} classes, input "
            f"{_SIZE} × {_SIZE}, float16 weights. It measures what reconstructions give away; no attack uses it."
        ),
        data=f"{pictures.description}.",
        command="splitsight train evaluator --data DIR"
        + (f" --minutes {minutes:g}" if minutes else "")
        + (f" --steps {steps}" if steps else ""),
        figures=figures,
        notes="A measuring instrument: its top-1 on originals is about the most that reconstructions can reach.",
    )
    return folder
