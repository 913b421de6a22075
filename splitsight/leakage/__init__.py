"""Leakage without an attack: what the derivative of F1 and the defence's noise say about any attacker.

Features ``z = F1(x) + σ n`` with n standard normal have the Fisher information ``JᵀJ/σ²`` about the image, J = ∂F1/∂x.
Everything here is made of it:

* :func:`jacobian_energy`: ``tr(JᵀJ)/d``, how much the features move with the image; no noise needed, no guarantee
  given;
* :func:`dfil`: the same in units of the noise, and :func:`cramer_rao`, the least error of *unbiased* attackers;
* :func:`van_trees`: the least error of any attacker, where the images' own distribution is smooth enough to know;
* :func:`fsinfo`: the whole determinant in place of the trace, in nats;
* :func:`rank_correlation`: whether any of them orders split points as attacks do.

**Without noise** on some tensor, :func:`dfil` and :func:`fsinfo` are infinite and return ``None``; the bounds of
``None`` are ``None``: nothing is guaranteed. What each says and does not say is in ``docs/leakage-measures.md``.
"""

from __future__ import annotations

from splitsight.leakage.correlation import rank_correlation
from splitsight.leakage.dfil import Bound, cramer_rao, dfil, van_trees
from splitsight.leakage.energy import Energy, jacobian_energy
from splitsight.leakage.estimates import Estimates
from splitsight.leakage.fsinfo import FSInfo, fsinfo
from splitsight.leakage.prior import PriorInformation, prior_information, smoothed

__all__ = [
    "Bound",
    "Energy",
    "Estimates",
    "FSInfo",
    "PriorInformation",
    "cramer_rao",
    "dfil",
    "fsinfo",
    "jacobian_energy",
    "prior_information",
    "rank_correlation",
    "smoothed",
    "van_trees",
]
