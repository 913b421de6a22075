"""The distinguishing game: below what is claimed, above what is claimed wrongly."""

from __future__ import annotations

import math

import pytest
import torch

from scenarios.audit import audit, scale_test, worst_pair
from splitsight.accounting import gaussian_multiplier
from splitsight.defenses import parse_defense
from splitsight.features import FeatureSpec

SPECS = (FeatureSpec("z0", (4, 3, 3)), FeatureSpec("z1", (6,)))


def _frames(count: int = 6):
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(count, *s.shape, generator=generator) for s in SPECS)


def _edge(text: str):
    return parse_defense(text).build(SPECS)[0]


@pytest.mark.parametrize(
    ("text", "epsilon", "least"),
    [
        ("clip:norm=2+gaussian:epsilon=1", 1, 0.2),
        ("clip:norm=2+gaussian:epsilon=4", 4, 2),
        ("clip:norm=2+gaussian:epsilon=8", 8, 3),
        ("clip:norm=2,order=1+laplace:epsilon=1", 1, 0.5),
        ("clip:norm=2+gaussian:epsilon=2+quantise:bits=12", 2, 1),
    ],
)
def test_it_is_below_what_is_claimed_and_not_far(text, epsilon, least):
    edge = _edge(text)
    a, b = worst_pair(edge, _frames())
    found = audit(edge, a, b, draws=60_000, seed=1)
    assert least < found.epsilon < epsilon and found.draws == 60_000


@pytest.mark.parametrize("epsilon", [1, 2, 4])
def test_it_is_above_what_is_claimed_where_the_noise_is_for_half_of_the_sensitivity(epsilon):
    """Noise for C, as if frames were added or removed, where any frame may be replaced by any other."""
    wrong = _edge(f"clip:norm=2+gaussian:sigma={gaussian_multiplier(epsilon, 1e-5) * 2}")
    a, b = worst_pair(wrong, _frames())
    found = audit(wrong, a, b, draws=120_000, seed=1)
    assert found.distance == pytest.approx(4, rel=1e-4)
    assert found.epsilon > epsilon
    right = _edge(f"clip:norm=2+gaussian:epsilon={epsilon}")
    assert audit(right, a, b, draws=120_000, seed=1).epsilon < epsilon


def test_noise_without_a_clip_shows_more_the_farther_frames_are_apart():
    edge = _edge("noise:sigma=4")
    near, far = (
        audit(edge, *worst_pair(edge, tuple(s * z for z in _frames())), draws=20_000, seed=2) for s in (0.002, 1)
    )
    assert near.epsilon < 1 < far.epsilon


def test_equal_frames_show_nothing():
    edge = _edge("clip:norm=2+gaussian:epsilon=8")
    a = tuple(z[:1] for z in _frames())
    assert audit(edge, a, a, draws=10_000, seed=3).epsilon < 0.1


def test_the_worst_pair_lies_opposite_on_the_ball():
    edge = _edge("clip:norm=2+gaussian:epsilon=8")
    a, b = worst_pair(edge, _frames())
    for x, y in zip(edge.expected(a), edge.expected(b), strict=True):
        torch.testing.assert_close(x, -y)
    c, d = worst_pair(edge, _frames(), opposite=False)
    apart = [
        torch.cat([x.flatten() - y.flatten() for x, y in zip(edge.expected(p), edge.expected(q), strict=True)]).norm()
        for p, q in ((a, b), (c, d))
    ]
    assert apart[0] > apart[1] > 0


def test_too_few_draws_are_refused():
    edge = _edge("clip:norm=2+gaussian:epsilon=8")
    with pytest.raises(ValueError, match="10,000 or more"):
        audit(edge, *worst_pair(edge, _frames()), draws=9_999)


@pytest.mark.parametrize("text", ["clip:norm=5+gaussian:epsilon=8", "clip:norm=5,order=1+laplace:epsilon=3"])
def test_the_scale_of_the_noise_is_that_of_theory_and_another_is_found_out(text):
    edge, shapes = _edge(text), [s.shape for s in SPECS]
    found = scale_test(edge, shapes, frames=400)
    assert found.p > 1e-3 and found.measured == pytest.approx(found.expected, rel=0.05)
    assert found.numbers == 400 * sum(math.prod(s) for s in shapes)
    said = edge.deviations
    edge.deviations = lambda features: [1.05 * float(s) for s in said(features)]
    assert scale_test(edge, shapes, frames=400).p < 1e-3
