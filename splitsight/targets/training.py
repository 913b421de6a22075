"""``splitsight train target``: ResNet-18 on 64 × 64 images, from shards to an embeddable folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from splitsight.artifacts import load_weights, save_weights
from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.targets import Normalize
from splitsight.targets._train import train_classifier
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

__all__ = ["train_target_command"]

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def train_target_command(
    *,
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    start: Path | None = None,
) -> Path:
    """Train (or go on training) the target in ``out/run``; write the model to ``out/model``.

    Args:
        data: Parquet file, or folder of them, in Hugging Face image format with ``classes.tsv``; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`).
        out: folder of the run.
        minutes: time budget, summed over resumed runs.
        steps: step budget.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights, order and crops.
        threads: CPU threads; PyTorch's default where not given.
        start: safetensors file of earlier weights to go on from, at a lower peak rate; random ones by default.

    Returns:
        The model's folder: ``model.safetensors``, ``config.json``, ``classes.tsv``, ``README.md``.

    Raises:
        UserError: no such data, or no budget.
    """
    from torchvision.models import resnet18

    if threads:
        torch.set_num_threads(threads)
    pictures = TrainingSet.open(data, labelled=True)
    classes = pictures.classes
    assert classes is not None
    count = sum(1 for line in classes.read_text().splitlines() if line.strip())
    torch.manual_seed(seed)
    budget = Budget(minutes * 60 if minutes else None, steps)
    model = resnet18(num_classes=count)
    if start is not None:
        try:
            model.load_state_dict(load_weights(start))
        except RuntimeError as error:
            raise UserError(
                f"{start} does not hold a ResNet-18 with {count} classes: give another --start, or none"
            ) from error
    state, figures = train_classifier(
        model,
        Normalize(_MEAN, _STD),
        pictures,
        out / "run",
        budget,
        lr=0.1 if start is None else 0.06,
        device=pick_device(device),
        seed=seed,
    )
    folder = out / "model"
    save_weights(folder / "model.safetensors", state)
    (folder / "config.json").write_text(
        json.dumps(
            {"architecture": "torchvision.resnet18", "num_classes": count, "input_size": 64, "mean": _MEAN, "std": _STD}
        )
        + "\n"
    )
    shutil.copyfile(classes, folder / "classes.tsv")
    write_card(
        folder,
        "resnet18 on 64 × 64 images",
        what=f"torchvision's ResNet-18 (7 × 7 stem, max-pooling), {count} classes, input 64 × 64, float16 weights.",
        data=f"{pictures.description}.",
        command="splitsight train target --data DIR"
        + (f" --minutes {minutes:g}" if minutes else "")
        + (f" --steps {steps}" if steps else "")
        + (" --start WEIGHTS" if start else ""),
        figures=figures,
        notes="Made to be attacked: a realistic, not a state-of-the-art classifier.",
    )
    return folder
