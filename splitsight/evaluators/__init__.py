"""Evaluators: classifiers that measure what a reconstruction gives away, and that no attack ever sees.

PSNR and SSIM reward a blur. An evaluator asks what a person would ask: is this recognisable as what it was, and can it
be told from a thousand other images? Its answers count as independent only because nothing under ``adversary`` may
import this package (a test holds that) and because its architecture is none of the attacked ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from splitsight.artifacts import asset, digest
from splitsight.errors import UserError
from splitsight.evaluators import mbconv
from splitsight.metrics import Match, matched
from splitsight.targets import Normalize, load_state, read_classes

__all__ = ["EMBEDDED", "Evaluator", "evaluator_names", "load"]

EMBEDDED = "mbconv"
"""Name of the evaluator that ships with the package."""

_ARCHITECTURES = {"mbconv": mbconv.build}


class Evaluator:
    """A classifier in eval mode, and the questions it answers.

    Args:
        name: shown in summaries; part of the name of the Inception-like score.
        model: normalised images → logits; ``body`` and ``classifier`` in sequence.
        preprocess: images in [0, 1] → the model's input.
        synonyms: all names of each class, in label order.
        input_size: side of the square input, in pixels; other sizes are resampled.
    """

    def __init__(
        self, name: str, model: nn.Sequential, preprocess: nn.Module, synonyms: list[list[str]], input_size: int
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocess = preprocess
        self.synonyms = synonyms
        self.labels = [names[0] for names in synonyms]
        self.input_size = input_size
        self.digest = digest(model.state_dict())

    @torch.no_grad()
    def features(self, images: Tensor, *, batch: int = 250) -> Tensor:
        """Penultimate features ``(B, F)`` of ``(B, 3, H, W)`` in [0, 1]."""
        parts = [self.model.get_submodule("body")(self._input(part)) for part in images.split(batch)]
        if parts:
            return torch.cat(parts)
        classifier = self.model.get_submodule("classifier")
        assert isinstance(classifier, nn.Linear)
        return torch.zeros(0, classifier.in_features)

    @torch.no_grad()
    def logits(self, images: Tensor, *, batch: int = 250) -> Tensor:
        """Logits ``(B, classes)`` of ``(B, 3, H, W)`` in [0, 1]."""
        return self.model.get_submodule("classifier")(self.features(images, batch=batch))

    def _input(self, images: Tensor) -> Tensor:
        images = images.float().clamp(0, 1)
        if images.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            images = interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return self.preprocess(images).contiguous(memory_format=torch.channels_last)

    def recognised(
        self, reconstruction: Tensor, labels: Sequence[int] | Tensor, originals: Tensor | None = None
    ) -> Tensor:
        """Whether each reconstruction is put into its class, ``(B,)`` bool.

        Where a label is unknown (−1: frames of a clip have none) the evaluator's own answer on the original takes its
        place: "seen as the same thing as the original", which is no statement about what the original is.

        Args:
            reconstruction: ``(B, 3, H, W)`` in [0, 1]; one that holds NaN is not recognised.
            labels: B class indices, −1 where unknown.
            originals: as ``reconstruction``; needed where a label is unknown.

        Raises:
            ValueError: not one label a reconstruction, or an unknown one without originals.
        """
        truth = torch.as_tensor(labels, dtype=torch.int64).clone()
        if truth.shape != (len(reconstruction),):
            raise ValueError(f"{len(reconstruction)} reconstructions need as many labels, not {tuple(truth.shape)}")
        unknown = truth < 0
        if bool(unknown.any()):
            if originals is None:
                raise ValueError("a label is unknown: the originals are needed in its place")
            truth[unknown] = self.logits(originals[unknown]).argmax(1)
        logits = self.logits(reconstruction)
        return (logits.argmax(1) == truth) & torch.isfinite(logits).all(1)

    def matched(self, reconstruction: Tensor, gallery: Tensor, true_index: Sequence[int] | Tensor) -> Match:
        """Rank the originals among a gallery by these features; see :func:`splitsight.metrics.matched`.

        Args:
            reconstruction: ``(B, 3, H, W)`` in [0, 1].
            gallery: images ``(G, 3, H, W)`` in [0, 1], or what :meth:`features` makes of them, ``(G, F)``.
            true_index: B positions of the right images in the gallery.
        """
        known = self.features(gallery) if gallery.ndim == 4 else gallery
        return matched(self.features(reconstruction), known, true_index, lambda features: features)


def evaluator_names() -> list[str]:
    """Names of the embedded evaluators, sorted."""
    folder = asset("evaluators")
    return sorted(p.name for p in folder.iterdir() if (p / "config.json").is_file()) if folder.is_dir() else []


def load(evaluator: str | Path = EMBEDDED) -> Evaluator:
    """Load an evaluator by name, or from the folder that ``splitsight train evaluator`` wrote.

    Args:
        evaluator: an embedded one's name, or a folder with ``config.json``, ``model.safetensors``, ``classes.tsv``.

    Raises:
        UserError: there is none of that name, or the folder is incomplete or does not fit.
    """
    given = Path(evaluator)
    folder = given if given.is_dir() else asset("evaluators", str(evaluator))
    if not (folder / "config.json").is_file():
        if given.is_dir():
            raise UserError(
                f"{given} is not an evaluator: it has no config.json; give a folder that `splitsight train evaluator` "
                "wrote"
            )
        if evaluator == EMBEDDED:
            raise UserError(
                f"the evaluator '{EMBEDDED}' is not in this installation: make one with "
                "`splitsight train evaluator` and give its folder"
            )
        known = "".join(f"{name}, " for name in evaluator_names())
        raise UserError(
            f"unknown evaluator '{evaluator}': give {known}or a folder that `splitsight train evaluator` wrote"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        build = _ARCHITECTURES[config["architecture"]]
        model = build(int(config["num_classes"]))
        preprocess = Normalize(config["mean"], config["std"])
        size = int(config["input_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe an evaluator ({type(error).__name__}: {error}): retrain it "
            "with `splitsight train evaluator`"
        ) from error
    load_state(model, folder / "model.safetensors", name=f"the evaluator {folder.name}", classifier="classifier.weight")
    name = config.get("name") or folder.name
    return Evaluator(name, model, preprocess, read_classes(folder / "classes.tsv"), size)
