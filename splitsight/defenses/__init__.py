"""Defences: what the edge does to the features before they leave it.

A defence is one file in this package (or in another, by the entry-point group ``splitsight.defenses``): a class that
derives from :class:`Defense`, registers itself with ``@DEFENSES.register("name")`` and declares its parameters as a
pydantic model. On the command line, in YAML and on the wire it is called by name and parameters, several joined by
``+`` in the order in which they are applied::

    clip:norm=20+gaussian:epsilon=8,delta=1e-5

Attackers are told which defence runs, with which parameters, never its random draws and never a key.

A guarantee needs two things in this order: a defence that bounds the norm of what crosses (``clip``), and noise that is
calibrated to that bound (:mod:`splitsight.accounting`). Between them nothing may enlarge the norm; each defence says
by :meth:`Defense.norms` what is left of the bound behind it. What comes after the noise is post-processing and changes
nothing (Dwork and Roth, The Algorithmic Foundations of Differential Privacy, 2014, proposition 2.1).
"""

from __future__ import annotations

from splitsight.defenses._base import (
    DEFENSES,
    Cost,
    Defense,
    Features,
    Law,
    Norms,
    Parameters,
    Place,
    Protection,
    Scale,
)
from splitsight.defenses._chain import Chain, parse_defense, weights_digest

__all__ = [
    "DEFENSES",
    "Chain",
    "Cost",
    "Defense",
    "Features",
    "Law",
    "Norms",
    "Parameters",
    "Place",
    "Protection",
    "Scale",
    "parse_defense",
    "weights_digest",
]
