"""``splitsight train target``: a target from data to an embeddable folder."""

from __future__ import annotations

from pathlib import Path

import torch

from splitsight.artifacts import digest
from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.recipes import RECIPES, Options
from splitsight.recipes._loop import train
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

__all__ = ["train_target_command"]


def train_target_command(
    name: str,
    *,
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    start: Path | None = None,
    teacher: str | None = None,
    photos: Path | None = None,
    bfloat16: bool = False,
) -> Path:
    """Train (or go on training) a target in ``out/run``; write the model to ``out/model``.

    Args:
        name: of the target, one of :data:`~splitsight.recipes.RECIPES`.
        data: Parquet file, or folder of them, in Hugging Face image format with ``classes.tsv``; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`).
        out: folder of the run.
        minutes: time budget, summed over resumed runs; on a CPU, minutes in which the training computes.
        steps: step budget.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights, order and crops.
        threads: CPU threads; PyTorch's default where not given.
        start: safetensors file of earlier weights to go on from, at a lower peak rate; random ones by default.
        teacher: target whose logits are learnt from beside the labels.
        photos: Parquet file of larger photographs, for recipes that paste objects on them.
        bfloat16: compute products in it while training.

    Returns:
        The model's folder: ``model.safetensors``, ``config.json``, ``classes.tsv``, ``README.md``.

    Raises:
        UserError: no such recipe or data, or no budget, or something given that the recipe does not take.
    """
    made = RECIPES.get(name)
    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    budget = Budget(minutes * 60 if minutes else None, steps, computing=where.type == "cpu")
    recipe = made(Options(TrainingSet.open(data, labelled=True), where, seed, start, teacher, photos))
    model, spent = train(recipe, out / "run", budget, title=f"train {name}", seed=seed, bfloat16=bfloat16)
    folder = out / "model"
    recipe.save(folder, model)
    recipe.restore(folder, model)
    words = recipe.describe()
    given = {
        "--teacher": teacher,
        "--photos": "PHOTOS" if photos else None,
        "--minutes": f"{minutes:g}" if minutes else None,
        "--steps": steps,
        "--start": "WEIGHTS" if start else None,
    }
    options = "".join(f" {key} {value}" for key, value in given.items() if value is not None)
    write_card(
        folder,
        f"{name} on 64 × 64 images",
        what=words["what"],
        data=words["data"],
        command=f"splitsight train target {name} --data DIR{options}{' --bfloat16' if bfloat16 else ''}",
        figures={
            "parameters": sum(p.numel() for p in model.parameters()),
            **recipe.measure(model),
            **spent,
            "digest": digest(model.state_dict())[:12],
        },
        notes=words["notes"],
    )
    return folder
