"""net-db: the black-box counterpart of decoder-based optimisation, from features to the latent (equation 11)."""

from __future__ import annotations

from typing import ClassVar

from adversary.attacks._net_unet import UNetAttack
from adversary.attacks.base import ATTACKS
from adversary.attacks.blackbox import Windows
from adversary.blackbox.losses import PAPER

__all__ = ["NetDB", "NetDBMulti"]


@ATTACKS.register("net-db")
class NetDB(UNetAttack):
    """Black-box, decoder-based: a network from features to the prior's latent, trained on an oracle's answers."""

    name = "net-db"
    output = aim = "latent"
    trainings: ClassVar = {"tuned": {"lr": 4e-3, "value": 1.0}, "paper": PAPER}


@ATTACKS.register("net-db-multi")
class NetDBMulti(Windows, NetDB):
    """Black-box, decoder-based, on the frames of a window together (equation 13)."""

    name = "net-db-multi"
