"""What the live window's fits leave of images: what a denoiser of pixels learns from beside white noise.

The error of a fit is not white. What F1 does not see keeps the preview's error, what it sees has hardly any, and where
F1 folds, the fit has followed it. All of that depends on the image, so that the mean of all images with a given fit,
``E[x | fit]``, is a network's to learn and not a covariance's to say.

That mean is a blur, in which neither a person nor a classifier recognises anything. So a part of the loss is taken in
F1's features (:func:`splitsight.training.feature_distance`): at the middle one of the target's points, and of what was
fitted deeper, where those leave much open, at the deepest one, too.
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

_ARRAYS = ("originals", "fits", "levels", "deep")
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
        deep: ``(N,)`` bool, whether it was fitted behind the middle point.
        middle: F1 to the middle one of the points, whose features every denoised fit should share with its original.
        deepest: F1 to the last one, whose features those that were fitted behind the middle should share, too.
    """

    originals: np.ndarray
    fits: np.ndarray
    levels: np.ndarray
    deep: np.ndarray
    middle: EdgePipeline
    deepest: EdgePipeline

    def __len__(self) -> int:
        return len(self.levels)

    def part(self, index: np.ndarray) -> Fits:
        """Those at these positions."""
        chosen = {name: getattr(self, name)[index] for name in _ARRAYS}
        return replace(self, **chosen)

    def parts(self) -> tuple[Fits, Fits]:
        """Those to train on, and every tenth, held out."""
        held = np.arange(len(self)) % 10 == 9
        return self.part(np.flatnonzero(~held)), self.part(np.flatnonzero(held))

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some of them, half mirrored: originals, fits ``(count, 3, H, W)`` in [0, 1]; levels, depth ``(count,)``."""
        index = rng.integers(len(self), size=count)
        mirrored = torch.from_numpy(rng.integers(2, size=count) == 1).view(-1, 1, 1, 1)
        pair = (to_tensor(images[index]) for images in (self.originals, self.fits))
        x, fit = (torch.where(mirrored, t.flip(-1), t) for t in pair)
        return x, fit, torch.from_numpy(self.levels[index]), torch.from_numpy(self.deep[index])

    def feature_error(self, y: Tensor, x: Tensor, deep: Tensor) -> Tensor:
        """How far the features of images are from their originals': one number, a mean over images.

        Args:
            y: images ``(B, 3, H, W)`` in [0, 1].
            x: their originals.
            deep: ``(B,)`` bool, whether features at the deepest point count too.
        """
        error = _distance(self.middle, y, x)
        if bool(deep.any()):
            error = error + deep.float().mean() * _distance(self.deepest, y[deep], x[deep])
        return error


def _distance(pipeline: EdgePipeline, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        truth = pipeline.expected(x)
    return feature_distance(pipeline.expected(y), truth)


def live_fits(prior: Prior, target: Target, images: np.ndarray, count: int, folder: Path, *, seed: int = 0) -> Fits:
    """Fit images as ``window:map`` does, each alone, at every split that the prior has a preview network for.

    Half of them are flattened to look like video (:func:`splitsight.training.flattened`). Files of :data:`CHUNK` images
    in ``folder`` that are there are kept. The middle point is that of these splits, the shallower of two.

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
    known = [(place, *both) for place, split in enumerate(target.points()) if (both := _known(target, split, prior))]
    if not known:
        raise UserError(
            f"no preview network of the prior '{prior.name}' for any split of {target.name} knows its errors: "
            "train one with `splitsight train inversion`, or leave out --fits"
        )
    middle = (len(known) - 1) // 2
    found: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
    for depth, (place, pipeline, network) in enumerate(known):
        assert network.pixels is not None
        with progress_of(f"live fits at {pipeline.split}", files) as done:
            for k in range(files):
                file = folder / f"{pipeline.split}-{k:04d}.npz"
                if not file.is_file():
                    rng = np.random.default_rng((seed, place, k))
                    chosen = images[rng.choice(len(images), size=min(CHUNK, len(images)), replace=False)]
                    chosen = flattened(chosen, 0.5, torch.Generator().manual_seed(seed + k))
                    fits = _fitted(prior, pipeline, network, chosen, _EVALUATIONS[k % len(_EVALUATIONS)], seed)
                    with writing(file) as partial, partial.open("wb") as stream:
                        np.savez(stream, originals=chosen, fits=fits)
                with np.load(file) as kept:
                    size = len(kept["fits"])
                    found["originals"].append(kept["originals"])
                    found["fits"].append(kept["fits"])
                    found["levels"].append(np.full(size, network.pixels.deviation, np.float32))
                    found["deep"].append(np.full(size, depth > middle))
                done(1)
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return Fits(**arrays, middle=known[middle][1], deepest=known[-1][1])


def _known(target: Target, split: str, prior: Prior) -> tuple[EdgePipeline, InversionNetwork] | None:
    """F1 and a preview network that knows its errors of pixels; ``None`` where there is none."""
    pipeline = EdgePipeline(target, split)
    try:
        network = inversion_for(pipeline.description(), prior)
    except NoInversionNetwork:
        return None
    return None if network.pixels is None else (pipeline, network)


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
