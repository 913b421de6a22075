"""The rule, against brute force over all candidates."""

import itertools
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scenarios.splits.recommend import (
    LATENCY,
    SLACK,
    TOLERANCE,
    UTILITY,
    Candidate,
    Limit,
    choose,
    known_at_least,
    pareto,
    relaxed,
)

OBJECTIVES = (LATENCY, "found", UTILITY)
few = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.001, 1))
maybe = st.one_of(few, st.none())


@st.composite
def candidates(draw, unknown=False):
    rows = draw(st.lists(st.tuples(st.floats(1, 100), maybe if unknown else few, few), min_size=1, max_size=7))
    names = dict(zip("abcdefg", rows, strict=False))
    return [
        Candidate(name, {k: v for k, v in zip(OBJECTIVES, row, strict=True) if v is not None})
        for name, row in names.items()
    ]


limits = st.lists(
    st.sampled_from(
        [
            *(Limit(LATENCY, v, "--max-latency-ms ") for v in (0.5, 10.0, 50.0)),
            *(Limit("found", v, "--max-leakage found=") for v in (0.1, 0.5)),
            *(Limit(UTILITY, v, "--min-accuracy ", rises=False) for v in (0.3, 0.9)),
        ]
    ),
    max_size=3,
    unique_by=lambda limit: limit.measure,
)


def worse(a, b):
    """Whether a is dominated by b, measure by measure."""
    x = [(a.values[LATENCY], b.values[LATENCY]), (a.values["found"], b.values["found"])]
    x.append((-a.values[UTILITY], -b.values[UTILITY]))
    return all(mine >= other for mine, other in x) and any(mine > other for mine, other in x)


@given(candidates())
def test_the_front_is_what_nothing_dominates(points):
    front = pareto(points, OBJECTIVES)
    assert front == {a.split for a in points if not any(worse(a, b) for b in points)} and front


@given(candidates(unknown=True))
def test_what_is_not_known_is_not_on_the_front(points):
    known = [c for c in points if "found" in c.values]
    if known:
        assert pareto(points, OBJECTIVES) == pareto(known, OBJECTIVES)
    else:
        assert pareto(points, OBJECTIVES) == pareto(points, (LATENCY, UTILITY))


@given(candidates(), limits)
def test_the_rule_against_brute_force(points, wanted):
    found = choose(points, wanted, "found")
    keeping = [c for c in points if all(limit.keeps(c) for limit in wanted)]
    if not keeping:
        assert found is None
        return
    limited = {limit.measure for limit in wanted}
    pool = keeping
    if UTILITY not in limited:
        pool = [c for c in pool if c.values[UTILITY] >= max(d.values[UTILITY] for d in pool) - TOLERANCE]
    if LATENCY not in limited:
        pool = [c for c in pool if c.values[LATENCY] <= (1 + SLACK) * min(d.values[LATENCY] for d in pool)]
    assert found is not None and set(found.admitted) == {c.split for c in keeping}
    assert set(found.near) == {c.split for c in pool}
    chosen = next(c for c in points if c.split == found.split)
    assert chosen in pool and all(chosen.values["found"] <= c.values["found"] for c in pool)
    # nothing among what keeps the limits dominates it
    assert not any(worse(chosen, c) for c in keeping)


def test_leakage_that_is_known_of_some_only():
    points = [Candidate("a", {LATENCY: 1.0, UTILITY: 1.0}), Candidate("b", {LATENCY: 1.1, UTILITY: 1.0, "found": 0.9})]
    found = choose(points, [], "found")
    assert found is not None and (found.split, found.unknown) == ("b", ("a",))
    # where nothing is known of any, the fastest
    nothing = choose(points, [], None)
    assert nothing is not None and (nothing.split, nothing.unknown) == ("a", ())
    # a limit on what is not known is not kept
    kept = choose(points, [Limit("found", 1.0, "")], "found")
    assert kept is not None and kept.admitted == ("b",)


@settings(max_examples=200)
@given(candidates(unknown=True), limits)
def test_relaxing_admits_what_it_says_and_no_fewer_limits_do(points, wanted):
    assume(wanted and choose(points, wanted, "found") is None)
    ways = relaxed(points, wanted)
    for way in ways:
        moved = {limit.option for limit in way.limits}
        now = [*way.limits, *(limit for limit in wanted if limit.option not in moved)]
        found = choose(points, now, "found")
        assert found is not None and way.split in found.admitted
        # three digits, so that it can be typed: never more than a hundredth beyond what is needed
        for new in way.limits:
            old = next(limit for limit in wanted if limit.option == new.option)
            value = next(c for c in points if c.split == way.split).values[new.measure]
            assert new.value == old.value or abs(new.value - value) <= 0.01 * abs(value)
    size = len(ways[0].limits) if ways else len(wanted) + 1
    # dropping fewer of them altogether admits nothing that is known
    for few_limits in range(1, min(size, len(wanted) + 1)):
        for dropped in itertools.combinations(wanted, few_limits):
            rest = [limit for limit in wanted if limit not in dropped]
            for c in points:
                if all(limit.keeps(c) for limit in rest):
                    assert any(limit.measure not in c.values for limit in dropped)
    if ways:
        assert [way.strain for way in ways] == sorted(way.strain for way in ways)


def test_the_least_change_of_a_single_limit():
    points = [
        Candidate("shallow", {LATENCY: 10.0, "ssim": 0.7, UTILITY: 0.7}),
        Candidate("deep", {LATENCY: 34.21, "ssim": 0.31, UTILITY: 0.7}),
    ]
    wanted = [Limit(LATENCY, 20, "--max-latency-ms "), Limit("ssim", 0.4, "--max-leakage ssim=")]
    first, second = relaxed(points, wanted)
    assert (first.limits[0].option, first.limits[0].value, first.split) == ("--max-latency-ms ", 34.3, "deep")
    assert (second.limits[0].measure, second.limits[0].value, second.split) == ("ssim", 0.7, "shallow")


@given(st.lists(maybe, max_size=8), st.booleans())
def test_what_deeper_points_gave_is_known_of_shallower_ones(values, rises):
    found = known_at_least(values, rises)
    for i, bound in enumerate(found):
        later = [v for v in values[i:] if v is not None]
        assert bound == ((max if rises else min)(later) if later else None)
    assert known_at_least([math.nan, 0.2]) == [0.2, 0.2]
