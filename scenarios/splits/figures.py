"""From rows to figures: each point's means with intervals, its latency over a network, and what is recommended."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scenarios.splits.points import SplitPoint, is_chain
from scenarios.splits.recommend import (
    LATENCY,
    RISES,
    UTILITY,
    Candidate,
    Choice,
    Limit,
    Relaxed,
    choose,
    known_at_least,
    pareto,
    relaxed,
)
from scenarios.splits.spec import leaks_more
from scenarios.splits.utility import AGREEMENT
from splitsight.metrics import Metric, mean_interval, proportion_interval
from splitsight.metrics.intervals import UNBOUNDED
from splitsight.network import FrameLatency, NetworkProfile, predict
from splitsight.summary import Interval

__all__ = ["HEADLINES", "PERCEPTUAL", "Figures", "Verdict", "figures_of", "headline", "latency", "verdict"]

HEADLINES = ("matched_top1", "recognised", "ssim", "psnr")
"""Measures of leakage by an attack, the one that says most first."""

PERCEPTUAL = ("lpips", "lite0_distance")
"""Distances in the features of somebody else's network, of which any may be missing."""

Row = Mapping[str, Any]


@dataclass
class Figures:
    """What was measured of a point.

    Attributes:
        point: which.
        bytes: of a frame's message, by codec.
        cost: by measure, ``edge_ms`` and ``cloud_ms`` (medians, with their quartiles), ``up_bytes`` and ``down_bytes``
            of a frame's and an answer's message.
        utility: of the cut network; all null where it was not measured.
        unsplit: of the uncut one.
        utility_name: what both are.
        difference: the largest between any two numbers of the cut and the uncut network's output.
        attacks: by attack and metric, over images.
        effort: seconds an image by attack.
        images: that each attack was tried on.
        told: measures without an attack, by name.
        middle: their medians over images, by which points are ordered: one image in eight can move a mean tenfold.
    """

    point: SplitPoint
    bytes: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Interval] = field(default_factory=dict)
    utility: Interval = field(default_factory=Interval)
    unsplit: Interval = field(default_factory=Interval)
    utility_name: str = AGREEMENT
    difference: float | None = None
    attacks: dict[str, dict[str, Interval]] = field(default_factory=dict)
    effort: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    told: dict[str, Interval] = field(default_factory=dict)
    middle: dict[str, float] = field(default_factory=dict)

    def strongest(self, measure: str) -> tuple[str, Interval] | None:
        """The attack that obtains most by a measure, and what; ``None`` where none was measured."""
        found = [
            (name, i) for name, metrics in self.attacks.items() if (i := metrics.get(measure)) and i.mean is not None
        ]
        sign = 1 if leaks_more(measure) else -1
        return max(found, key=lambda one: sign * (one[1].mean or 0.0), default=None)


def figures_of(points: Sequence[SplitPoint], rows: Iterable[Row], metrics: Sequence[Metric]) -> list[Figures]:
    """Figures of each point.

    Args:
        points: of the evaluation, shallow first.
        rows: all of it.
        metrics: that reconstructions were measured by.
    """
    by_split: dict[str, list[Row]] = defaultdict(list)
    for one in rows:
        by_split[one["split"]].append(one)
    return [_figures(point, by_split[point.name], metrics) for point in points]


def _values(rows: Iterable[Row], part: str, attack: str | None = None) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = defaultdict(list)
    for one in rows:
        if one["part"] == part and one["attack"] == attack:
            found[one["measure"]].append(one["value"])
    return found


def _figures(point: SplitPoint, rows: Sequence[Row], metrics: Sequence[Metric]) -> Figures:
    found = Figures(point)
    for one in (r for r in rows if r["part"] == "cost"):
        kind, _, codec = one["measure"].partition(":")
        if codec:
            found.bytes |= {} if one["value"] is None else {codec: one["value"]}
        else:
            found.cost[kind] = Interval(mean=one["value"], low=one["low"], high=one["high"])
    useful = _values(rows, "utility")
    if useful:
        names = [name for name in useful if f"unsplit:{name}" in useful]
        found.utility_name = names[0] if names else AGREEMENT
        found.utility = Interval(**_mean(useful[found.utility_name]))
        # against itself it is all there is
        found.unsplit = Interval(**_mean(useful[f"unsplit:{names[0]}"])) if names else Interval(mean=1.0)
        found.difference = useful["largest_difference"][0]
    for name, values in _values(rows, "told").items():
        bounds = UNBOUNDED if name.startswith("fsinfo") else (0.0, math.inf)
        known = [v for v in values if v is not None]
        found.told[name] = Interval(**mean_interval(known, bounds))
        found.middle |= {name: statistics.median(known)} if known else {}
    for one in rows:  # a bound has an interval of its own
        if one["part"] == "told" and one["image"] is None and one["value"] is not None:
            found.told[one["measure"]] = Interval(mean=one["value"], low=one["low"], high=one["high"])
    for attack in dict.fromkeys(one["attack"] for one in rows if one["part"] == "attack"):
        values = _values(rows, "attack", attack)
        own = {m.name: [m.value(v) for v in values[m.column]] for m in metrics if m.column in values}
        known = {m.name: Interval(**m.interval(own[m.name])) for m in metrics if m.name in own}
        found.attacks[attack] = {name: i for name, i in known.items() if i.mean is not None}
        effort = ("seconds", "iterations", "model_evaluations")
        found.effort[attack] = {key: _plain(values[key]) for key in effort}
        found.images[attack] = len(values["seconds"])
    return found


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of numbers, with Student's interval; of yes and no, Wilson's."""
    known = [v for v in values if v is not None]
    if known and all(v in (0.0, 1.0) for v in known):
        return proportion_interval([bool(v) for v in known])
    return mean_interval(known)


def _plain(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def latency(found: Figures, profile: NetworkProfile, slowdown: float = 1.0) -> FrameLatency | None:
    """From a captured frame to its answer over a network, in milliseconds; ``None`` where the cost is not known.

    Args:
        found: of a point.
        profile: of the network.
        slowdown: how many times longer the edge device takes than what was measured.
    """
    cost = {name: i.mean for name, i in found.cost.items()}
    if any(cost.get(key) is None for key in ("edge_ms", "cloud_ms", "up_bytes", "down_bytes")):
        return None
    time = predict(profile, cost["up_bytes"] or 1.0, cost["down_bytes"] or 1.0)
    # medians: they are what `splitsight bench link` compares with what it measures
    return FrameLatency((cost["edge_ms"] or 0.0) * slowdown, time.median_ms, cost["cloud_ms"] or 0.0)


def headline(figures: Sequence[Figures]) -> str | None:
    """The measure that says most of those by which an attack was measured; ``None`` where there was no attack.

    One by which all points are alike (every original is found first) gives way to the next one that tells them apart.
    """
    found = {m: {best[1].mean for f in figures if (best := f.strongest(m))} for m in HEADLINES}
    telling = [m for m, values in found.items() if len(values) > 1]
    return next(iter(telling + [m for m, values in found.items() if values]), None)


def leakage(figures: Sequence[Figures], measure: str, *, chain: bool) -> list[float | None]:
    """What is known to be obtained at each point by the strongest attacker.

    Args:
        figures: shallow first.
        measure: of an attack, or without one.
        chain: features of each point are a function of those before it, so that what was obtained behind it can be
            obtained at it, too.
    """
    if measure in figures[0].told or any(measure in f.told for f in figures):
        return [f.told[measure].mean if measure in f.told else None for f in figures]
    found = [None if (best := f.strongest(measure)) is None else best[1].mean for f in figures]
    return known_at_least(found, leaks_more(measure)) if chain else found


@dataclass(frozen=True)
class Verdict:
    """What is said of all points over one network.

    Attributes:
        profile: the network.
        latency: by split.
        measure: of leakage, that the rule compares; ``None`` where nothing was measured.
        leakage: by split, what is known to be obtained at least.
        front: names of the points that nothing dominates.
        choice: what the rule chose; ``None`` where no point keeps every limit.
        relax: then, which limits to relax.
    """

    profile: NetworkProfile
    latency: dict[str, FrameLatency]
    measure: str | None
    leakage: dict[str, float]
    front: set[str]
    choice: Choice | None
    relax: list[Relaxed]


def verdict(
    figures: Sequence[Figures], profile: NetworkProfile, limits: Sequence[Limit], *, slowdown: float, undefended: bool
) -> Verdict:
    """Choose a point.

    Args:
        figures: shallow first.
        profile: of the network.
        limits: to be kept.
        slowdown: of the edge device.
        undefended: the features cross as they are, so that those of a deeper point follow from a shallower one's.
    """
    times = {f.point.name: t for f in figures if (t := latency(f, profile, slowdown)) is not None}
    measure = headline(figures)
    chain = undefended and is_chain(f.point for f in figures)
    further = [limit.measure for limit in limits if limit.measure not in (LATENCY, UTILITY)]
    measures: list[str] = list(dict.fromkeys([*([measure] if measure else []), *further]))
    leaks = {m: leakage(figures, m, chain=chain) for m in measures}
    candidates = []
    for i, f in enumerate(figures):
        values = {LATENCY: times[f.point.name].total_ms if f.point.name in times else None, UTILITY: f.utility.mean}
        values |= {m: column[i] for m, column in leaks.items()}
        candidates.append(Candidate(f.point.name, {k: v for k, v in values.items() if v is not None}))
    candidates = [c for c in candidates if math.isfinite(c.cost(LATENCY))]
    rises = {**RISES, **{m: leaks_more(m) for m in measures}}
    objectives = [LATENCY, *([measure] if measure else []), UTILITY]
    choice = choose(candidates, limits, measure, rises=rises)
    return Verdict(
        profile,
        times,
        measure,
        {c.split: c.values[measure] for c in candidates if measure in c.values} if measure else {},
        pareto(candidates, objectives, rises),
        choice,
        [] if choice is not None else relaxed(candidates, limits),
    )
