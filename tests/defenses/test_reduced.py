"""Quantisation, top-k and channel dropout: what is sent, what its mask tells, and the bytes that are saved."""

from __future__ import annotations

import pytest
import torch

from splitsight.defenses import parse_defense
from splitsight.draws import Draws
from splitsight.features import FeatureSpec
from splitsight.wire.tensors import CodecSpec, encode

SPECS = (FeatureSpec("z0", (16, 8, 8)), FeatureSpec("z1", (5, 12)), FeatureSpec("z2", (40,)))


@pytest.fixture
def z():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, *s.shape, generator=generator).relu() for s in SPECS)


def _edge(text):
    return parse_defense(text).build(SPECS)[0]


def _bytes(features) -> int:
    codec = CodecSpec("float32", "zstd")
    return sum(
        encode(row, codec, spec).ByteSize() for t, spec in zip(features, SPECS, strict=True) for row in t.numpy()
    )


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_quantised_values_are_few_evenly_spaced_and_near(z, bits):
    for sent, t in zip(_edge(f"quantise:bits={bits}")(z, Draws()), z, strict=True):
        for row, old in zip(sent.flatten(1), t.flatten(1), strict=True):
            step = float(old.max() - old.min()) / (2**bits - 1)
            assert len(row.unique()) <= 2**bits and float((row - old).abs().max()) <= step * 0.501
            assert row.min() == old.min() and float(row.max() - old.max()) == pytest.approx(0, abs=1e-6)


def test_a_constant_tensor_is_quantised_to_itself():
    constant = tuple(torch.full((2, *s.shape), 3.0) for s in SPECS)
    assert all(torch.equal(a, b) for a, b in zip(_edge("quantise:bits=1")(constant, Draws()), constant, strict=True))


def test_the_gradient_of_rounding_is_that_of_its_surrogate_and_of_a_mask_its_own(z):
    """Straight-through: the derivative of the identity; top-k: finite differences of what is sent, away from ties."""
    x = z[0][:1].double().requires_grad_()
    weight = torch.randn(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    (weight * _edge("quantise:bits=3").expected((x, *z[1:]))[0]).sum().backward()
    assert torch.equal(x.grad, weight)
    x = z[0][:1].double().requires_grad_()
    edge = _edge("topk:keep=0.2")
    (weight * edge.expected((x, *z[1:]))[0]).sum().backward()
    step = 1e-6 * torch.randn(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ahead, behind = ((weight * edge.expected((x + s * step, *z[1:]))[0]).sum() for s in (1, -1))
    assert float(ahead - behind) == pytest.approx(2 * float((x.grad * step).sum()), rel=1e-6)


def test_top_k_keeps_the_largest_exactly_and_shows_where(z):
    edge = _edge("topk:keep=0.1")
    sent = edge(z, Draws())
    for a, t, mask in zip(sent, z, edge.support(sent), strict=True):
        kept = a != 0
        assert torch.equal(a[kept], t[kept]) and torch.equal(kept, mask)
        assert (kept.flatten(1).sum(1) == -(-t[0].numel() // 10)).all()
        for row, old in zip(kept.flatten(1), t.flatten(1), strict=True):
            assert old[row].min() >= old[~row].max()
    assert all(torch.equal(a, b) for a, b in zip(edge.expected_on(z, edge.support(sent)), sent, strict=True))


def test_a_mask_is_found_again_behind_noise_mostly(z):
    edge = _edge("topk:keep=0.1+gaussian:sigma=0.1")
    sent = edge(z, Draws([0, 1, 2, 3, 4, 5]))
    true, found = (
        e.support(s) for e, s in ((_edge("topk:keep=0.1"), _edge("topk:keep=0.1")(z, Draws())), (edge, sent))
    )
    assert edge.deviations(sent) == pytest.approx([0.1] * 3)
    for a, b in zip(true, found, strict=True):
        assert (a & b).sum() > 0.8 * a.sum()


def test_dropped_channels_are_other_ones_each_frame_and_the_mean_stays(z):
    edge = _edge("dropout:p=0.75")
    many = tuple(t[:1].expand(4000, *t.shape[1:]) + 0.1 for t in z)
    sent = edge(many, Draws(list(range(4000))))
    for a, t, spec, kept in zip(sent, many, SPECS, (4, 3, 10), strict=True):
        came = (spec.channels_last(a) != 0).reshape(4000, -1, spec.channels).any(1)
        assert (came.sum(1) == kept).all() and len(came.unique(dim=0)) > 100
        torch.testing.assert_close(a.mean(0), t[0], rtol=0.15, atol=0.05)
    masks = edge.support(sent)
    for a, b, mask in zip(sent, edge.expected_on(many, masks), masks, strict=True):
        torch.testing.assert_close(a[mask], b[mask])
        assert (a[~mask] == 0).all()
    assert all(a is b for a, b in zip(edge.expected(many), many, strict=True)) and edge.fresh


def test_noise_before_a_dropout_is_scaled_with_what_is_kept(z):
    edge = _edge("gaussian:sigma=1+dropout:p=0.5")
    assert edge.deviations(z) == pytest.approx([16 / 8, 12 / 6, 40 / 20]) and edge.law == "gaussian"


def test_less_is_sent_where_there_is_less_to_send(z):
    plain = _bytes(z)
    sizes = {text: _bytes(_edge(text)(z, Draws())) for text in ("topk:keep=0.1", "dropout:p=0.75", "quantise:bits=2")}
    assert all(size < 0.6 * plain for size in sizes.values()), (plain, sizes)
