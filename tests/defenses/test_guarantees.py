"""Clipping and noise: norms, scales against theory, what is promised and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, laplace

from splitsight.accounting import gaussian_multiplier
from splitsight.defenses import parse_defense
from splitsight.defenses.clip import joint_norm
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

SPECS = (FeatureSpec("z0", (4, 8, 8)), FeatureSpec("z1", (30,)))


def _features(scale: float = 1.0, frames: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(frames, *s.shape, generator=generator) for s in SPECS)


def _apply(text: str, z, seeds=None):
    return parse_defense(text).build(SPECS)[0](z, Draws(seeds))


@pytest.mark.parametrize("order", [1, 2])
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e4), norm=st.floats(1e-3, 1e4))
def test_a_clip_bounds_the_joint_norm_and_keeps_the_direction(order, scale, norm):
    z = _features(scale)
    clipped = _apply(f"clip:norm={norm!r},order={order}", z)
    before, after = joint_norm(z, order), joint_norm(clipped, order)
    assert (after <= norm).all()
    torch.testing.assert_close(after, before.clamp_max(norm), rtol=1e-5, atol=0)
    ratio = (after / before).float()
    for a, b in zip(clipped, z, strict=True):
        torch.testing.assert_close(a, b * ratio.view(-1, *[1] * (b.ndim - 1)), rtol=1e-4, atol=1e-6 * scale)


def test_a_clip_leaves_zero_and_small_frames_as_they_are_and_is_differentiable():
    zero = tuple(torch.zeros(2, *s.shape) for s in SPECS)
    assert all(torch.equal(a, b) for a, b in zip(_apply("clip:norm=1", zero), zero, strict=True))
    small = _features(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(_apply("clip:norm=1e6", small), small, strict=True))
    edge, _ = parse_defense("clip:norm=1").build((FeatureSpec("z", (3,)),))
    z = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: edge.expected((x,)), (z,))


@pytest.mark.parametrize(
    ("text", "sigma"),
    [
        ("gaussian:sigma=0.5", 0.5),
        ("clip:norm=20+gaussian:epsilon=8", 0.60023 * 40),
        ("clip:norm=20,order=1+gaussian:epsilon=8", 0.60023 * 40),
        ("laplace:scale=3", 3 * math.sqrt(2)),
        ("clip:norm=2,order=1+laplace:epsilon=8", 0.5 * math.sqrt(2)),
        ("noise:sigma=2,law=laplace", 2),
        ("dfil:target=4,energy=9", 1.5),
        ("fsinfo:target=-1,logdet=0.5", math.exp(1.5) / math.sqrt(2 * math.pi * math.e)),
    ],
)
def test_the_scale_of_the_noise_is_what_theory_says(text, sigma):
    """χ² test of the empirical variance: Σ n²/σ² is χ² for Gaussian noise, and wider by a known factor for Laplace."""
    z = tuple(torch.zeros(400, *s.shape) for s in SPECS)
    edge, _ = parse_defense(text).build(SPECS)
    noise = torch.cat([n.flatten() for n in edge(z, Draws(list(range(400))))]).double()
    assert edge.deviations(z) == pytest.approx([sigma] * 2, rel=1e-4)
    statistic = float(noise.square().sum()) / sigma**2
    # a Laplace variable's square has six times the variance of its kurtosis: 20 instead of 2
    widen = math.sqrt(5 / 2) if edge.law == "laplace" else 1.0
    low, high = (len(noise) + widen * (chi2.ppf(p, len(noise)) - len(noise)) for p in (1e-4, 1 - 1e-4))
    assert low < statistic < high
    assert abs(float(noise.mean())) < 4 * sigma / math.sqrt(len(noise))
    law = laplace(scale=sigma / math.sqrt(2)).cdf if edge.law == "laplace" else "norm"
    assert kstest(noise[:20_000] / (1 if edge.law == "laplace" else sigma), law).pvalue > 1e-4


@pytest.mark.parametrize(
    "text", ["gaussian:ratio=0.5", "noise:ratio=0.5,law=laplace", "laplace:scale=1", "dropout:p=0.5"]
)
def test_seeds_repeat_draws_and_no_seeds_do_not(text):
    z = _features(frames=3)
    one, two = (_apply(text, z, [1, 2, 3]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    alone = _apply(text, tuple(t[1:2] for t in z), [2])
    assert all(torch.equal(a[1:2], b) for a, b in zip(one, alone, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, _apply(text, z), strict=True))


@pytest.mark.parametrize(
    ("text", "epsilon", "words"),
    [
        ("clip:norm=20+gaussian:epsilon=8", 8, "ε = 8, δ = 1e-05 .*any two frames being neighbours .*‖z‖₂ ≤ 20"),
        ("clip:norm=20+gaussian:sigma=20", 9.997, "σ = 20"),
        ("clip:norm=9+clip:norm=20+topk:keep=0.1+gaussian:epsilon=2", 2, "‖z‖₂ ≤ 9"),
        ("clip:norm=5,order=1+laplace:epsilon=2", 2, "δ = 0 .*‖z‖₁ ≤ 5"),
        ("clip:norm=5,order=1+laplace:scale=5", 2, "b = 5"),
        ("quantise:bits=2+clip:norm=5+gaussian:epsilon=1+quantise:bits=4+dropout:p=0.5", 1, "over a stream ε adds up"),
    ],
)
def test_what_is_proven_is_said_with_its_numbers(text, epsilon, words):
    chain = parse_defense(text)
    (said,) = chain.guarantees()
    assert chain.mechanism is not None and chain.mechanism.epsilon() == pytest.approx(epsilon, rel=1e-3)
    assert re.search(words, said)


@pytest.mark.parametrize(
    "text",
    [
        "gaussian:sigma=100",
        "clip:norm=1",
        "clip:norm=1+noise:sigma=100",
        "clip:norm=1+gaussian:ratio=9",
        "laplace:scale=9",
    ],
)
def test_nothing_is_promised_without_a_clip_or_by_plain_noise(text):
    chain = parse_defense(text)
    assert chain.mechanism is None and chain.guarantees() == []


def test_the_strongest_of_two_mechanisms_holds():
    chain = parse_defense("clip:norm=1+gaussian:epsilon=4+clip:norm=1+gaussian:epsilon=2")
    assert chain.mechanism is not None and chain.mechanism.epsilon() == pytest.approx(2)
    assert chain.mechanism.multiplier == pytest.approx(gaussian_multiplier(2, 1e-5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gaussian:epsilon=8", "promises an ε that nothing bounds: there is no clip before it; put clip:norm=C"),
        ("gaussian:epsilon=8+clip:norm=3", "there is no clip before it"),
        ("clip:norm=3+quantise:bits=4+gaussian:epsilon=8", "quantise stands between it and the clip, and can enlarge"),
        ("clip:norm=3+gaussian:sigma=1+gaussian:epsilon=8", "gaussian stands between it and the clip, and can enlarge"),
        ("clip:norm=3+dropout:p=0.5+gaussian:epsilon=8", "dropout stands between"),
        ("clip:norm=3+laplace:epsilon=8", "bounds ‖z‖ of order 2, not 1; put clip:norm=C,order=1"),
        ("clip:norm=3+gaussian:epsilon=0", "epsilon: input should be greater than 0"),
        ("clip:norm=3+gaussian:epsilon=-1", "epsilon: input should be greater than 0"),
        ("clip:norm=3+gaussian:epsilon=1,delta=1", "delta: input should be less than 1"),
        ("clip:norm=3+gaussian:epsilon=1,delta=0", "delta: input should be greater than 0"),
        ("clip:norm=0+gaussian:epsilon=1", "norm: input should be greater than 0"),
        ("clip:norm=3,order=3", "order: input should be less than or equal to 2"),
        ("clip", "norm: field required"),
        ("gaussian:epsilon=1,sigma=1", "either sigma or ratio or epsilon"),
        ("laplace:scale=1,epsilon=1", "either scale or epsilon"),
        ("noise:epsilon=8", "unknown parameter of the defence noise 'epsilon'"),
        ("noise:sigma=1,law=cauchy", "law: input should be 'gaussian' or 'laplace'"),
    ],
)
def test_what_guarantees_nothing_is_refused_in_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as error:
        parse_defense(text)
    assert "\n" not in str(error.value)


_NUMBERS = st.floats(1e-6, 1e22, allow_nan=False)
_PARTS = st.one_of(
    st.builds("clip:norm={!r},order={}".format, _NUMBERS, st.integers(1, 2)),
    st.builds("gaussian:sigma={!r}".format, _NUMBERS),
    st.builds("noise:ratio={!r},law={}".format, _NUMBERS, st.sampled_from(["gaussian", "laplace"])),
    st.builds("laplace:scale={!r}".format, _NUMBERS),
    st.builds("clip:norm={!r}+gaussian:epsilon={!r},delta={!r}".format, _NUMBERS, _NUMBERS, st.floats(1e-9, 0.9)),
    st.builds("quantise:bits={}".format, st.integers(1, 16)),
    st.builds("topk:keep={!r}".format, st.floats(1e-6, 1)),
    st.just("identity"),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_PARTS, min_size=1, max_size=4))
def test_a_chain_reads_back_what_it_says(parts):
    chain = parse_defense("+".join(parts))
    again = parse_defense(str(chain))
    assert str(again) == str(chain) and [p.parameters for p in again.parts] == [p.parameters for p in chain.parts]
