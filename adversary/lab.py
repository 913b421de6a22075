"""Images, their features at any split, and the models: for measurements in which the attacker also plays the edge.

The originals are kept to score answers with; no attack gets them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adversary.attacks import Problem
from adversary.blackbox.inversion import InversionNetwork, load_inversion
from adversary.priors.prior import EMBEDDED, Prior, load_prior
from splitsight import targets
from splitsight.artifacts import digest
from splitsight.data import load_images, to_tensor
from splitsight.devices import pick_device
from splitsight.errors import UserError, unknown_name
from splitsight.metrics import Batch, image_metrics, measure
from splitsight.metrics.gallery import SPACES
from splitsight.metrics.retrieval import matched
from splitsight.pipeline import resized

__all__ = ["Lab", "score"]


class Lab:
    """Loaded once for a measurement.

    Args:
        images: folder of PNG/JPEG, one such file, or Parquet in Hugging Face image format.
        limit: at most this many are read.
        tail: the last ones instead of the first, such as those that a training shard ends with.
        target: attacked network.
        weights: its weights; the embedded ones by default.
        prior: name or folder of the generative prior.
        inversions: folder of inversion networks named as ``splitsight train inversion`` names them; the embedded
            ones by default.
        device: where the attacks compute: ``auto``, ``cpu``, ``cuda``.

    Attributes:
        names: one an image.
        originals: ``(N, 3, H, W)`` in [0, 1], on the CPU.

    Raises:
        UserError: something is not there or does not fit.
    """

    def __init__(
        self,
        images: Path,
        limit: int | None = None,
        *,
        tail: bool = False,
        target: str = "resnet18",
        weights: Path | None = None,
        prior: str = EMBEDDED,
        inversions: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = pick_device(device)
        self.target = targets.load(target, weights).to(self.device)
        self.prior: Prior = load_prior(prior).to(self.device)
        found = load_images(images, self.target.input_size, limit, tail=tail)
        self.names, self.originals = found.names, to_tensor(found.images)
        self._inversions = inversions
        self.head = lru_cache(maxsize=None)(self.target.head)
        self.inversion = lru_cache(maxsize=None)(self._inversion)
        self._embedded = lru_cache(maxsize=None)(self._embed_originals)
        self._digests = {"target": self.target.digest, "prior": self.prior.digest}

    def __len__(self) -> int:
        return len(self.names)

    def _inversion(self, split: str) -> InversionNetwork:
        name = f"{self.target.name}-{split}-{self.prior.name}.safetensors"
        return load_inversion(
            self.target.name,
            split,
            self.prior.name,
            target_digest=self.target.digest,
            prior_digest=self.prior.latent_digest,
            path=None if self._inversions is None else self._inversions / name,
        ).to(self.device)

    def digests(self, splits: Iterable[str]) -> dict[str, str]:
        """SHA-256 of all weights by role, with the inversion network of each split that has one."""
        found = dict(self._digests)
        for split in splits:
            # an attack that needs the network says itself why it is not there
            with contextlib.suppress(UserError):
                found[f"inversion {split}"] = digest(self.inversion(split).state_dict())
        return found

    def problem(self, split: str, index: Sequence[int], **more: Any) -> Problem:
        """What an attacker knows of some images at a split; ``more`` goes to :class:`Problem`.

        Raises:
            UserError: no such split.
        """
        head: nn.Module = self.head(split)
        with torch.no_grad():
            features = [z.detach() for z in head(self.originals[list(index)].to(self.device))]
        more = {"prior": self.prior, "initial": lambda: self.inversion(split), "first": index[0], **more}
        return Problem(features, head, self.target.feature_specs(split), **more)

    @torch.no_grad()
    def _embed(self, images: Tensor, features: str) -> Tensor:
        if features not in SPACES:
            raise unknown_name("--match-features", features, list(SPACES))
        space = SPACES[features](self.target)
        return torch.cat([space.features(part).flatten(1) for part in images.cpu().split(250)])

    def _embed_originals(self, features: str) -> Tensor:
        return self._embed(self.originals, features)

    def ranks(self, images: Tensor, index: Sequence[int], features: str) -> list[int]:
        """The place of each original among all of this lab by similarity to its reconstruction, 1 for found first.

        Args:
            images: reconstructions ``(B, 3, H, W)`` in [0, 1].
            index: of their originals.
            features: a name out of :data:`splitsight.metrics.gallery.SPACES`.

        Raises:
            UserError: no such features.
        """
        gallery = self._embedded(features)
        return matched(self._embed(images, features), gallery, index, lambda rows: rows).ranks.tolist()


def score(images: Tensor, originals: Tensor) -> list[dict[str, float]]:
    """Quality of each reconstruction as it would be written to disk, with eight bits a channel.

    Args:
        images: ``(K, 3, S, S)`` in [0, 1], on any device, of any size.
        originals: ``(K, 3, H, H)``, on the CPU.
    """
    stored = (resized(images.detach().cpu(), originals.shape[-1]).clamp(0, 1) * 255).round() / 255
    table = measure(image_metrics(), Batch(reconstruction=stored, original=originals))
    return [
        {name: math.nan if values[i] is None else float(values[i]) for name, values in table.items()}
        for i in range(len(images))
    ]
