"""A keyed permutation: channels, or all numbers, are sent in an order that only the holder of the key knows.

The server holds the key, since F2 needs the order: **whoever sits on the server sees the features as they are**. It
hides something from a tap on the line alone, as TLS does, and less: channels keep their statistics, so that an
attacker with F1 finds the order of many frames again by matching them (an assignment problem). A key that stays the
same is not drawn anew, so averaging over frames does not help nor hurt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Norms, Parameters, Protection, Scale
from splitsight.defenses._key import KeyParameters, generator
from splitsight.draws import Draws
from splitsight.features import FeatureSpec

__all__ = ["Permutation"]

Over = Literal["channels", "all"]


class _Parameters(KeyParameters):
    over: Over = Field(default="channels", description="what is permuted: channels, or all numbers of a tensor")


class _Orders(nn.Module):
    def __init__(self, specs: Sequence[FeatureSpec], orders: Sequence[Tensor], over: Over) -> None:
        super().__init__()
        self.specs, self.over = tuple(specs), over
        for i, order in enumerate(orders):
            self.register_buffer(f"order{i}", order)

    def apply_to(self, features: Features) -> Features:
        return tuple(self._moved(z, self.get_buffer(f"order{i}"), i) for i, z in enumerate(features))

    def _moved(self, z: Tensor, order: Tensor, i: int) -> Tensor:
        if self.over == "all":
            return z.flatten(1)[:, order].view_as(z)
        spec = self.specs[i]
        return spec.from_channels_last(spec.channels_last(z)[..., order])


class _Permuted(Protection):
    fresh = False

    def __init__(self, orders: _Orders, inverse: _Orders) -> None:
        super().__init__()
        self.orders, self.inverse = orders, inverse

    def forward(self, features: Features, draws: Draws) -> Features:
        return self.orders.apply_to(features)

    def opened(self, tapped: Features) -> Features:
        return self.inverse.apply_to(tapped)

    def carried(self, deviations: Sequence[Scale]) -> list[Scale]:
        """Of noise that differs between entries the root mean square: the order is secret."""
        return [d if not isinstance(d, Tensor) else float(d.square().mean().sqrt()) for d in deviations]


class _Restored(_Orders):
    def forward(self, features: Features) -> Features:
        return self.apply_to(features)


@DEFENSES.register("permutation")
class Permutation(Defense[_Parameters]):
    """Sends channels, or all numbers, in an order that a key determines; the server must hold the key."""

    name = "permutation"
    keyed: ClassVar[bool] = True
    Parameters: ClassVar[type[Parameters]] = _Parameters

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module]:
        """The order on the edge, its inverse on the server.

        Raises:
            UserError: no key.
        """
        p = self.parameters
        numbers = generator(p.key, f"permutation {p.over}")
        sizes = [spec.channels if p.over == "channels" else spec.numel for spec in specs]
        orders = [torch.from_numpy(numbers.permutation(n)) for n in sizes]
        inverse = _Restored(specs, [order.argsort() for order in orders], p.over)
        return _Permuted(_Orders(specs, orders, p.over), inverse), inverse

    def norms(self, before: Norms) -> Norms:
        """As before: another order is no other norm."""
        return before

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """Moving numbers is no operation on them."""
        return Cost()
