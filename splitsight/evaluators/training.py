"""``splitsight train evaluator``: the independent classifier, from shards to an embeddable folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.evaluators import EMBEDDED
from splitsight.evaluators.mbconv import build
from splitsight.recipes import Options
from splitsight.recipes._loop import train
from splitsight.recipes.classification import Classification
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

__all__ = ["train_evaluator_command"]


class _EvaluatorRecipe(Classification):
    name = EMBEDDED
    eight_bit = False
    # a network a tenth of ResNet-18's size underfits: it wants less of a penalty
    weight_decay = 1e-4

    def build(self, classes: int) -> nn.Module:
        return build(classes)


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
    budget = Budget(minutes * 60 if minutes else None, steps)
    recipe = _EvaluatorRecipe(Options(pictures, pick_device(device), seed))
    model, spent = train(recipe, out / "run", budget, title="train evaluator", seed=seed)
    folder = out / "model"
    recipe.save(folder, model)
    recipe.restore(folder, model)
    words = recipe.describe()
    write_card(
        folder,
        f"{EMBEDDED}, the evaluator",
        what=(
            f"A small network of inverted bottlenecks (`splitsight/evaluators/mbconv.py`), {words['what']} It measures "
            "what reconstructions give away; no attack uses it."
        ),
        data=words["data"],
        command="splitsight train evaluator --data DIR"
        + (f" --minutes {minutes:g}" if minutes else "")
        + (f" --steps {steps}" if steps else ""),
        figures={**recipe.measure(model), **spent},
        notes="A measuring instrument: its top-1 on originals is about the most that reconstructions can reach.",
    )
    return folder
