"""What the live window's fits leave of images: what a denoiser of pixels learns from beside white noise.

The error of a fit is not white. What F1 does not see keeps the preview's error, what it sees has hardly any, and where
F1 folds, the fit has followed it. All of that depends on the image, so that the mean of all images with a given fit,
``E[x | fit]``, is a network's to learn and not a covariance's to say.

That mean is a blur, in which neither a person nor a classifier recognises anything. So a part of the loss is taken in
F1's features (:func:`splitsight.training.feature_distance`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adversary.attacks import ATTACKS
from adversary.attacks.base import Problem
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_for
from adversary.priors.prior import Prior
from splitsight.data import to_tensor
from splitsight.errors import UserError
from splitsight.files import writing
from splitsight.pipeline import EdgePipeline, Expected
from splitsight.targets import Target
from splitsight.training import feature_distance, flattened, progress_of

__all__ = ["Fits", "live_fits"]

CHUNK = 96
"""Images of a file."""
_BATCH = 8
_EVALUATIONS = (40, 30, 60)
"""On pixels, file by file: about what a live window has time for."""


@dataclass(frozen=True)
class Fits:
    """Images and their fits.

    Attributes:
        originals: ``(N, H, W, 3)`` uint8.
        fits: of the same images, likewise.
        levels: ``(N,)`` float32, the preview's measured error of a pixel where each was fitted, in units of [0, 1].
        pipeline: F1 whose features a denoised fit should share with its original.
    """

    originals: np.ndarray
    fits: np.ndarray
    levels: np.ndarray
    pipeline: EdgePipeline

    def __len__(self) -> int:
        return len(self.levels)

    def part(self, index: np.ndarray) -> Fits:
        """Those at these positions."""
        return replace(self, originals=self.originals[index], fits=self.fits[index], levels=self.levels[index])

    def parts(self) -> tuple[Fits, Fits]:
        """Those to train on, and every tenth, held out."""
        held = np.arange(len(self)) % 10 == 9
        return self.part(np.flatnonzero(~held)), self.part(np.flatnonzero(held))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Some of them, half mirrored: originals and fits ``(count, 3, H, W)`` in [0, 1], levels ``(count,)``."""
        index = rng.integers(len(self), size=count)
        mirrored = torch.from_numpy(rng.integers(2, size=count) == 1).view(-1, 1, 1, 1)
        pair = (to_tensor(images[index]) for images in (self.originals, self.fits))
        x, fit = (torch.where(mirrored, t.flip(-1), t) for t in pair)
        return x, fit, torch.from_numpy(self.levels[index])

    def feature_error(self, y: Tensor, x: Tensor) -> Tensor:
        """How far the features of images ``(B, 3, H, W)`` in [0, 1] are from their originals': one number."""
        with torch.no_grad():
            truth = self.pipeline.expected(x)
        return feature_distance(self.pipeline.expected(y), truth)


def live_fits(prior: Prior, target: Target, images: np.ndarray, count: int, folder: Path, *, seed: int = 0) -> Fits:
    """Fit images as ``window:map`` does, each alone, at every split that the prior has a preview network for.

    Half of them are flattened to look like video (:func:`splitsight.training.flattened`). Files of :data:`CHUNK` images
    in ``folder`` that are there are kept. Features are those of the middle one of these splits, the shallower of two.

    Args:
        prior: its decoder and preview networks are used.
        target: whose F1.
        images: to draw from, ``(N, H, W, 3)`` uint8, of the prior's size.
        count: images a split, rounded up to whole files.
        folder: of the files.
        seed: of the draws.

    Raises:
        UserError: there is no preview network with measured errors for any of the target's splits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = -(-count // CHUNK)
    found: list[Fits] = []
    pipelines: list[EdgePipeline] = []
    for place, split in enumerate(target.points()):
        pipeline = EdgePipeline(target, split)
        try:
            network = inversion_for(pipeline.description(), prior)
        except NoInversionNetwork:
            continue
        if network.pixels is None:
            continue
        pipelines.append(pipeline)
        with progress_of(f"live fits at {split}", files) as done:
            for k in range(files):
                file = folder / f"{split}-{k:04d}.npz"
                if not file.is_file():
                    rng = np.random.default_rng((seed, place, k))
                    chosen = images[rng.choice(len(images), size=min(CHUNK, len(images)), replace=False)]
                    chosen = flattened(chosen, 0.5, torch.Generator().manual_seed(seed + k))
                    fits = _fitted(prior, pipeline, network, chosen, _EVALUATIONS[k % len(_EVALUATIONS)], seed)
                    with writing(file) as partial, partial.open("wb") as stream:
                        np.savez(stream, originals=chosen, fits=fits)
                with np.load(file) as kept:
                    level = np.full(len(kept["fits"]), network.pixels.deviation, np.float32)
                    found.append(Fits(kept["originals"], kept["fits"], level, pipeline))
                done(1)
    if not found:
        raise UserError(
            f"no preview network of the prior '{prior.name}' for any split of {target.name} knows its errors: "
            "train one with `splitsight train inversion`, or leave out --fits"
        )
    arrays = (np.concatenate([getattr(f, name) for f in found]) for name in ("originals", "fits", "levels"))
    return Fits(*arrays, pipeline=pipelines[(len(pipelines) - 1) // 2])


def _fitted(
    prior: Prior, pipeline: EdgePipeline, network: InversionNetwork, images: np.ndarray, evaluations: int, seed: int
) -> np.ndarray:
    attack = ATTACKS.get("window").configured(
        "map", target=pipeline.target.name, split=pipeline.split, changes={"pixels": evaluations, "smoothing": 0.0}
    )
    known, specs = Expected(pipeline), pipeline.description().features
    fits = []
    for i in range(0, len(images), _BATCH):
        with torch.no_grad():
            features = list(pipeline(to_tensor(images[i : i + _BATCH])))
        problem = Problem(features, known, specs, prior=prior, initial=lambda: network, seed=seed, first=i)
        fits.append(attack.reconstruct(problem).images.detach().clamp(0, 1))
    return (torch.cat(fits) * 255).round().byte().permute(0, 2, 3, 1).numpy()
