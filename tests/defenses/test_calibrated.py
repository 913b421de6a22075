"""Noise for a Fisher information, FSInfo, or a mutual information: measured on images, bound to that place."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from splitsight.defenses import Place, parse_defense
from splitsight.defenses.fsinfo import half_log_determinants
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline

PLACE = Place("tiny", "S1", "a" * 64, "b" * 64)


class _Linear(nn.Module):
    """z = A x: 20 or 300 features of 3 × 4 × 4 numbers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.matrix = torch.randn(features, 48, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        z = images.flatten(1) @ self.matrix.T
        return z[:, :8], z[:, 8:].view(len(z), 4, -1)


@pytest.fixture
def images():
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("features", [20, 300])
def test_the_determinant_is_that_of_the_matrix(images, features):
    head = _Linear(features)
    a = head.matrix.double()
    small = a @ a.T if features < 48 else a.T @ a
    exact = float(torch.linalg.slogdet(small).logabsdet) / 2 / len(small)
    found = half_log_determinants(head, images, probes=60, steps=48)
    assert found.tolist() == pytest.approx([exact] * 3, abs=0.1)


def test_units_that_are_silent_have_a_floor(images):
    """Half of the features do not move: an undamped determinant would be zero, and the noise with it."""
    head = _Linear(20)
    head.matrix[10:] = 0
    (moving,) = half_log_determinants(lambda x: (head(x)[0],), images[:1], probes=60, steps=48)
    (both,) = half_log_determinants(head, images[:1], probes=60, steps=48)
    assert math.isfinite(both) and both < moving
    head.matrix[:] = 0
    with pytest.raises(UserError, match="do not move with image 0"):
        half_log_determinants(head, images[:1])


def test_noise_for_a_fisher_information(images):
    head = _Linear(20)
    chain = parse_defense("dfil:target=2").fitted(head, (), images, PLACE)
    (part,) = chain.parts
    assert part.sigma == pytest.approx(math.sqrt(float(head.matrix.square().sum()) / 48 / 2), rel=0.3)
    assert part.sigma**2 == pytest.approx(part.parameters.energy / 2) and str(parse_defense(str(chain))) == str(chain)
    assert "mean squared error below 0.5 a number (dFIL = 2)" in chain.guarantees()[0] and chain.mechanism is None


def test_noise_for_a_fisher_approximated_shannon_information(images):
    head = _Linear(300)
    (part,) = parse_defense("fsinfo:target=-1").fitted(head, (), images, PLACE).parts
    gram = (head.matrix.double().T @ head.matrix.double()) / part.sigma**2
    found = float(torch.linalg.slogdet(gram).logabsdet) / (2 * 48) - 0.5 * math.log(2 * math.pi * math.e)
    assert found == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize("text", ["dfil:target=1", "fsinfo:target=0", "pac:budget=1"])
def test_what_was_not_measured_is_refused_with_the_command_that_measures(text):
    with pytest.raises(UserError, match="splitsight calibrate") as error:
        parse_defense(text).build((FeatureSpec("z", (4, 2, 2)),))
    assert "\n" not in str(error.value)


def test_a_defence_behind_another_is_measured_behind_it(images):
    head = _Linear(20)
    plain, clipped = (
        parse_defense(t).fitted(head, (FeatureSpec("a", (8,)), FeatureSpec("b", (4, 3))), images, PLACE).parts[-1]
        for t in ("dfil:target=1", "clip:norm=0.1+dfil:target=1")
    )
    assert clipped.parameters.energy < 0.01 * plain.parameters.energy


# ------------------------------------------------------------------ PAC


class _Correlated(nn.Module):
    """Features with very different variances, correlated between channels and positions."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.mixing = torch.randn(32, 48, generator=generator) * torch.logspace(-1.5, 1, 32)[:, None]

    def forward(self, images):
        x = images.flatten(1)
        return ((x - 0.5) @ self.mixing.T).view(len(images), 8, 2, 2), x[:, :5]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    images = torch.rand(800, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    path = tmp_path_factory.mktemp("pac") / "pac.safetensors"
    chain = parse_defense("pac:budget=3").fitted(_Correlated(), (), images, PLACE, path)
    return chain, images


SPECS = (FeatureSpec("z0", (8, 2, 2)), FeatureSpec("z1", (5,)))


def _noise_covariance(edge) -> torch.Tensor:
    zero = tuple(torch.zeros(40_000, *s.shape) for s in SPECS)
    noise = torch.cat([n.flatten(1) for n in edge(zero, Draws())], 1).double()
    return noise.T @ noise / len(noise)


def test_the_mutual_information_is_within_the_budget_and_near_it(fitted):
    """With the full covariance of the features, for Gaussian ones exact: ½ log det(I + Σ B⁻¹) ≤ v."""
    chain, images = fitted
    edge, _ = chain.build(SPECS)
    z = torch.cat([t.flatten(1) for t in _Correlated()(images)], 1).double()
    z = z - z.mean(0)
    sigma, noise = z.T @ z / (len(z) - 1), _noise_covariance(edge)
    information = 0.5 * float(torch.linalg.slogdet(torch.eye(len(sigma)) + sigma @ torch.linalg.inv(noise)).logabsdet)
    assert 0.1 < information <= 3


def test_the_noise_is_what_it_says_of_itself(fitted):
    edge, _ = fitted[0].build(SPECS)
    zero = tuple(torch.zeros(1, *s.shape) for s in SPECS)
    covariance = _noise_covariance(edge)
    said = torch.cat([d.flatten() for d in edge.deviations(zero)]).double()
    torch.testing.assert_close(covariance.diagonal().sqrt(), said, rtol=0.03, atol=0)
    first = covariance[:32, :32].view(8, 4, 8, 4).diagonal(dim1=1, dim2=3).mean(-1)
    torch.testing.assert_close(first.float(), edge.covariances(zero)[0], rtol=0.1, atol=0.03 * float(first.max()))
    assert edge.law == "gaussian" and edge.fresh


def test_a_smaller_budget_has_more_noise(fitted):
    before = str(fitted[0]).rsplit("budget", 1)[0]
    total = [float(_noise_covariance(parse_defense(f"{before}budget={v}").build(SPECS)[0]).trace()) for v in (1, 3, 30)]
    assert total[0] > total[1] > total[2]


def test_the_closed_form_bounds_the_scale():
    from splitsight.defenses.pac import _scale

    roots = torch.rand(200, generator=torch.Generator().manual_seed(5)).double() ** 3
    for budget in (0.1, 10.0, 400.0):
        c = _scale(roots, budget)
        assert c <= float(roots.sum()) / (2 * budget) * (1 + 1e-9)
        assert 0.5 * float((roots / c).log1p().sum()) == pytest.approx(budget, rel=1e-6)
        assert 0.5 * float((roots / c).log1p().sum()) <= budget


def test_it_says_its_budget_and_no_more(fitted):
    (said,) = fitted[0].guarantees()
    assert "at most 3 nats (4.33 bits)" in said and "800 images" in said and "no differential privacy" in said
    assert fitted[0].mechanism is None


# ------------------------------------------------------------------ bound to a place


def test_another_target_split_or_digest_is_refused(fitted, tiny_target, tmp_path):
    cut = tiny_target.cut("S1")
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    place = Place("tiny", "S1", cut.head_digest, cut.tail_digest)
    chain = parse_defense("pac:budget=5").fitted(cut.head, cut.specs, images, place, tmp_path / "p.safetensors")
    pipeline = EdgePipeline(tiny_target, "S1", chain)
    assert len(pipeline.description().defense_digest) == 64
    assert pipeline.description() == EdgePipeline(tiny_target, "S1", str(chain)).description()
    with pytest.raises(UserError, match="trained for split point S1, not S2: make another with `splitsight calibrate"):
        EdgePipeline(tiny_target, "S2", str(chain))
    for field, value, words in (
        ("target", "other", "target tiny, not other"),
        ("head_digest", "c" * 64, "weights of F1 with digest .{12}…, not cc"),
        ("tail_digest", "c" * 64, "weights of F2 with digest .{12}…, not cc"),
    ):
        with pytest.raises(UserError, match=words):
            chain.check(replace(place, **{field: value}))


def test_a_missing_damaged_or_foreign_file_is_one_sentence(tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    from splitsight.artifacts import save_weights

    foreign = tmp_path / "foreign.safetensors"
    save_weights(foreign, {"a": torch.zeros(1)}, {"defense": "shredder"})
    for path, words in (
        (tmp_path / "none", "has no weights at"),
        (damaged, "not a readable safetensors file"),
        (foreign, "holds the defence shredder, not pac"),
    ):
        with pytest.raises(UserError, match=words) as error:
            parse_defense(f"pac:weights={path},budget=1").check(PLACE)
        assert "\n" not in str(error.value)
