"""Training a classification target on images it will later be attacked on the likes of.

Recipe: SGD with Nesterov momentum, one cycle, label smoothing, random crops; the resolution grows with
the spent budget (progressive resizing), which on a CPU buys about twice the epochs; the shipped weights
are an exponential moving average.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.data import to_tensor
from splitsight.training import Budget, Run, ema, one_cycle, random_crops
from splitsight.training_data import TrainingSet

__all__ = ["accuracy", "train_classifier"]

# (from this spent fraction on, resolution as a part of the full one, crop side range)
_STAGES = ((0.0, 0.5, (0.5, 1.0)), (0.35, 0.75, (0.6, 1.0)), (0.55, 1.0, (0.6, 1.05)))


def _stage(fraction: float) -> tuple[float, tuple[float, float]]:
    return next((part, scale) for start, part, scale in reversed(_STAGES) if fraction >= start)


@torch.no_grad()
def accuracy(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, preprocess: nn.Module, batch: int = 250
) -> dict[str, float]:
    """Top-1 and top-5 accuracy, each in [0, 1], of ``(N, H, W, 3)`` uint8 images."""
    model.eval()
    top1 = top5 = 0
    device = next(model.parameters()).device
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch])
        order = model(preprocess(x.to(device))).topk(5).indices.cpu()
        hit = order == torch.from_numpy(labels[i : i + batch])[:, None]
        top1 += int(hit[:, 0].sum())
        top5 += int(hit.sum())
    return {"top1": top1 / len(images), "top5": top5 / len(images)}


def train_classifier(
    model: nn.Module,
    preprocess: nn.Module,
    data: TrainingSet,
    out: Path,
    budget: Budget,
    *,
    title: str = "train target",
    size: int = 64,
    batch: int = 128,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[dict[str, Tensor], dict[str, float | int | bool]]:
    """Train, resuming from ``out`` where an earlier run stopped.

    Args:
        model: classifier taking normalised ``(B, 3, size, size)``.
        preprocess: maps images in [0, 1] to the model's input.
        data: labelled images; its held-out part is for validation.
        out: folder of the run.
        budget: when to stop.
        title: words for the progress line.
        size: pixels.
        batch: images a step.
        lr: peak learning rate.
        weight_decay: L2 penalty, not applied to biases and normalisation.
        seed: of the shuffling and the crops.
        device: where to train; CPU by default.

    Returns:
        The averaged weights, and figures: ``top1``, ``top5`` on held-out images, ``images_seen``,
        ``minutes``, ``finished``.
    """
    device = device or torch.device("cpu")
    images, held_images = data.images(size)
    labels, held_labels = data.classified(size)
    model.to(device).to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        momentum=0.9,
        nesterov=True,
    )
    # short: a longer average lags behind the anneal at the end (0.998 cost 1.7 points)
    average = ema(model, 0.99)
    generator = torch.Generator().manual_seed(seed)
    lossf = nn.CrossEntropyLoss(label_smoothing=0.1)
    running, correct, seen = 0.0, 0.0, 0
    with Run(out, budget, {"model": model, "average": average, "optimizer": optimizer}, title=title) as run:
        generator.manual_seed(seed + run.step)
        order, at = torch.randperm(len(images), generator=generator), 0
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(fraction, lr)
            if at + batch > len(order):
                order, at = torch.randperm(len(images), generator=generator), 0
            index = order[at : at + batch].numpy()
            at += batch
            part, scale = _stage(fraction)
            x = to_tensor(images[np.sort(index)]).to(device)
            y = torch.from_numpy(labels[np.sort(index)]).to(device)
            x = random_crops(x, int(size * part) // 8 * 8, scale, generator)
            model.train()
            logits = model(preprocess(x).contiguous(memory_format=torch.channels_last))
            loss = lossf(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            running += float(loss.detach()) * batch
            correct += float((logits.argmax(1) == y).sum())
            seen += batch
            if run.step % 200 == 199:
                extra = {}
                if run.step % 1000 == 999:
                    extra = {
                        f"val_{k}": v
                        for k, v in accuracy(average.module, held_images[:2000], held_labels[:2000], preprocess).items()
                    }
                run.log(loss=running / seen, train_top1=correct / seen, size=x.shape[-1], fraction=fraction, **extra)
                running, correct, seen = 0.0, 0.0, 0
    figures = accuracy(average.module, held_images, held_labels, preprocess)
    run.log(**{f"val_{k}": v for k, v in figures.items()})
    return average.module.state_dict(), {
        **figures,
        "images_seen": run.step * batch,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
