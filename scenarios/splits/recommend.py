"""Which of several split points to choose: dominance, limits, a rule, and which limit to relax.

A *candidate* has values by measure: latency, utility, and measures of leakage. Each measure has a direction
(:data:`RISES`): more of it is worse, as of latency, or better, as of utility. A candidate is *dominated* by one that is
no worse in each objective and better in one; those that nothing dominates are the Pareto front. A value that is not
known keeps no limit, and its candidate is not on the front: nothing can be said of it.

The rule (:func:`choose`) among the candidates that keep every limit:

1. without a limit on latency, those at most :data:`SLACK` slower than the fastest of them;
2. without a limit on utility, those whose utility is at most :data:`TOLERANCE` below the best of them;
3. of these the one that leaks least; ties go to the faster, then to the more useful one.

Whatever it chooses is on the front, unless a limit on a further measure excludes what dominates it.

Data processing bounds leakage from below (:func:`known_at_least`): where the features of a deeper point are a function
of those of a shallower one, an attacker who knows the network obtains at the shallower point at least what was obtained
at the deeper one. So a point does not look safe merely because an attack was not trained or tuned for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = [
    "LATENCY",
    "RISES",
    "SLACK",
    "TOLERANCE",
    "UTILITY",
    "Candidate",
    "Choice",
    "Limit",
    "Relaxed",
    "choose",
    "known_at_least",
    "pareto",
    "relaxed",
]

LATENCY, UTILITY = "latency_ms", "utility"
SLACK = 0.25
"""Part of the fastest candidate's latency that a candidate may take more, where latency has no limit."""
TOLERANCE = 0.01
"""Utility, of at most 1, that a candidate may lack of the best, where utility has no limit."""
RISES = {UTILITY: False}
"""Whether more is worse, for the measures of which less is; all others get worse as they rise."""


@dataclass(frozen=True)
class Candidate:
    """A split point.

    Attributes:
        split: its name.
        values: by measure; what is not known is left out, or not finite.
    """

    split: str
    values: Mapping[str, float]

    def cost(self, measure: str, rises: Mapping[str, bool] = RISES) -> float:
        """The value, turned so that less is better; NaN where it is not known."""
        value = self.values.get(measure, math.nan)
        return value if rises.get(measure, True) else -value


@dataclass(frozen=True)
class Limit:
    """What a candidate must keep.

    Attributes:
        measure: whose value is limited.
        value: the most, or of a measure that is better as it rises the least.
        option: how a user wrote it, without the value: ``--max-leakage ssim=``.
        rises: whether more is worse.
    """

    measure: str
    value: float
    option: str
    rises: bool = True

    def keeps(self, candidate: Candidate) -> bool:
        """Whether the candidate is known to be within the limit."""
        found = candidate.values.get(self.measure, math.nan)
        return found <= self.value if self.rises else found >= self.value  # NaN does neither


@dataclass(frozen=True)
class Relaxed:
    """A way to make room: these limits at these values admit ``split``.

    Attributes:
        limits: in place of those of the same option.
        split: the candidate that they admit.
        strain: the largest part by which one of them is moved, and the sum of all parts.
    """

    limits: tuple[Limit, ...]
    split: str
    strain: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """What the rule chose, and among what.

    Attributes:
        split: the candidate.
        admitted: candidates that keep every limit.
        near: those of them that are fast and useful enough for the rule to compare what they leak.
        unknown: admitted ones of which nothing is known of what they leak, though of others it is.
    """

    split: str
    admitted: tuple[str, ...]
    near: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def pareto(candidates: Sequence[Candidate], objectives: Iterable[str], rises: Mapping[str, bool] = RISES) -> set[str]:
    """Names of the candidates that no other one dominates.

    Args:
        candidates: of different names.
        objectives: measures; those that no candidate has a value of are left out.
        rises: as :data:`RISES`.
    """
    wanted = [m for m in objectives if any(math.isfinite(c.cost(m)) for c in candidates)]
    costs = {c.split: [c.cost(m, rises) for m in wanted] for c in candidates}
    known = {split: cost for split, cost in costs.items() if all(map(math.isfinite, cost))}
    return {
        split
        for split, own in known.items()
        if not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in known.values())
    }


def choose(
    candidates: Sequence[Candidate],
    limits: Sequence[Limit],
    leakage: str | None,
    *,
    rises: Mapping[str, bool] = RISES,
) -> Choice | None:
    """Apply the rule.

    Args:
        candidates: shallow first; each with a latency.
        limits: all are to be kept.
        leakage: the measure by which candidates leak more or less; ``None`` where nothing was measured.
        rises: as :data:`RISES`.

    Returns:
        ``None`` where no candidate keeps every limit; see :func:`relaxed`.
    """
    admitted = [c for c in candidates if all(limit.keeps(c) for limit in limits)]
    limited = {limit.measure for limit in limits}
    known = [c for c in admitted if leakage is None or math.isfinite(c.cost(leakage))] or admitted
    if not known:
        return None
    near = known
    # utility first: a fast candidate that is of no use must not set the pace
    for measure, slack in ((UTILITY, lambda best: best + TOLERANCE), (LATENCY, lambda best: best * (1 + SLACK))):
        costs = [cost for c in near if math.isfinite(cost := c.cost(measure, rises))]
        if measure not in limited and costs:
            most = slack(min(costs))
            near = [c for c in near if c.cost(measure, rises) <= most]

    def order(c: Candidate) -> tuple[float, ...]:
        costs = [0.0 if leakage is None else c.cost(leakage, rises), c.cost(LATENCY), c.cost(UTILITY, rises)]
        return tuple(cost if math.isfinite(cost) else math.inf for cost in costs)

    unknown = tuple(c.split for c in admitted if c not in known)
    names = [tuple(c.split for c in some) for some in (admitted, near)]
    return Choice(min(near, key=order).split, names[0], names[1], unknown)


def relaxed(candidates: Sequence[Candidate], limits: Sequence[Limit]) -> list[Relaxed]:
    """Ways to relax as few limits as possible, each by as little as possible, the least strain first.

    Args:
        candidates: none of which keeps all limits.
        limits: at least one.

    Returns:
        For each smallest set of limits whose change admits a candidate, the least change that does; empty where every
        candidate lacks a value that is limited.
    """
    for size in range(1, len(limits) + 1):
        ways = []
        for moved in combinations(limits, size):
            kept = [limit for limit in limits if limit not in moved]
            within = [c for c in candidates if all(limit.keeps(c) for limit in kept)]
            tried = [way for c in within if (way := _moved(c, moved)) is not None]
            ways += sorted(tried, key=lambda way: way.strain)[:1]
        if ways:
            return sorted(ways, key=lambda way: way.strain)
    return []


def _moved(candidate: Candidate, limits: Sequence[Limit]) -> Relaxed | None:
    """What these limits must become to admit a candidate."""
    moved, strain = [], []
    for limit in limits:
        value = candidate.values.get(limit.measure, math.nan)
        if not math.isfinite(value):
            return None
        # a limit that it keeps stays as it is
        new = limit.value if limit.keeps(candidate) else _outwards(value, limit.rises)
        moved.append(Limit(limit.measure, new, limit.option, limit.rises))
        strain.append(abs(new - limit.value) / max(abs(limit.value), 1e-9))
    return Relaxed(tuple(moved), candidate.split, (max(strain), sum(strain)))


def _outwards(value: float, up: bool, digits: int = 3) -> float:
    """A number of few digits that is no less than ``value``, or no more: what a person can type, and it still holds."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    steps = value / unit
    whole = math.ceil(steps - 1e-9) if up else math.floor(steps + 1e-9)
    rounded = float(f"{whole * unit:.{digits}g}")
    return rounded if (rounded >= value if up else rounded <= value) else value


def known_at_least(values: Sequence[float | None], rises: bool = True) -> list[float | None]:
    """What is known of each point of a chain from what was obtained at it and at the points behind it.

    Args:
        values: of a measure of leakage, shallow first; ``None`` where nothing was measured.
        rises: whether a higher value is more leakage.

    Returns:
        At each place the worst of its own value and all later ones; ``None`` where none is known.
    """
    found: list[float | None] = []
    worst: float | None = None
    for value in reversed(values):
        if value is not None and math.isfinite(value):
            worst = value if worst is None else (max if rises else min)(worst, value)
        found.append(worst)
    return found[::-1]
