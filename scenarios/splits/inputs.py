"""Images that a split evaluation is made on: still images or frames of a clip, and what they are to be told from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scenarios.evaluation import labels_for
from scenarios.run.inputs import VIDEOS, Inputs
from splitsight.data import draw_images
from splitsight.evaluators import Evaluator
from splitsight.names import printable
from splitsight.pictures import spread
from splitsight.targets import Target
from splitsight.video import default_video, open_source

__all__ = ["LEAST_GALLERY", "Pictures", "load_pictures"]

LEAST_GALLERY = 100
"""Images among which an original must at least be looked for: to be the first of a few says little."""


@dataclass(frozen=True)
class Pictures:
    """What an evaluation looks at.

    Attributes:
        inputs: images, labels in the target's classes (−1 where unknown), rivals.
        source: what they are, for people.
        clip: they are frames of one clip, which are alike.
        matching: why no original is looked for among others, and what to do; empty where one is.
        labelling: why the labels are not used, likewise.
    """

    inputs: Inputs
    source: str
    clip: bool
    matching: str = ""
    labelling: str = ""

    def labels_for(self, evaluator: Evaluator, target: Target) -> Tensor:
        """``(N,)`` int64, the labels in an evaluator's classes; −1 where it has no class of the target's by name."""
        labels = torch.from_numpy(self.inputs.labels)
        known = {name.casefold() for names in evaluator.synonyms for name in names}
        shared = any(name.casefold() in known for names in target.synonyms for name in names)
        return labels_for(evaluator, labels, target.synonyms) if shared else torch.full_like(labels, -1)


def load_pictures(
    target: Target,
    images: Path | None = None,
    *,
    limit: int,
    gallery: Path | None = None,
    gallery_size: int = 1000,
    seed: int = 0,
) -> Pictures:
    """Read the images, and draw what they are to be told from.

    Args:
        target: says their size and the names of classes.
        images: folder, image or Parquet file, or a video; by default the clip that comes with the package.
        limit: at most so many, drawn at random; frames of a clip are evenly spread.
        gallery: distractors; by default the other images of the source, where it has enough of them.
        gallery_size: images that an original is found among, itself included.
        seed: of the draws.

    Raises:
        UserError: nothing readable there.
    """
    size, path = target.input_size, images or default_video()
    clip = path.is_file() and path.suffix.lower() in VIDEOS
    labelling = ""
    if clip:
        frames, names = _frames(path, size, limit)
        labels, pool = np.full(len(frames), -1, np.int64), frames
        labelling = "frames of a clip have no labels"
        source = f"{len(frames)} frames of {'the clip ' if images is None else ''}{printable(path.name)}"
    else:
        drawn = draw_images(path, size, max(limit, 0 if gallery else gallery_size), seed)
        n = min(limit, len(drawn))
        frames, names, pool = drawn.images[:n], drawn.names[:n], drawn.images
        labels, labelling = _labels(drawn.stored_labels.known(target.synonyms)[:n], target)
        source = f"{n} images of {printable(path.name)}"
    rivals = len(pool) - 1 if not clip else 0
    if gallery is not None:
        own = {image.tobytes() for image in frames}
        others = draw_images(gallery, size, gallery_size - 1 + len(frames), seed).images
        others = np.stack([o for o in others if o.tobytes() not in own][: gallery_size - 1] or [frames[0]])
        pool, rivals = np.concatenate([others, frames]), len(others)
    matching = _unmatched(rivals + 1, clip and gallery is None)
    stills = rivals if gallery is not None else None
    if matching:  # nobody is anybody's rival
        pool, stills = frames, 0
    inputs = Inputs(
        frames,
        names,
        labels,
        pool,
        np.arange(len(frames)) + (stills or 0),
        gallery_size,
        seed,
        stills=stills,
        clips=[path.name] * len(frames) if clip else [],
    )
    return Pictures(inputs, source, clip, matching, labelling)


def _frames(path: Path, size: int, limit: int) -> tuple[np.ndarray, list[str]]:
    """Up to ``limit`` frames of a video, evenly spread over it, and their names."""
    with open_source(path, size=size) as video:
        found = [(frame.image, f"{frame.time_s:.2f} s") for frame in video]
    kept = [found[i] for i in spread(len(found), limit)]
    return np.stack([image for image, _ in kept]), [name for _, name in kept]


def _labels(labels: np.ndarray, target: Target) -> tuple[np.ndarray, str]:
    """Labels that the target's classes have, and otherwise why they are not used."""
    unknown = np.full(len(labels), -1, np.int64)
    classes = len(target.labels)
    if not (labels >= 0).any():
        return unknown, "the images have no labels that name the network's classes"
    if int(labels.max()) >= classes:
        return unknown, f"the labels go up to {int(labels.max())} and the network has {classes} classes"
    return labels, ""


def _unmatched(found: int, alike: bool) -> str:
    if alike:
        return (
            "whether an original is found first among a thousand images was not measured, since frames of one clip are "
            "too alike to be told apart: give other images with --gallery, or still images with --images"
        )
    if found < LEAST_GALLERY:
        return (
            f"whether an original is found first was not measured, since {found} images are too few to be told from: "
            "give a larger source with --images, or one with --gallery"
        )
    return ""
