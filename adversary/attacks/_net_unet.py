"""What net-do, net-db and net-dmb share: one U-Net, aimed at different things (equation 11)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar

from torch import nn

from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.losses import PAPER, PairLoss, pair_loss
from adversary.blackbox.networks import Made
from adversary.blackbox.training import Fit, Stage
from adversary.blackbox.unet import FeatureUNet
from adversary.priors.prior import Prior

__all__ = ["UNetAttack"]


class UNetAttack(NetAttack):
    """A network of :mod:`adversary.blackbox.unet`.

    Attributes:
        output: what it is aimed at: ``pixels``, ``latent`` or ``noise``.
    """

    Training = PairLoss
    trainings: ClassVar = {"tuned": {}, "paper": PAPER}
    output: ClassVar[str]
    windows = True

    @classmethod
    def core(cls, made: Made, values: Any, prior: Prior) -> nn.Module:
        """F_u of equation 11."""
        shape = (3, made.image, made.image) if cls.output == "pixels" else prior.latent_shape
        return FeatureUNet(made.features, cls.output, shape, made.image, values.width)

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """Equation 11, or 12."""
        values = fit.network.values
        truths = fit.truths() if values.value else None
        yield Stage(fit.network, pair_loss(values, truths), values.lr, fit.generator())
