"""The attacks by name, white-box and black-box alike, one file each: short recipes over variables, terms and solvers.

An attack gets a :class:`Problem` (features of one frame, of a batch, or of a window) and answers with a
:class:`Reconstruction`. To add one, add a file here, or another package declares one under the entry-point group
``splitsight.attacks``; :class:`Attack` says what it has to define.
"""

from __future__ import annotations

from adversary.attacks.base import (
    ATTACKS,
    Attack,
    Callback,
    Need,
    Problem,
    Reconstruction,
    Settings,
    check_features,
    option,
)

__all__ = [
    "ATTACKS",
    "Attack",
    "Callback",
    "Need",
    "Problem",
    "Reconstruction",
    "Settings",
    "check_features",
    "option",
]
