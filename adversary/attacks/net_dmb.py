"""net-dmb: the black-box counterpart of Algorithm 1, from features to the sampler's noise (equations 11 and 12)."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar

from torch import Tensor

from adversary.attacks._net_unet import UNetAttack
from adversary.attacks.base import ATTACKS, option
from adversary.attacks.blackbox import Windows
from adversary.blackbox.losses import PAPER, PairLoss, pair_loss
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.training import Fit, Stage
from adversary.priors.prior import Text
from splitsight.errors import UserError

__all__ = ["NetDMB", "NetDMBMulti"]


class _Training(PairLoss):
    steps: int = option(4, "of the sampler", ge=1)


@ATTACKS.register("net-dmb")
class NetDMB(UNetAttack):
    """Black-box, diffusion-model-based (equations 11 and 12): a network from features to the sampler's noise."""

    name = "net-dmb"
    output = aim = "noise"
    prior_part = "all"
    text = True
    Training = _Training
    trainings: ClassVar = {
        # the sampler costs four times the rest: with a quarter of each batch decoded it sees three times the batches
        "tuned": {"lr": 1e-3, "part": 0.25},
        "paper": {**PAPER, "steps": 20},
    }

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """Equation 11, or 12."""
        values, truths = fit.network.values, None
        if values.value:
            if not fit.network.prior.flow:
                raise UserError("only a flow-matching prior can tell the noise of a picture: train with --set value=0")
            truths = fit.truths(values.steps)
        yield Stage(fit.network, pair_loss(values, truths), values.lr, fit.generator())

    @classmethod
    def images(cls, network: AttackNetwork, value: Tensor, text: Text | None) -> Tensor:
        """Through the sampler."""
        return network.prior.generate(value, text, network.values.steps)


@ATTACKS.register("net-dmb-multi")
class NetDMBMulti(Windows, NetDMB):
    """Black-box, diffusion-model-based, on the frames of a window together (equation 13)."""

    name = "net-dmb-multi"
