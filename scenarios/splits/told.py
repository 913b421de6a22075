"""What a split point tells without an attack, by :mod:`splitsight.leakage`.

* ``sensitivity``: tr(JᵀJ)/d, in the features' own unit;
* ``sensitivity_scaled``: the same with each tensor divided by its spread over the images, so that points compare;
* with noise on the features: ``dfil``, what follows from it for the mean squared error of attackers that are unbiased
  (``cramer_rao``) or of any (``van_trees``, for images that count as equal within :data:`TAU`), and ``fsinfo``;
* without: ``fsinfo_assumed``, FSInfo as if Gaussian noise of :data:`ASSUMED` of the features' spread were on them. It
  orders points and guarantees nothing, since there is no such noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenarios.splits.rows import row
from splitsight.errors import UserError
from splitsight.leakage import (
    Bound,
    Estimates,
    cramer_rao,
    dfil,
    fsinfo,
    jacobian_energy,
    prior_information,
    smoothed,
    van_trees,
)
from splitsight.pipeline import EdgePipeline

__all__ = ["ASSUMED", "TAU", "TITLES", "told"]

ASSUMED = 0.1
"""Deviation of the noise that ``fsinfo_assumed`` assumes, as a part of each tensor's spread."""
TAU = 0.1
"""Deviation, in [0, 1], within which images count as equal for van Trees' bound: 20 dB, about what attacks reach."""
Head = Callable[[Tensor], tuple[Tensor, ...]]
_FISHED = 4
"""Images that FSInfo is computed of: each takes as many passes as fifty of the other measures."""

TITLES = {
    "sensitivity": "sensitivity, tr(JᵀJ)/d",
    "sensitivity_scaled": "sensitivity by the features’ spread",
    "dfil": "dFIL",
    "cramer_rao": "MSE of unbiased attackers, at least",
    "van_trees": "MSE of any attacker, at least",
    "fsinfo": "FSInfo, nats a number",
    "fsinfo_assumed": f"FSInfo with {ASSUMED:.0%} noise assumed",
}
"""How tables call them."""


@torch.no_grad()
def _spreads(head: Head, images: Tensor) -> list[float]:
    """Standard deviation of each tensor over images and entries, never 0."""
    return [max(float(z.std(correction=0)), 1e-12) for z in head(images)]


def told(pipeline: EdgePipeline, images: Tensor, probes: int, seed: int) -> list[dict[str, Any]]:
    """Rows of a point.

    Args:
        pipeline: the edge; its codec plays no part.
        images: ``(N, 3, H, W)`` in [0, 1], of the size that F1 takes.
        probes: random vectors an image, ≥ 2.
        seed: of them.

    Raises:
        UserError: the features have no derivative by the images, or one that is not finite.
    """
    split, images = pipeline.split, images.to(pipeline.target.device)

    def head(x: Tensor) -> tuple[Tensor, ...]:
        features = pipeline.head(x)
        return tuple(pipeline.protection.expected(features)) if pipeline.defense else features

    energy = jacobian_energy(head, images, probes=probes, seed=seed)
    spreads = _spreads(head, images)
    rows = [*_each(split, "sensitivity", energy), *_each(split, "sensitivity_scaled", dfil(energy, spreads))]
    few = images[:_FISHED]
    whitened = _whitened(pipeline, head)
    noisy = whitened is not None and _has_noise(pipeline, head, images)
    name, seen, noise = ("fsinfo", whitened, 1.0) if noisy and whitened else ("fsinfo_assumed", head, None)
    try:
        sigma = ASSUMED * np.array(spreads) if noise is None else noise
        rows += _each(split, name, fsinfo(seen, few, sigma, seed=seed))
    except UserError as error:
        rows.append(row(split, "told", name, None, about=str(error)))
    if not noisy or whitened is None:
        return rows
    # in units of its noise F1 has noise of deviation 1
    leakage = dfil(jacobian_energy(whitened, images, probes=probes, seed=seed), 1.0)
    around = smoothed(images, TAU, seed)
    moved = dfil(jacobian_energy(whitened, around, probes=probes, seed=seed), 1.0)
    rows += _each(split, "dfil", leakage)
    rows += _bound(split, "cramer_rao", cramer_rao(leakage), len(images))
    return rows + _bound(split, "van_trees", van_trees(moved, prior_information(around, TAU).high), len(images))


def _whitened(pipeline: EdgePipeline, head: Head) -> Head | None:
    """F1 in units of the defence's noise; ``None`` where that is correlated, which no deviation describes.

    Laplace noise of deviation s has the Fisher information 2/s² about its mean, that of Gaussian noise of s/√2.
    """
    if not pipeline.defense:
        return None
    factor = math.sqrt(0.5) if pipeline.protection.law == "laplace" else 1.0
    with torch.no_grad():
        blank = head(torch.full((1, 3, pipeline.input_size, pipeline.input_size), 0.5, device=pipeline.target.device))
        if any(c is not None for c in pipeline.protection.covariances(blank)):
            return None

    def whitened(x: Tensor) -> tuple[Tensor, ...]:
        features = head(x)
        scales = _scales(pipeline, tuple(z.detach() for z in features))
        return tuple(z / (factor * s) for z, s in zip(features, scales, strict=True))

    return whitened


@torch.no_grad()
def _has_noise(pipeline: EdgePipeline, head: Head, images: Tensor) -> bool:
    """Whether each number that crosses has some: without it on one, dFIL is infinite."""
    return all(bool((s > 0).all()) for s in _scales(pipeline, head(images)))


@torch.no_grad()
def _scales(pipeline: EdgePipeline, features: tuple[Tensor, ...]) -> list[Tensor]:
    """Deviation of the noise on each number, frame by frame: it may go by the features of a frame."""
    rows = []
    for i in range(len(features[0])):
        frame = tuple(z[i : i + 1] for z in features)
        found = pipeline.deviations(frame)
        rows.append([torch.as_tensor(s).to(z).expand_as(z) for s, z in zip(found, frame, strict=True)])
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def _each(split: str, measure: str, found: Estimates | None) -> list[dict[str, Any]]:
    """A row an image, with the interval that the probes leave."""
    if found is None:
        return []
    pairs = zip(found.values.tolist(), found.errors.tolist(), strict=True)
    return [
        row(split, "told", measure, value, image=i, low=value - 1.96 * error, high=value + 1.96 * error)
        for i, (value, error) in enumerate(pairs)
    ]


def _bound(split: str, measure: str, bound: Bound | None, n: int) -> list[dict[str, Any]]:
    return [] if bound is None else [row(split, "told", measure, bound.mse, low=bound.low, high=bound.high, n=n)]
