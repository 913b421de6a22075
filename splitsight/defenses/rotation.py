"""A keyed rotation: the channels at each position are multiplied by an orthogonal matrix that a key determines.

``z ← Q z`` with Q drawn uniformly (the QR factor of a Gaussian matrix with positive diagonal, Mezzadri 2007), the same
at all positions and for all frames. The server holds the key and multiplies by ``Qᵀ``: **whoever sits on the server
sees the features as they are**. From a tap on the line, products between positions and frames stay the same
(``⟨Qz, Qz'⟩ = ⟨z, z'⟩``), and with enough frames whose features are known Q is solved for (orthogonal Procrustes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Norms, Parameters, Protection, Scale
from splitsight.defenses._key import KeyParameters, generator
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["Rotation"]

_LARGEST = 4096
"""Channels; more would take gigabytes."""


class _Rotations(nn.Module):
    def __init__(self, specs: Sequence[FeatureSpec], matrices: Sequence[Tensor]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        for i, matrix in enumerate(matrices):
            self.register_buffer(f"matrix{i}", matrix)

    def forward(self, features: Features) -> Features:
        return tuple(
            spec.from_channels_last(spec.channels_last(z) @ self.get_buffer(f"matrix{i}").T)
            for i, (spec, z) in enumerate(zip(self.specs, features, strict=True))
        )


class _Rotated(Protection):
    fresh = False

    def __init__(self, rotations: _Rotations, inverse: _Rotations) -> None:
        super().__init__()
        self.rotations, self.inverse = rotations, inverse

    def forward(self, features: Features, draws: Draws) -> Features:
        return self.rotations(features)

    def opened(self, tapped: Features) -> Features:
        return self.inverse(tapped)

    def carried(self, deviations: Sequence[Scale]) -> list[Scale]:
        """Of noise that differs between entries the root mean square: the rotation is secret."""
        return [d if not isinstance(d, Tensor) else float(d.square().mean().sqrt()) for d in deviations]


@DEFENSES.register("rotation")
class Rotation(Defense[KeyParameters]):
    """Rotates the channels at each position by a matrix that a key determines; the server must hold the key."""

    name = "rotation"
    keyed: ClassVar[bool] = True
    Parameters: ClassVar[type[Parameters]] = KeyParameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module]:
        """The rotation on the edge, its inverse on the server.

        Raises:
            UserError: no key, or too many channels.
        """
        if large := next((spec for spec in specs if spec.channels > _LARGEST), None):
            raise UserError(
                f"the defence rotation takes at most {_LARGEST} channels, and {large.name} has {large.channels}: "
                "choose permutation, or another split point"
            )
        numbers = generator(self.parameters.key, "rotation")
        matrices = [_orthogonal(numbers, spec.channels) for spec in specs]
        inverse = _Rotations(specs, [m.T.contiguous() for m in matrices])
        return _Rotated(_Rotations(specs, matrices), inverse), inverse

    def norms(self, before: Norms) -> Norms:
        """ℓ₂ stays as it is; ℓ₁ can grow."""
        kept = {order: c for order, c in before.bounds.items() if order == 2}
        # what is bounded in ℓ₁ is bounded in ℓ₂
        kept |= {2: c} if (c := before.bound(2)) is not None else {}
        return Norms(kept, before.why)

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A matrix product a position."""
        return Cost(flops=sum(2 * spec.channels * spec.numel for spec in specs))


def _orthogonal(numbers: np.random.Generator, n: int) -> Tensor:
    q, r = np.linalg.qr(numbers.standard_normal((n, n)))
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))
