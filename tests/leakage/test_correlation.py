"""Spearman's correlation against scipy, and its interval against populations whose correlation is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from splitsight.leakage import rank_correlation


def test_it_is_spearmans():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20).round(1)  # with ties
    y = x + rng.standard_normal(20)
    rho, low, high = rank_correlation(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= low < rho < high <= 1


@pytest.mark.parametrize("points", [8, 12, 40])
@pytest.mark.parametrize("pearson", [0.0, 0.6, 0.9])
def test_the_interval_covers_as_often_as_it_says(points, pearson):
    rng = np.random.default_rng(points)
    truth = 6 / math.pi * math.asin(pearson / 2)
    hits = 0
    for _ in range(400):
        x = rng.standard_normal(points)
        y = pearson * x + math.sqrt(1 - pearson**2) * rng.standard_normal(points)
        _, low, high = rank_correlation(x, y)
        hits += low <= truth <= high
    assert hits / 400 >= 0.92


def test_only_order_counts():
    x, y = [1, 2, 3, 4, 5], [3, 1, 2, 5, 4]
    assert rank_correlation(x, y) == rank_correlation(np.exp(x), [v * 100 for v in y])
    assert rank_correlation([1, 2, 3, 4, math.inf], y) == rank_correlation(x, y)


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_order_among_few_points_is_no_certainty(sign):
    x = np.arange(6.0)
    rho, low, high = rank_correlation(x, sign * x)
    assert rho == pytest.approx(sign)
    assert high - low > 0.3
    assert (low, high)[sign > 0] == pytest.approx(sign)


def test_where_nothing_can_be_said():
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([], []) is None
    assert rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]) is None
    assert rank_correlation([1, 2, 3, math.nan, 4], [1, 2, 3, 4, math.nan]) is None
    rho, low, high = rank_correlation([1, 2, 3, 4], [1, 2, 4, 3])
    assert low < 0 < rho < high


def test_both_sides_have_the_same_number():
    with pytest.raises(ValueError):
        rank_correlation([1, 2, 3, 4], [1, 2, 3])
