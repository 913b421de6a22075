r"""Conditional entropy maximisation: noise of a fixed strength, and features that leave little above it.

Xia et al., CVPR 2025 (arXiv 2503.00383). No attacker's mean squared error over d pixels is below

    exp(2 H(x | z) / d) / (2πe)    (theorem 1),

so H(x | z) is to be made large. The edge sends z = ẑ + ε, ε ~ N(0, σ² I), ẑ = F1(x), and H(x | z) = H(x) − I(x; z).
With ẑ as a mixture of k Gaussians of weights π_i and covariances Σ_i, the entropy of z is at most that of its component
and of its place in it together, so

    I(x; z) = H(z) − H(ε) ≤ Σ_i π_i ( −log π_i + ½ log( |Σ_i + σ² I| / |σ² I| ) ),

which is the penalty, in nats a number. Of each Σ_i only the diagonal is estimated: by Hadamard's inequality the
determinant is no larger than its product, so the bound stays one. Components are the nearest of k centroids, which
follow the features by online k-means; Σ_i is taken around them over a batch, so with few frames a component the figure
is an estimate of the bound. σ is a part of the undefended features' spread and does not grow with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from splitsight.defenses import DEFENSES, Cost, Features, Protection, Scale
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Cem", "information_bound"]

_MOMENTUM = 0.95


def information_bound(rows: Tensor, centroids: Tensor, nearest: Tensor, variance: Tensor | float) -> Tensor:
    """Upper bound on the information about the image, in nats a frame; differentiable in the features.

    Args:
        rows: features without noise, ``(N, D)``.
        centroids: ``(k, D)``.
        nearest: component of each row, ``(N,)``.
        variance: of the noise: one number, or ``(D,)``.
    """
    total = rows.new_zeros(())
    for i in nearest.unique().tolist():
        own = rows[nearest == i]
        share = len(own) / len(rows)
        spread = (own - centroids[i]).square().mean(0)
        total = total + share * (0.5 * torch.log1p(spread / variance).sum() - torch.tensor(share).log())
    return total


class _Settings(Settings):
    halves: Literal["both"] = "both"
    weight: float = Field(default=1.0, ge=0, description="λ, of the bound in nats a number")
    noise: float = Field(default=0.3, gt=0, description="σ in units of each tensor's spread before training")
    components: int = Field(default=8, ge=1, description="k")


class _Noise(Protection):
    sigmas: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.zeros(count))

    def forward(self, features: Features, draws: Draws) -> Features:
        """With fresh noise."""
        return tuple(z + s * draws.normal(z) for z, s in zip(features, self.sigmas, strict=True))

    def deviations(self, features: Features) -> list[Scale]:
        """The same for all entries of a tensor."""
        return [float(s) for s in self.sigmas]


class _Entropy(Method):
    centroids: Tensor

    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.register_buffer("centroids", torch.zeros(settings.components, sum(spec.numel for spec in specs)))

    @torch.no_grad()
    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """The noise's strength, and the first frames as centroids."""
        assert isinstance(edge, _Noise)
        edge.sigmas.copy_(torch.stack([self.settings.noise * z.std() for z in features]))
        first = _rows(features)
        self.centroids.copy_(first[torch.arange(len(self.centroids)) % len(first)])

    def penalty(self, batch: Batch) -> Penalty:
        """The bound; in training the centroids follow."""
        assert isinstance(batch.edge, _Noise)
        rows = _rows(batch.features)
        sizes = torch.tensor([z[0].numel() for z in batch.features], device=rows.device)
        variance = batch.edge.sigmas.square().repeat_interleave(sizes)
        with torch.no_grad():
            nearest = torch.cdist(rows, self.centroids).argmin(1)
            if self.training:
                for i in nearest.unique().tolist():
                    self.centroids[i].lerp_(rows[nearest == i].mean(0), 1 - _MOMENTUM)
        nats = information_bound(rows, self.centroids.clone(), nearest, variance) / rows.shape[1]
        return Penalty(self.settings.weight * nats, {"nats_per_number": nats})


def _rows(features: Features) -> Tensor:
    return torch.cat([z.flatten(1) for z in features], 1)


@DEFENSES.register("cem")
class Cem(Learned):
    """Fixed noise, and halves trained so that little of the features stands out of it."""

    name = "cem"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Entropy

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """The noise."""
        return _Noise(len(specs)), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
