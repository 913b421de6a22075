"""What a defence costs and keeps, without any attack: utility, bytes, milliseconds, ε; and what a probe reads.

*Utility* is the task's own measure on labelled images (the part whose class is right), and without labels the part of
the images for which the answer is that of the undefended network.

*Attribute*: what can be told of a frame from its features alone that nobody asked the network for. Here the words that
:mod:`splitsight.captions` takes from pixels (colours, "dark", "grass", "plain background", …), read by a linear
probe: ridge regression, in closed form, from the mean features of 4 × 4 cells, trained on what the defence lets through
of an attacker's own pictures. Reported is the mean over words of the balanced accuracy, 0.5 for a guess.

*The class*, without pixels, is what F2 answers: whoever runs the server has it, and so it is the utility itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from scenarios.workbench import Workbench, edge_seeds
from splitsight.captions import WORDS
from splitsight.captions import measure as words_of
from splitsight.data import to_tensor
from splitsight.draws import Draws
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline
from splitsight.tasks import Task
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["measure", "probe", "utility"]

_AT_ONCE = 64
_TIMED = 15
_ENCODED = 16
_CELLS = 4
_RIDGE = 0.1
_COMMON = (0.05, 0.95)
"""Part of the images that a word must hold for to be asked about."""


@torch.no_grad()
def _outputs(models: Workbench, pipeline: EdgePipeline, images: Tensor, seed: int) -> Tensor | list[Any]:
    features = models.observe(pipeline, images, edge_seeds(seed, range(len(images))))
    parts = [
        pipeline.tail(tuple(z[i : i + _AT_ONCE].to(models.device) for z in features))
        for i in range(0, len(images), _AT_ONCE)
    ]
    return torch.cat(parts).cpu() if isinstance(parts[0], Tensor) else parts


def _same(task: Task, a: Tensor | list[Any], b: Tensor | list[Any]) -> float:
    """Part of the images with the same answer; for outputs without a best class their mean cosine similarity."""
    one, two = ([r.best() for out in _parts(x) for r in task.read(out)] for x in (a, b))
    if all(r is not None for r in [*one, *two]):
        return float(
            np.mean([x is not None and y is not None and x.index == y.index for x, y in zip(one, two, strict=True)])
        )
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean())


def _parts(outputs: Tensor | list[Any]) -> list[Any]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def utility(models: Workbench, pipeline: EdgePipeline, images: Tensor, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """``{"name", "n", "accuracy", "accuracy_undefended"}``.

    Args:
        models: with the target.
        pipeline: the edge with its defence, and the tail that goes with it.
        images: ``(N, 3, S, S)`` in [0, 1].
        labels: ``(N,)``, −1 where unknown: accuracy is that over the others.
        seed: of the defence's draws.
    """
    plain = models.pipeline(pipeline.split)
    defended, undefended = (_outputs(models, p, images, seed) for p in (pipeline, plain))
    task = models.target.task
    known = torch.from_numpy(labels >= 0)
    if known.any() and labels.max() < len(task.labels) and isinstance(defended, Tensor):
        assert isinstance(undefended, Tensor)
        truth = torch.from_numpy(labels)[known]
        found = [float(task.utility(out[known], truth)["top1"].mean()) for out in (defended, undefended)]
        return {"name": "accuracy", "n": int(known.sum()), "accuracy": found[0], "accuracy_undefended": found[1]}
    same = _same(task, defended, undefended)
    return {
        "name": "agreement with the undefended answer",
        "n": len(images),
        "accuracy": same,
        "accuracy_undefended": 1.0,
    }


def _pooled(features: Sequence[Tensor], specs: Sequence[FeatureSpec]) -> Tensor:
    grids = [spec.as_map(z) for z, spec in zip(features, specs, strict=True)]
    return torch.cat([adaptive_avg_pool2d(g, min(_CELLS, g.shape[-1])).flatten(1) for g in grids], 1).double()


def probe(train: Tensor, said: Tensor, test: Tensor, truth: Tensor) -> list[float | None]:
    """Balanced accuracy of a linear probe for each of W words; ``None`` for words that are too rare or too common.

    Both outcomes of a word weigh the same in the fit, ``min_w Σ c_i (x_iᵀ w − y_i)² + λ n ‖w‖²``.

    Args:
        train: ``(N, D)``.
        said: ``(N, W)`` of 0 and 1.
        test: ``(M, D)``.
        truth: ``(M, W)``.
    """
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    a, b = ((x - mean) / spread for x in (train, test))
    scale = a.shape[1] ** 0.5
    a, b = (torch.cat([x / scale, torch.ones(len(x), 1).to(x)], 1) for x in (a, b))
    found: list[float | None] = []
    for y, t in zip(said.T.double(), truth.T.double(), strict=True):
        if any(not _COMMON[0] <= float(v.mean()) <= _COMMON[1] for v in (y, t)):
            found.append(None)
            continue
        c = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        normal = (a * c[:, None]).T @ a / len(a) + _RIDGE / a.shape[1] * torch.eye(a.shape[1]).to(a)
        w = torch.linalg.solve(normal, (a * c[:, None]).T @ (2 * y - 1) / len(a))
        yes = b @ w > 0
        found.append(float((yes[t > 0].double().mean() + (~yes[t == 0]).double().mean()) / 2))
    return found


def _attribute(
    models: Workbench, pipeline: EdgePipeline, images: np.ndarray, others: np.ndarray, seed: int
) -> dict[str, Any] | None:
    if len(others) < _AT_ONCE:
        return None
    rows, said = [], []
    for k, pictures in enumerate((others, images)):
        seeds = edge_seeds(seed + k, range(len(pictures)))
        rows.append(_pooled(models.observe(pipeline, to_tensor(pictures), seeds), pipeline.specs))
        bits = [words_of(image) for image in pictures]
        said.append(torch.tensor([[b >> i & 1 for i in range(len(WORDS))] for b in bits]))
    each = probe(rows[0], said[0], rows[1], said[1])
    known = {word: value for word, value in zip(WORDS, each, strict=True) if value is not None}
    if not known:
        return None
    return {
        "name": "words for colours and backgrounds",
        "value": statistics.mean(known.values()),
        "guess": 0.5,
        "n": len(known),
    }


def _milliseconds(pipeline: EdgePipeline, image: Tensor, clock: Callable[[], float]) -> float:
    """Median time of what the edge does to one image: resize, F1, defence, encoding."""
    times = []
    for _ in range(_TIMED):
        begin = clock()
        with torch.no_grad():
            pipeline.encode(image)
        times.append(clock() - begin)
    return 1000 * statistics.median(times)


@torch.no_grad()
def _bytes(pipeline: EdgePipeline, images: Tensor, seeds: Sequence[int]) -> dict[str, float]:
    """Mean size of what leaves for an image: as it is, and packed by zstd."""
    features = pipeline.protected(images, Draws(seeds))
    own, found = pipeline.codec, {}
    try:
        for name, codec in (("bytes", own), ("bytes_zstd", replace(own, compression="zstd"))):
            pipeline.codec = codec
            found[name] = float(np.mean([sum(len(t.data) for t in each) for each in pipeline.encoded(features)]))
    finally:
        pipeline.codec = own
    return found


def measure(
    models: Workbench,
    split: str,
    defense: str,
    images: np.ndarray,
    labels: np.ndarray,
    others: np.ndarray,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """All of a defence at a split, as plain data.

    Args:
        models: with the target.
        split: its cut.
        defense: in canonical form.
        images: ``(N, S, S, 3)`` uint8 that utility is measured on.
        labels: ``(N,)``, −1 where unknown.
        others: pictures that a probe learns from, likewise.
        seed: of the defence's draws.
        clock: seconds.
    """
    pipeline = models.pipeline(split, defense)
    tensors = to_tensor(images)
    some = tensors[:_ENCODED].to(models.device)
    said = pipeline.accounting()
    return {
        "split": split,
        "defense": defense,
        "config": {part.name: part.parameters.model_dump(exclude_none=True) for part in pipeline.defense.parts}
        if defense != UNDEFENDED
        else {},
        "utility": utility(models, pipeline, tensors, labels, seed),
        "attribute": _attribute(models, pipeline, images, others, seed),
        "epsilon": said["epsilon"],
        "delta": said["delta"],
        "guarantees": said["guarantees"],
        **_bytes(pipeline, some, edge_seeds(seed, range(len(some)))),
        "edge_ms": _milliseconds(pipeline, some[:1], clock),
        "fresh": bool(pipeline.protection.fresh),
    }
