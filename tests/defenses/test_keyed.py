"""Keyed permutation and rotation: undone by whoever holds the key, the server included."""

from __future__ import annotations

import pytest
import torch

from splitsight.defenses import parse_defense, weights_digest
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

SPECS = (FeatureSpec("z0", (8, 4, 4)), FeatureSpec("z1", (5, 6)), FeatureSpec("z2", (12,)))


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture
def z():
    return tuple(torch.randn(3, *s.shape, generator=torch.Generator().manual_seed(1)) for s in SPECS)


@pytest.mark.parametrize("form", ["permutation:key={}", "permutation:key={},over=all", "rotation:key={}"])
def test_the_server_undoes_it_and_the_tap_sees_something_else(key, z, form):
    edge, server = parse_defense(form.format(key)).build(SPECS)
    sent = edge(z, Draws())
    for a, b, c in zip(sent, server(sent), z, strict=True):
        torch.testing.assert_close(b, c)
        assert not torch.allclose(a, c)
        torch.testing.assert_close(a.flatten(1).norm(dim=1), c.flatten(1).norm(dim=1))
    assert all(torch.equal(a, b) for a, b in zip(edge.expected(z), z, strict=True)), "an attacker has no key"
    for a, b in zip(edge.opened(sent), server(sent), strict=True):
        assert torch.equal(a, b), "but one on the server has"
    assert not edge.fresh and all(torch.equal(a, b) for a, b in zip(edge(z, Draws()), sent, strict=True))
    other = key.with_name("other")
    other.write_bytes(bytes(range(1, 33)))
    digests = {weights_digest(*parse_defense(form.format(k)).build(SPECS)) for k in (key, other, key)}
    assert len(digests) == 2


def test_a_norm_bound_outlives_a_permutation_and_in_l2_a_rotation(key):
    assert parse_defense(f"clip:norm=1+permutation:key={key}+gaussian:epsilon=1").guarantees()
    assert parse_defense(f"clip:norm=1+rotation:key={key}+gaussian:epsilon=1").guarantees()
    with pytest.raises(UserError, match="order 2, not 1"):
        parse_defense(f"clip:norm=1,order=1+rotation:key={key}+laplace:epsilon=1")


def test_in_a_chain_the_server_undoes_the_last_first(key, z):
    edge, server = parse_defense(f"rotation:key={key}+permutation:key={key},over=all+gaussian:sigma=0.01").build(SPECS)
    sent = edge(z, Draws())
    for a, b, c in zip(server(sent), edge.opened(sent), z, strict=True):
        torch.testing.assert_close(a, c, atol=0.06, rtol=0)
        torch.testing.assert_close(a, b)


def test_a_missing_or_short_key_is_one_sentence(tmp_path):
    short = tmp_path / "short"
    short.write_bytes(b"abc")
    for path, words in ((tmp_path / "none", "there is no key .*head -c 32"), (short, "has 3 bytes: give at least 16")):
        with pytest.raises(UserError, match=words) as error:
            parse_defense(f"rotation:key={path}").build(SPECS)
        assert "\n" not in str(error.value)


def test_too_many_channels_for_a_rotation_are_refused(key):
    with pytest.raises(UserError, match="at most 4096 channels"):
        parse_defense(f"rotation:key={key}").build((FeatureSpec("z", (5000,)),))


def test_a_key_is_found_by_its_name_too(key, z, monkeypatch, tmp_path):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "mine").write_bytes(key.read_bytes())
    by_name, by_path = (parse_defense(f"rotation:key={k}").build(SPECS)[0](z, Draws()) for k in ("mine", key))
    assert all(torch.equal(a, b) for a, b in zip(by_name, by_path, strict=True))
