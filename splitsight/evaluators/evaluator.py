"""An evaluator: a classifier, and the questions that it answers of a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from splitsight.artifacts import digest
from splitsight.metrics import Match, matched

__all__ = ["Evaluator"]


class Evaluator:
    """A classifier in eval mode, and the questions it answers.

    Attributes:
        digest: SHA-256 over the weights that answer.
        network_digest: over all weights of the network that they are from, by which an attacked one is recognised.

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
        self.digest = self.network_digest = digest(model.state_dict())

    def side(self, images: Tensor) -> int:
        """Pixels a side that images are resampled to."""
        return self.input_size

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
        size = (self.side(images),) * 2
        if images.shape[-2:] != size:
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

    def distance(self, reconstruction: Tensor, original: Tensor) -> Tensor | None:
        """A perceptual distance of its own, ``(B,)``, of ``(B, 3, H, W)`` in [0, 1]; ``None`` where it has none."""
        return None

    def matched(self, reconstruction: Tensor, gallery: Tensor, true_index: Sequence[int] | Tensor) -> Match:
        """Rank the originals among a gallery by these features; see :func:`splitsight.metrics.matched`.

        Args:
            reconstruction: ``(B, 3, H, W)`` in [0, 1].
            gallery: images ``(G, 3, H, W)`` in [0, 1], or what :meth:`features` makes of them, ``(G, F)``.
            true_index: B positions of the right images in the gallery.
        """
        known = self.features(gallery) if gallery.ndim == 4 else gallery
        return matched(self.features(reconstruction), known, true_index, lambda features: features)
