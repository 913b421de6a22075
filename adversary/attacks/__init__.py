"""The attacks by name, one file each: short recipes over variables, terms and solvers.

An attack gets a :class:`Problem` (features of one frame, of a batch, or of a window) and answers with
images. To add one, add a file here, or another package declares one under the entry-point group
``splitsight.attacks``.
"""

from __future__ import annotations

from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction, check_features
from adversary.attacks.descent import cosine

__all__ = ["ATTACKS", "Attack", "Problem", "Reconstruction", "check_features", "cosine"]
