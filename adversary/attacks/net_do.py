"""net-do: the black-box counterpart of direct optimisation, a network from features to pixels (equation 11)."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from adversary.attacks._net_unet import UNetAttack
from adversary.attacks.base import ATTACKS
from adversary.attacks.blackbox import Windows
from adversary.blackbox.losses import pair_loss
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.training import Fit, Stage
from adversary.priors.prior import Text

__all__ = ["NetDO", "NetDOMulti"]


@ATTACKS.register("net-do")
class NetDO(UNetAttack):
    """Black-box, direct: a network from features to pixels, trained on an oracle's answers."""

    name = "net-do"
    output = aim = "pixels"
    prior_part = "none"

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """Equation 11; the pixels are the truth."""
        yield Stage(fit.network, pair_loss(fit.network.values, None), fit.network.values.lr, fit.generator())

    @classmethod
    def images(cls, network: AttackNetwork, value: Tensor, text: Text | None) -> Tensor:
        """As they are."""
        return value


@ATTACKS.register("net-do-multi")
class NetDOMulti(Windows, NetDO):
    """Black-box, direct, on the frames of a window together (equation 13)."""

    name = "net-do-multi"
