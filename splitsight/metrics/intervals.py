"""Means with 95 % intervals, and percentiles; values that are not finite are left out, not averaged in.

The interval of a mean is Student's: mean ± t₀.₉₇₅(n−1) · s / √n, with s the sample standard deviation (n − 1); it ends
where the possible values end. For a part of all images (recognised or not) it is Wilson's (1927), which stays within
[0, 1] and has a width at 0 and 1 too: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.special import stdtrit  # the quantile of Student's t

__all__ = ["UNBOUNDED", "mean_interval", "percentile", "proportion_interval"]

UNBOUNDED = (-math.inf, math.inf)
_Z = 1.959963984540054


def _finite(values: Iterable[float]) -> np.ndarray:
    x = np.asarray([float(v) for v in values], np.float64)
    return x[np.isfinite(x)]


def mean_interval(values: Iterable[float], bounds: tuple[float, float] = UNBOUNDED) -> dict[str, float | None]:
    """``{"mean", "low", "high"}``: mean and 95 % t interval.

    Args:
        values: one an image; NaN and infinities are left out.
        bounds: lowest and highest possible value, where the interval ends.

    Returns:
        ``low = high = mean`` for a single value; all ``None`` where no finite value is left.
    """
    x = _finite(values)
    if len(x) == 0:
        return {"mean": None, "low": None, "high": None}
    mean = float(x.mean())
    half = float(stdtrit(len(x) - 1, 0.975)) * float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else 0.0
    return {"mean": mean, "low": max(mean - half, bounds[0]), "high": min(mean + half, bounds[1])}


def percentile(values: Iterable[float], q: float) -> float | None:
    """Percentile ``q`` in [0, 100], linear between order statistics; ``None`` where no finite value is left."""
    x = _finite(values)
    return float(np.percentile(x, q)) if len(x) else None


def proportion_interval(hits: Iterable[bool | None]) -> dict[str, float | None]:
    """``{"mean", "low", "high"}``: the part that is true, in [0, 1], and its 95 % Wilson interval.

    Args:
        hits: one an image; ``None`` (unknown) is left out.

    Returns:
        All ``None`` where nothing is known.
    """
    known = [bool(h) for h in hits if h is not None]
    n = len(known)
    if n == 0:
        return {"mean": None, "low": None, "high": None}
    p = sum(known) / n
    centre = p + _Z**2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # rounding would leave 10⁻¹⁷ where the bound is 0 or 1
    low = 0.0 if p == 0 else (centre - half) / scale
    high = 1.0 if p == 1 else (centre + half) / scale
    return {"mean": p, "low": low, "high": high}
