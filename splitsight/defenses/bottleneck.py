"""A bottleneck of few channels at the cut: an encoder on the edge, a decoder on the server.

BottleFit (Matsubara et al., arXiv 2201.02693) and ResSFL (Li et al., CVPR 2022) put few channels where many crossed:
less traffic, and less to invert. Each position's C channels become k by a linear map, and C again by another:

    s = E z + e,   ẑ = D s + d,

with ``‖ẑ − F1(x)‖² / ‖F1(x)‖²`` as the penalty (BottleFit's first stage) beside the distillation of the outputs (its
second one), both at once. They start from the principal components of the features, the best linear choice for that
error, not at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from splitsight.defenses import DEFENSES, Cost, Features, Protection, Scale
from splitsight.defenses.training import Batch, Learned, Method, Penalty, Settings
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["Bottleneck"]

_MOST_CHANNELS = 4096
"""Beyond, the principal components take minutes and gigabytes."""


class _Settings(Settings):
    channels: int = Field(default=8, ge=1, description="channels that cross, of each tensor")
    weight: float = Field(default=1.0, ge=0, description="of the features' relative error")


class _Encoder(Protection):
    def __init__(self, specs: Sequence[FeatureSpec], channels: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.maps = nn.ModuleList(nn.Linear(spec.channels, channels) for spec in specs)

    def expected(self, features: Features) -> Features:
        """``(B, *shape)`` → the same with ``channels`` for C."""
        return tuple(
            _placed(spec, linear(spec.channels_last(z)))
            for spec, linear, z in zip(self.specs, self.maps, features, strict=True)
        )

    def carried(self, deviations: Sequence[Scale]) -> list[Scale]:
        """Variances add up along the map's rows; what the channels then have in common is left out."""
        found: list[Scale] = []
        for spec, linear, sigma in zip(self.specs, self.maps, deviations, strict=True):
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach()
            variance = spec.channels_last(weight.new_zeros(1, *spec.shape) + sigma) ** 2
            found.append(_placed(spec, variance @ weight.square().T).sqrt())
        return found


class _Decoder(nn.Module):
    def __init__(self, specs: Sequence[FeatureSpec], channels: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.maps = nn.ModuleList(nn.Linear(channels, spec.channels) for spec in specs)

    def forward(self, sent: Features) -> Features:
        """The inverse in shape."""
        return tuple(
            spec.from_channels_last(linear(s if spec.channel_axis is None else s.movedim(spec.channel_axis + 1, -1)))
            for spec, linear, s in zip(self.specs, self.maps, sent, strict=True)
        )


def _placed(spec: FeatureSpec, z: Tensor) -> Tensor:
    """``(B, positions…, k)`` → with k where the tensor has its channels."""
    return z if spec.channel_axis is None else z.movedim(-1, spec.channel_axis + 1)


class _Compact(Method):
    @torch.no_grad()
    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """Encoder and decoder from the principal components of the channels."""
        assert isinstance(edge, _Encoder) and isinstance(server, _Decoder)
        for spec, encoder, decoder, z in zip(self.specs, edge.maps, server.maps, features, strict=True):
            assert isinstance(encoder, nn.Linear) and isinstance(decoder, nn.Linear)
            rows = spec.rows(z)
            mean = rows.mean(0)
            _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
            axes = vectors[:, -encoder.out_features :]
            encoder.weight.copy_(axes.T)
            encoder.bias.copy_(-axes.T @ mean)
            decoder.weight.copy_(axes)
            decoder.bias.copy_(mean)

    def penalty(self, batch: Batch) -> Penalty:
        """What the decoded features lack of the undefended ones."""
        errors = [
            (r - z).square().sum() / z.square().sum().clamp(min=1e-12)
            for r, z in zip(batch.received, batch.original, strict=True)
        ]
        error = torch.stack(errors).mean()
        return Penalty(self.settings.weight * error, {"feature_error": error})


@DEFENSES.register("bottleneck")
class Bottleneck(Learned):
    """Few channels cross: a linear encoder on the edge, a decoder on the server, trained with both halves."""

    name = "bottleneck"
    Settings: ClassVar[type[Settings]] = _Settings
    Method: ClassVar[type[Method]] = _Compact

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """Encoder and decoder.

        Raises:
            UserError: no fewer channels than cross without it, or more than can be taken apart.
        """
        k, least, most = settings.channels, min(s.channels for s in specs), max(s.channels for s in specs)
        if k >= least:
            raise UserError(f"a bottleneck of {k} channels is none where {least} cross: give fewer channels")
        if most > _MOST_CHANNELS:
            raise UserError(
                f"a bottleneck is made for {_MOST_CHANNELS:,} channels at most, and {most:,} cross here: choose "
                "another split"
            )
        return _Encoder(specs, k), _Decoder(specs, k)

    def output_specs(self, specs: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
        """The same with fewer channels."""
        return tuple(_narrowed(spec, self.settings.channels) for spec in specs)

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """The linear maps, and what is saved."""
        before, after = sum(s.numel for s in specs), sum(s.numel for s in self.output_specs(specs))
        return Cost(sum(2 * s.numel * self.settings.channels for s in specs), after / before)


def _narrowed(spec: FeatureSpec, channels: int) -> FeatureSpec:
    if spec.channel_axis is None:
        return FeatureSpec(spec.name, (channels,))
    shape = tuple(channels if i == spec.channel_axis else n for i, n in enumerate(spec.shape))
    return FeatureSpec(spec.name, shape, spec.layout)
