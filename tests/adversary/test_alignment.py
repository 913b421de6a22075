"""Keys found out."""

import numpy as np
import pytest
import torch

from adversary.alignment import channel_order, find_key, number_order, rotation
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline

SPEC = FeatureSpec("z", (12, 5, 5))


def _features(n, seed):
    """Twelve channels, each with a distribution of its own."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.linspace(0.5, 2, 12), torch.linspace(-1, 1, 12)[torch.arange(12) * 5 % 12]
    z = torch.randn(n, 12, 5, 5, generator=generator) * scale.view(12, 1, 1) + shift.view(12, 1, 1)
    return z.relu()


def test_an_order_of_channels_is_found_from_other_pictures():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    own, tapped = _features(200, 0), _features(200, 1)[:, order]
    found = channel_order(own, tapped, SPEC)
    assert torch.equal(order[found], torch.arange(12))
    tokens = FeatureSpec("z", (25, 12))
    as_tokens = [z.flatten(2).mT for z in (own, tapped)]
    assert torch.equal(channel_order(*as_tokens, tokens), found)


def test_an_order_of_all_numbers_is_found_from_pairs():
    own = _features(16, 0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    tapped = own.flatten(1)[:, order].view_as(own)
    found = tapped.flatten(1)[:, number_order(own, tapped)].view_as(own)
    assert torch.equal(found, own)


def test_a_rotation_is_found_from_pairs_also_through_noise():
    own = _features(40, 0)
    q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))[0]
    sent = torch.einsum("ij,njhw->nihw", q, own)
    torch.testing.assert_close(rotation(own, sent, SPEC), q, atol=1e-5, rtol=0)
    noisy = sent + 0.1 * torch.randn(sent.shape, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(rotation(own, noisy, SPEC), q, atol=0.02, rtol=0)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("kind", ["permutation:over=channels", "permutation:over=all", "rotation"])
def test_a_keyed_edge_is_undone_without_its_key(tiny_target, tmp_path, kind, alike):
    key = tmp_path / "key"
    key.write_bytes(np.random.default_rng(0).bytes(32))
    comma = "," if ":" in kind else ":"
    edge, plain = EdgePipeline(tiny_target, "S2", f"{kind}{comma}key={key}"), EdgePipeline(tiny_target, "S2")
    generator = torch.Generator().manual_seed(0)
    images, own = (torch.rand(n, 3, 16, 16, generator=generator) for n in (300, 300))
    with torch.no_grad():
        tapped, clean = edge(images), plain(images)
    restore = find_key(edge, plain, lambda: own if alike else own[:20] ** 4, tapped, alike=alike)
    assert not torch.allclose(tapped[0], clean[0], atol=1e-3)
    torch.testing.assert_close(restore(tapped)[0], clean[0], atol=1e-4, rtol=0)


def test_without_a_key_there_is_nothing_to_find(tiny_target):
    edge = EdgePipeline(tiny_target, "S2", "noise:sigma=0.1")
    with pytest.raises(ValueError, match="has no key"):
        find_key(edge, EdgePipeline(tiny_target, "S2"), lambda: pytest.fail("not asked"), ())
