"""Measures that need somebody else's network: LPIPS and the Inception Score, by torchmetrics.

Neither network ships with this package and nothing is downloaded: where the weights are not on this machine the
answer is ``None``, and :func:`lpips_missing` and :func:`inception_missing` say what to put where.

* ``lpips`` (Zhang et al., 2018, arXiv 1801.03924): distance in the features of an ImageNet AlexNet, 0 for equal
  images, lower is closer.
* ``inception_score`` (Salimans et al., 2016, arXiv 1606.03498): ``exp E_x KL(p(y|x) ‖ p(y))``, from 1 to the number
  of classes. Taken with the published Inception network, or with any classifier, whose name it must then carry
  (``inception_score_<name>``): the figures are not comparable. All images are one split, so it depends on their
  number too: compare sets of the same size only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from splitsight.metrics.metric import Batch, Metric, register

__all__ = ["inception_missing", "inception_score", "lpips", "lpips_distance", "lpips_missing"]

_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_LEAST = 63
"""Pixels a side that AlexNet's pooling needs."""


def _hub(file: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _alexnet() -> Path:
    from torchvision.models import AlexNet_Weights

    return _hub(AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])


def lpips_missing() -> str | None:
    """Why there is no LPIPS here, as one sentence; ``None`` where there is."""
    if _alexnet().is_file():
        return None
    return f"LPIPS is left out: torchvision's AlexNet weights are not on this machine; put them at {_alexnet()}"


def inception_missing() -> str | None:
    """Why there is no Inception Score with the published network here; ``None`` where there is."""
    if find_spec("torch_fidelity") is None:
        return "the Inception Score with the published network is left out: the package torch-fidelity is not installed"
    if not _hub(_INCEPTION).is_file():
        return (
            "the Inception Score with the published network is left out: its weights are not on this machine; "
            f"put them at {_hub(_INCEPTION)}"
        )
    return None


@cache
def _lpips_network(weights: Path) -> nn.Module:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).net


def lpips_distance(reconstruction: Tensor, original: Tensor) -> Tensor:
    """LPIPS as a loss: differentiable, ``(B,)``, of images ``(B, 3, H, W)`` in [0, 1] with H, W ≥ 63.

    Raises:
        FileNotFoundError: its weights are not here; :func:`lpips_missing` says what to put where.
    """
    if (missing := lpips_missing()) is not None:
        raise FileNotFoundError(missing)
    return _lpips_network(_alexnet()).to(original.device)(reconstruction, original, normalize=True).flatten()


@torch.no_grad()
def lpips(reconstruction: Tensor, original: Tensor, *, batch: int = 64) -> Tensor | None:
    """LPIPS with AlexNet, ``(B,)`` float64; ``None`` where :func:`lpips_missing` says why.

    Args:
        reconstruction: ``(B, 3, H, W)`` in [0, 1] (clamped); H, W ≥ 63.
        original: likewise, same shape.
        batch: images at a time.

    Raises:
        ValueError: the shapes differ, or the images are too small.
    """
    if reconstruction.shape != original.shape or original.ndim != 4:
        raise ValueError(f"shapes {tuple(reconstruction.shape)} and {tuple(original.shape)} must be one (B, 3, H, W)")
    if min(original.shape[-2:]) < _LEAST:
        raise ValueError(f"LPIPS needs images of at least {_LEAST} pixels, not {tuple(original.shape[-2:])}")
    if lpips_missing() is not None:
        return None
    network = _lpips_network(_alexnet())
    parts = [
        network(a.float().clamp(0, 1), b.float().clamp(0, 1), normalize=True).flatten().double()
        for a, b in zip(reconstruction.split(batch), original.split(batch), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _measured(batch: Batch) -> Tensor | None:
    """LPIPS of a batch; ``None`` for images that AlexNet is too coarse for, as for all without its weights."""
    small = min(batch.original.shape[-2:]) < _LEAST
    return None if small else lpips(batch.reconstruction, batch.original)


register(
    Metric(
        name="lpips",
        title="LPIPS",
        fn=_measured,
        better="lower",
        digits=3,
        bounds=(0.0, math.inf),
        side="perception",
        place=20,
        missing=lpips_missing,
    )
)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@torch.no_grad()
def inception_score(
    images: Tensor, classifier: Callable[[Tensor], Tensor] | None = None, *, batch: int = 64
) -> float | None:
    """Inception Score of a set of images; ``None`` without images, or where :func:`inception_missing` says why.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1] (clamped).
        classifier: images in [0, 1] → logits ``(B, classes)``; the published Inception network where not given.
        batch: images at a time.
    """
    if len(images) == 0 or (classifier is None and inception_missing() is not None):
        return None
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it keeps what it is given
        if classifier is None:
            metric = InceptionScore(normalize=True, splits=1)
        else:
            metric = InceptionScore(_Function(classifier), splits=1)
        for part in images.split(batch):
            metric.update(part.float().clamp(0, 1))
        with torch.random.fork_rng(devices=[]):  # it shuffles, to no effect on a single split
            return float(metric.compute()[0])
