r"""DISCO: a filter that leaves out the channels of each frame which give most of the image away.

Singh et al., CVPR 2021 (arXiv 2012.11025): a filter generator scores the channels of z from z itself; the share r of
them with the lowest scores is set to zero, another choice for each frame; the generator and the halves minimise the
task's loss minus λ times the loss of an attacker, here an inverter, who is trained in turn. Choosing has no gradient,
so that of a soft mask stands in for it (straight through): with the threshold t between the last kept and the first
dropped score,

    m_c = 1[s_c > t],   ∂m_c := ∂ sigmoid((s_c − t) / τ).

The zeros show in the tap: whoever attacks sees which channels were dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from splitsight.defenses import DEFENSES, Cost, Features, Protection
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.defenses.training.inverter import Inverter, image_similarity, inversion_loss
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["Disco"]

_HIDDEN = 64


class _Settings(Settings):
    halves: Literal["none", "tail", "both"] = "both"
    weight: float = Field(default=10.0, ge=0, description="λ")
    ratio: float = Field(default=0.5, gt=0, lt=1, description="r: share of the channels that is dropped")
    temperature: float = Field(default=0.5, gt=0, description="τ, in units of the scores' spread")
    width: int = Field(default=64, ge=8, description="channels of the inverter")


class _Filter(Protection):
    def __init__(self, specs: Sequence[FeatureSpec], ratio: float, temperature: float) -> None:
        super().__init__()
        self.specs, self.temperature = tuple(specs), temperature
        self.kept = [max(1, round(spec.channels * (1 - ratio))) for spec in specs]
        self.scorers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * spec.channels, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, spec.channels),
                nn.LayerNorm(spec.channels, elementwise_affine=False),
            )
            for spec in specs
        )

    def masks(self, features: Features) -> Features:
        """0 or 1 for each channel of each frame, ``(B, C)`` a tensor, with the soft mask's gradient."""
        found = []
        for spec, scorer, kept, z in zip(self.specs, self.scorers, self.kept, features, strict=True):
            rows = spec.channels_last(z).reshape(len(z), -1, spec.channels)
            spread = rows.std(1) if rows.shape[1] > 1 else torch.zeros_like(rows[:, 0])
            scores = scorer(torch.cat([rows.mean(1), spread], 1))
            order = scores.detach().sort(1, descending=True)
            threshold = order.values[:, kept - 1 : kept + 1].mean(1, keepdim=True)
            hard = torch.zeros_like(scores).scatter(1, order.indices[:, :kept], 1.0)
            soft = ((scores - threshold) / self.temperature).sigmoid()
            found.append(hard + (soft - soft.detach()))
        return tuple(found)

    def expected(self, features: Features) -> Features:
        """The kept channels, zeros for the others."""
        masked = []
        for spec, mask, z in zip(self.specs, self.masks(features), features, strict=True):
            last = spec.channels_last(z)
            shaped = mask.reshape(len(mask), *[1] * (last.ndim - 2), spec.channels)
            masked.append(spec.from_channels_last(last * shaped))
        return tuple(masked)

    def expected_on(self, features: Features, support: Features) -> Features:
        """The channels that were sent."""
        return tuple(z * mask for z, mask in zip(features, support, strict=True))

    def support(self, tapped: Features) -> Features:
        """Channels with a number other than 0."""
        found = []
        for spec, z in zip(self.specs, tapped, strict=True):
            last = spec.channels_last(z)
            alive = (last != 0).flatten(1, -2).any(1) if last.ndim > 2 else last != 0
            shaped = alive.reshape(len(alive), *[1] * (last.ndim - 2), spec.channels)
            found.append(spec.from_channels_last(shaped.expand_as(last)))
        return tuple(found)


class _Hidden(Method):
    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__(settings, specs, size)
        self.opponent: Inverter = Inverter(specs, size, settings.width)

    def penalty(self, batch: Batch) -> Penalty:
        """Minus the inverter's error; its images lie in [0, 1], so there is an end to it."""
        images = self.opponent(batch.sent)
        error = mse_loss(images, batch.images)
        values = {"inverter_ssim": image_similarity(images, batch.images), "inverter_mse": error}
        return Penalty(-self.settings.weight * error, values)

    def against(self, batch: Batch) -> Tensor:
        """The inverter's squared error."""
        return inversion_loss(self.opponent, batch.sent, batch.images)


@DEFENSES.register("disco")
class Disco(Learned):
    """A trained filter drops a share of the channels, chosen for each frame."""

    name = "disco"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Hidden

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """The filter.

        Raises:
            UserError: a tensor of one channel.
        """
        if any(max(1, round(spec.channels * (1 - settings.ratio))) >= spec.channels for spec in specs):
            raise UserError("disco drops no channel with this ratio at this split: give a larger ratio")
        return _Filter(specs, settings.ratio, settings.temperature), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """Means, spreads and scores; the zeros are sent, and shrink only under compression."""
        return Cost(sum(5 * spec.numel + 6 * _HIDDEN * spec.channels for spec in specs))
