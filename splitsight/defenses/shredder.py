r"""Shredder: noise that was learned not to hurt the task, of which each frame gets another.

Mireshghallah et al., ASPLOS 2020 (arXiv 1905.11814). M noise tensors n⁽¹⁾ … n⁽ᴹ⁾ are the only things that are trained;
F1 and F2 stay as they are. Each minimises the task's loss minus

    λ mean |n⁽ᵐ⁾| / √E[z²]   while   1/SNR = Var(n⁽ᵐ⁾) / E[z²]   is below its target,

so that noise grows until the wanted 1/SNR (the paper's in vivo privacy) and is then only shaped. They start as Laplace
noise of that strength. For each frame the edge draws one of them, and then fresh numbers from the Laplace distribution
that fits its values (location: median; scale: mean distance from it), which it puts in the order of the learned ones.

Nothing is proven of it. An attacker who has the file knows the mean over the M tensors and the spread between them
(:meth:`~splitsight.defenses.Protection.expected`, :meth:`~splitsight.defenses.Protection.deviations`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Laplace

from splitsight.defenses import DEFENSES, Cost, Features, Protection, Scale
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Shredder"]


class _Settings(Settings):
    halves: Literal["none", "tail"] = "none"
    own_rate: float = Field(default=1e-2, gt=0)
    weight: float = Field(default=1.0, ge=0, description="λ")
    inverse_snr: float = Field(default=1.0, gt=0, description="wanted variance of the noise in units of E[z²]")
    tensors: int = Field(default=16, ge=2, description="M")


class _Noise(Protection):
    def __init__(self, specs: Sequence[FeatureSpec], count: int) -> None:
        super().__init__()
        self.count = count
        self.noise = nn.ParameterList(torch.zeros(count, *spec.shape) for spec in specs)

    def forward(self, features: Features, draws: Draws) -> Features:
        """A learned tensor in training, where the gradient must reach it; otherwise fresh numbers in its order."""
        drawn = draws.uniform(features[0].flatten(1)[:, :1])[:, 0]
        which = (drawn * self.count).long().clamp(max=self.count - 1)
        chosen = [noise[which] for noise in self.noise]
        if not self.training:
            chosen = [_fresh(n, draws) for n in chosen]
        return tuple(z + n for z, n in zip(features, chosen, strict=True))

    def expected(self, features: Features) -> Features:
        """With the mean of the tensors."""
        return tuple(z + noise.mean(0) for z, noise in zip(features, self.noise, strict=True))

    def deviations(self, features: Features) -> list[Scale]:
        """Spread between the tensors, for each entry."""
        return [noise.detach().std(0) for noise in self.noise]


def _fresh(noise: Tensor, draws: Draws) -> Tensor:
    """Each ``(B, …)`` → numbers of the Laplace distribution that fits it, in its order."""
    flat = noise.flatten(1)
    middle = flat.median(1, keepdim=True).values
    scale = (flat - middle).abs().mean(1, keepdim=True)
    drawn = (middle + scale * draws.laplace(flat)).sort(1).values
    return drawn.gather(1, flat.argsort(1).argsort(1)).view_as(noise)


class _Shredding(Method):
    power: Tensor

    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.register_buffer("power", torch.ones(len(self.specs)))

    @torch.no_grad()
    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """Laplace noise of the wanted strength, from a fixed seed."""
        assert isinstance(edge, _Noise)
        self.power.copy_(torch.stack([z.square().mean() for z in features]))
        generator = torch.Generator().manual_seed(0)
        for noise, power in zip(edge.noise, self.power, strict=True):
            # the variance of a Laplace distribution is 2 b²
            b = (self.settings.inverse_snr * power / 2).sqrt()
            uniform = torch.rand(noise.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(noise)
            noise.copy_(Laplace(torch.zeros_like(b), b).icdf(uniform))

    def penalty(self, batch: Batch) -> Penalty:
        """Minus the noise's size, of those tensors that are still too weak."""
        assert isinstance(batch.edge, _Noise)
        sizes, ratios = [], []
        for noise, power in zip(batch.edge.noise, self.power, strict=True):
            flat = noise.flatten(1)
            ratio = flat.var(1) / power
            weak = (ratio < self.settings.inverse_snr).to(flat)
            sizes.append((weak * flat.abs().mean(1)).sum() / power.sqrt())
            ratios.append(ratio.mean())
        return Penalty(-self.settings.weight * torch.stack(sizes).mean(), {"inverse_snr": torch.stack(ratios).mean()})


@DEFENSES.register("shredder")
class Shredder(Learned):
    """Learned noise tensors, one drawn for each frame; the halves stay as they are."""

    name = "shredder"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Shredding

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """The tensors."""
        return _Noise(specs, settings.tensors), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """An addition a number; drawing and sorting are not counted."""
        return Cost(flops=sum(spec.numel for spec in specs))
