"""Which measure without an attack orders the points as attacks do: medians over images against the strongest attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scenarios.splits.figures import HEADLINES, Figures
from scenarios.splits.spec import leaks_more
from splitsight.leakage import rank_correlation

__all__ = ["Correlation", "correlations"]

_BOUNDS = ("cramer_rao", "van_trees")
"""Errors, which fall as leakage rises: functions of dFIL, and so ordered as it is."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over the points, with its 95 % interval.

    Attributes:
        told: the measure without an attack.
        attacked: the metric by which the strongest attack is taken.
        rho: in [−1, 1]; positive where the measure rises as the attack obtains more.
        low: lower end.
        high: upper end.
        n: points.
    """

    told: str
    attacked: str
    rho: float
    low: float
    high: float
    n: int


def correlations(figures: Sequence[Figures]) -> list[Correlation]:
    """Of each measure without an attack with each headline metric of the strongest attack.

    Args:
        figures: of the points; those without an attack, or without the measure, are left out pair by pair.

    Returns:
        None of a pair that has fewer than four points, or the same value at all of them.
    """
    names = dict.fromkeys(name for f in figures for name in f.middle if name not in _BOUNDS)
    found = []
    for told in names:
        for attacked in HEADLINES:
            sign = 1 if leaks_more(attacked) else -1
            pairs = [
                (f.middle[told], sign * (best[1].mean or 0.0))
                for f in figures
                if told in f.middle and (best := f.strongest(attacked))
            ]
            if pairs and all(map(math.isfinite, next(zip(*pairs, strict=True)))):
                x, y = zip(*pairs, strict=True)
                if (ranked := rank_correlation(x, y)) is not None:
                    found.append(Correlation(told, attacked, *ranked, len(pairs)))
    return found
