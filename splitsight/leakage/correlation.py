"""Does a measure order split points as attacks do? Spearman's rank correlation with an interval.

The interval is Fisher's, ``tanh(artanh ρ ± 1.96 √((1 + ρ²/2)/(n − 3)))``, with the variance of Bonett and Wright
(Psychometrika 65(1), 2000), which holds for rank correlations of few points where a bootstrap of ranks, full of ties,
does not. It takes points for independent; those of one network are nested, so it is rather too narrow for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["rank_correlation"]

_Z = 1.959963984540054
LEAST = 4
"""Points below which no interval exists: its width grows with 1/√(n − 3)."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Spearman's ρ and its 95 % interval, ``(rho, low, high)`` in [−1, 1].

    Args:
        x: one number a point; infinities have ranks, pairs with NaN are left out.
        y: the same.

    Returns:
        ``None`` for fewer than 4 pairs, or where one side is the same everywhere. For ρ = ±1 the interval starts at
        ±1 and ends where it would for the nearest smaller ρ (two neighbours exchanged), since perfect order among few
        points is no certainty.

    Raises:
        ValueError: another number of x than of y.
    """
    pairs = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    pairs = pairs[~np.isnan(pairs).any(1)]
    n = len(pairs)
    if n < LEAST or (pairs == pairs[0]).all(0).any():
        return None
    from scipy.stats import rankdata  # here, since it takes half a second to load

    ranks = np.asarray(rankdata(pairs, axis=0))
    rho = float(np.clip(np.corrcoef(ranks.T)[0, 1], -1, 1))
    inner = math.copysign(min(abs(rho), 1 - 12 / (n * (n**2 - 1))), rho)
    half = _Z * math.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(inner) + side) for side in (-half, half))
    return rho, min(low, rho), max(high, rho)
