"""The answer in sentences, and the figures behind it."""

import pytest

from scenarios.splits.correlations import correlations
from scenarios.splits.figures import Figures, headline, verdict
from scenarios.splits.points import SplitPoint
from scenarios.splits.spec import parse_limits
from scenarios.splits.words import none_keeps, why
from splitsight.features import FeatureSpec
from splitsight.network import load_profile, predict
from splitsight.summary import Interval

WIFI = load_profile("wifi")


def _point(i, edge, found, ssim, *, useful=0.7, told=1.0):
    at = Figures(SplitPoint(f"p{i}", i, (FeatureSpec("z", (8, 4, 4)),)))
    at.cost = {
        k: Interval(mean=v) for k, v in (("edge_ms", edge), ("cloud_ms", 5.0), ("up_bytes", 600), ("down_bytes", 90))
    }
    at.utility, at.unsplit, at.utility_name = Interval(mean=useful), Interval(mean=0.7), "top1"
    if found is not None:
        at.attacks = {"best:sharp": {"matched_top1": Interval(mean=found), "ssim": Interval(mean=ssim)}}
    at.told, at.middle = {"sensitivity": Interval(mean=told)}, {"sensitivity": told}
    return at


def _verdict(points, limits=(), slowdown=1.0, undefended=True):
    return verdict(points, WIFI, limits, slowdown=slowdown, undefended=undefended)


def test_latency_is_the_sum_of_its_parts():
    points = [_point(0, 10.0, 0.5, 0.5)]
    time = _verdict(points, slowdown=4).latency["p0"]
    assert (time.edge_ms, time.cloud_ms) == (40.0, 5.0)
    assert time.network_ms == predict(WIFI, 600, 90).median_ms
    assert time.total_ms == pytest.approx(45 + time.network_ms)


def test_the_least_leakage_among_the_fast_ones():
    points = [_point(0, 30.0, 0.9, 0.8), _point(1, 33.0, 0.4, 0.5), _point(2, 90.0, 0.0, 0.1)]
    found = _verdict(points)
    assert found.choice is not None and found.choice.split == "p1" and found.front == {"p0", "p1", "p2"}
    sentence = why(found, points, [])
    assert "the strongest attacker, best:sharp, finds the original first for 40.0 % of the images" in sentence
    assert "of 3 points, 2 are at most 25 % slower than the fastest, p0" in sentence and "leaks least" in sentence
    assert "70.0 % top1 accuracy (70.0 % uncut)" in sentence
    limits = parse_limits(max_leakage=["matched_top1=0.1"])
    strict = _verdict(points, limits)
    assert "it is the only one of 3 points that keeps the limits" in why(strict, points, limits)
    assert "net-best:sharp could not try there" in why(found, points, [], ["net-best:sharp"])
    assert "best:sharp was not trained or tuned for this point" in why(found, points, [], weakened=["best:sharp"])


def test_what_a_deeper_point_gave_away_counts_at_a_shallower_one():
    points = [_point(0, 30.0, 0.9, 0.8), _point(1, 31.0, 0.1, 0.2), _point(2, 32.0, 0.6, 0.5)]
    found = _verdict(points)
    assert found.leakage == {"p0": 0.9, "p1": 0.6, "p2": 0.6}
    assert found.choice is not None and found.choice.split == "p1"
    assert "as from the features of a deeper point" in why(found, points, [])
    # noise on the features is another draw at each point, so nothing follows there
    assert _verdict(points, undefended=False).leakage == {"p0": 0.9, "p1": 0.1, "p2": 0.6}


def test_a_network_that_breaks_when_cut_is_not_recommended():
    points = [_point(0, 30.0, 0.9, 0.8), _point(1, 31.0, 0.1, 0.2, useful=0.3)]
    assert _verdict(points).choice.split == "p0"


def test_a_measure_that_tells_no_point_from_another_gives_way():
    points = [_point(0, 30.0, 1.0, 0.8), _point(1, 31.0, 1.0, 0.4)]
    found = _verdict(points)
    assert headline(points) == "ssim" and found.choice.split == "p1"
    assert "finds the original first for 100.0 % of the images and comes to an SSIM of 0.400" in why(found, points, [])
    alike = [_point(0, 31.0, 1.0, 0.8), _point(1, 30.0, 1.0, 0.8)]
    found = _verdict(alike)
    assert headline(alike) == "matched_top1" and found.choice.split == "p1"
    assert why(found, alike, []).endswith("and of these it is the fastest")


def test_nobody_attacked():
    points = [_point(0, 30.0, None, None), _point(1, 20.0, None, None)]
    found = _verdict(points)
    assert headline(points) is None and found.choice is not None and found.choice.split == "p1"
    assert "nothing was attacked" in why(found, points, [])


def test_which_limit_to_relax():
    points = [_point(0, 10.0, 0.9, 0.8), _point(1, 40.0, 0.1, 0.2)]
    limits = parse_limits(40, ["ssim=0.4"])
    found = _verdict(points, limits)
    assert found.choice is None
    sentence = none_keeps(found)
    assert sentence.startswith("no split point keeps every limit over wifi: relax to --max-latency-ms ")
    assert "(p1 would do), or to --max-leakage ssim=0.8 (p0 would do)" in sentence
    nothing = parse_limits(max_leakage=["dfil=1"])
    assert "was measured at none" in none_keeps(_verdict(points, nothing))


def test_a_measure_that_orders_points_as_the_attack_does():
    points = [_point(i, 10.0, 1 - i / 6, 0.9 - i / 10, told=100 - 10 * i) for i in range(6)]
    found = correlations(points)
    assert [(c.told, c.attacked, c.rho, c.n) for c in found] == [
        ("sensitivity", "matched_top1", 1.0, 6),
        ("sensitivity", "ssim", 1.0, 6),
    ]
    assert all(c.low < c.rho for c in found)
    assert correlations(points[:3]) == []  # too few to tell
