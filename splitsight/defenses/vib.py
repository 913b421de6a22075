r"""Variational information bottleneck: features are sent as draws of a distribution whose width is learned.

Alemi et al., ICLR 2017 (arXiv 1612.00410, equations 14 to 17). The edge sends z = μ + σ(μ) n with μ = F1(x), n standard
normal and log σ linear in a position's channels; what is minimised is the task's loss with draws of z plus

    β KL( N(μ, σ²) ‖ r ),    E KL ≥ I(X; Z) for any prior r.

r is normal with a mean and a width for each channel, which are learned, as the bound allows, so that the target's own
features, whose scale is not 1, may stay as they are. The divergence is in nats a number that is sent.

The bound is on the average information about images like the training's, of a training that was not adversarial: an
observation, no guarantee for one frame.
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

__all__ = ["Vib", "divergence"]

_FIRST_WIDTH = 0.1
"""σ before training, in units of each channel's spread."""


def divergence(mean: Tensor, log_width: Tensor, prior_mean: Tensor, prior_log_width: Tensor) -> Tensor:
    """KL of normal distributions in nats, elementwise: (σ² + (μ − m)²) / 2s² − ½ + log(s / σ)."""
    log_ratio = log_width - prior_log_width
    off = (mean - prior_mean) * (-prior_log_width).exp()
    return 0.5 * ((2 * log_ratio).exp() + off.square() - 1) - log_ratio


class _Settings(Settings):
    halves: Literal["both", "tail", "none"] = "both"
    weight: float = Field(default=0.3, ge=0, description="β, of the divergence in nats a number")


class _Stochastic(Protection):
    def __init__(self, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.maps = nn.ModuleList(nn.Linear(spec.channels, spec.channels) for spec in specs)

    def log_widths(self, features: Features) -> Features:
        """log σ of each tensor, of its shape."""
        return tuple(
            spec.from_channels_last(linear(spec.channels_last(z)))
            for spec, linear, z in zip(self.specs, self.maps, features, strict=True)
        )

    def forward(self, features: Features, draws: Draws) -> Features:
        """A draw; differentiable in mean and width."""
        return tuple(z + w.exp() * draws.normal(z) for z, w in zip(features, self.log_widths(features), strict=True))

    def deviations(self, features: Features) -> list[Scale]:
        """σ for each entry, as it follows from what the attacker has of the features; a batch's root mean square."""
        with torch.no_grad():
            return [w.exp().square().mean(0).sqrt() for w in self.log_widths(features)]


class _Information(Method):
    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.means = nn.ParameterList(torch.zeros(spec.channels) for spec in specs)
        self.log_widths = nn.ParameterList(torch.zeros(spec.channels) for spec in specs)

    @torch.no_grad()
    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """Narrow draws, and a prior that fits the features."""
        assert isinstance(edge, _Stochastic)
        for i, (spec, z) in enumerate(zip(self.specs, features, strict=True)):
            rows = spec.rows(z)
            spread = rows.std(0).clamp(min=1e-3 * float(rows.std()) + 1e-12)
            self.means[i].copy_(rows.mean(0))
            self.log_widths[i].copy_(spread.log())
            linear = edge.maps[i]
            assert isinstance(linear, nn.Linear)
            linear.weight.zero_()
            linear.bias.copy_((_FIRST_WIDTH * spread).log())

    def penalty(self, batch: Batch) -> Penalty:
        """The divergence from the prior."""
        assert isinstance(batch.edge, _Stochastic)
        total, count = batch.images.new_zeros(()), 0
        widths = batch.edge.log_widths(batch.features)
        for spec, mu, w, m, s in zip(self.specs, batch.features, widths, self.means, self.log_widths, strict=True):
            total = total + divergence(mu, w, spec.per_channel(m), spec.per_channel(s)).sum()
            count += mu.numel()
        nats = total / count
        return Penalty(self.settings.weight * nats, {"nats_per_number": nats})


@DEFENSES.register("vib")
class Vib(Learned):
    """Features drawn with a learned width, trained for little information about the image."""

    name = "vib"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Information

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """What gives the width."""
        return _Stochastic(specs), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """The linear map, an exponential, a product and a sum; drawing is not counted."""
        return Cost(sum((2 * spec.channels + 3) * spec.numel for spec in specs))
