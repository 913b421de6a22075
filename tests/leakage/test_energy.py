"""Products with the Jacobian and its energy, against the full Jacobian of torch.func."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.leakage import jacobian_energy
from splitsight.leakage.jacobian import Jacobian


class Convolutions(nn.Module):
    """Three tensors cross: a map behind tanh, a map behind a rectifier, and a vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, 2), nn.Linear(16, 7)

    def forward(self, images):
        a = self.first(images).tanh()
        b = self.second(a).relu()
        return a, b, self.last(b.flatten(1))


class Attention(nn.Module):
    """Tokens cross, behind an attention layer that has a fast path without gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    def forward(self, images):
        return (self.layer(self.patches(images).flatten(2).mT),)


HEADS = [
    pytest.param(Convolutions, ("map", "map", "vector"), id="maps and a vector"),
    pytest.param(Attention, ("tokens",), id="tokens"),
]


def head_of(kind):
    return kind().eval().requires_grad_(False)


def images_of(count=3):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exact(head, images):
    """``(N, T)``: energies of each tensor."""
    found = []
    for image in images:
        full = torch.func.jacrev(lambda x: head(x[None]))(image)
        found.append([j.double().square().sum() / image.numel() for j in full])
    return np.array(found)


@pytest.mark.parametrize(("kind", "layouts"), HEADS)
def test_products_are_those_of_the_full_jacobian(kind, layouts):
    head, images = head_of(kind), images_of()
    jacobian = Jacobian(head, images)
    assert tuple(FeatureSpec("z", tuple(z.shape[1:])).layout for z in jacobian.features) == layouts
    v = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    u = [torch.randn(z.shape, generator=torch.Generator().manual_seed(3)) for z in jacobian.features]
    forwards, backwards = jacobian(v), jacobian.transposed(u)
    for i, image in enumerate(images):
        full = torch.func.jacrev(lambda x: head(x[None]))(image)
        for t, j in enumerate(full):
            torch.testing.assert_close(
                forwards[t][i], (j[0].flatten(-3) @ v[i].flatten()), rtol=1e-4, atol=1e-5, msg=f"tensor {t}"
            )
        expected = sum(torch.tensordot(u[t][i], j[0], u[t][i].ndim) for t, j in enumerate(full))
        torch.testing.assert_close(backwards[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "layouts"), HEADS)
def test_energy_agrees_with_the_exact_trace_within_its_errors(kind, layouts):
    head, images = head_of(kind), images_of()
    energy, truth = jacobian_energy(head, images, probes=200, seed=3), exact(head, images)
    assert energy.values.shape == energy.errors.shape == (3,)
    assert energy.samples.shape == (3, len(layouts), 200)
    assert (np.abs(energy.values - truth.sum(1)) < 4 * energy.errors).all()
    assert (energy.errors < 0.1 * energy.values).all()
    np.testing.assert_allclose(energy.samples.mean(2), truth, rtol=0.1)


def test_errors_cover_the_exact_trace_as_often_as_they_say():
    head, images = head_of(Convolutions), images_of(1)
    truth = exact(head, images).sum()
    probes = 8
    inside = 0
    for seed in range(200):
        energy = jacobian_energy(head, images, probes=probes, seed=seed)
        inside += abs(energy.values[0] - truth) < 2.365 * energy.errors[0]  # Student's t, 7 degrees of freedom
    assert 0.90 <= inside / 200 <= 0.99


def test_more_probes_have_smaller_errors():
    head, images = head_of(Convolutions), images_of(1)
    few, many = (jacobian_energy(head, images, probes=p).errors[0] for p in (16, 1600))
    assert 5 < few / many < 20


def test_the_seed_and_the_place_of_an_image_decide_its_probes():
    head, images = head_of(Convolutions), images_of(5)
    once = jacobian_energy(head, images, seed=4)
    np.testing.assert_array_equal(once.samples, jacobian_energy(head, images, seed=4).samples)
    np.testing.assert_allclose(once.samples, jacobian_energy(head, images, seed=4, batch=2).samples, rtol=1e-4)
    np.testing.assert_allclose(once.samples[:1], jacobian_energy(head, images[:1], seed=4).samples, rtol=1e-4)
    assert (jacobian_energy(head, images, seed=5).values != once.values).all()
    same = jacobian_energy(head, images[:1].expand(3, -1, -1, -1), seed=4).values
    assert len(set(same)) == 3


def test_a_single_feature_is_exact():
    weights = torch.randn(1, 48, generator=torch.Generator().manual_seed(0))
    energy = jacobian_energy(lambda x: (x.flatten(1) @ weights.T,), torch.rand(2, 3, 4, 4), probes=2)
    np.testing.assert_allclose(energy.values, float(weights.double().square().mean()), rtol=1e-6)
    np.testing.assert_allclose(energy.errors, 0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e15])
def test_features_of_any_unit(scale):
    # squares of the smallest are none of float32
    energy = jacobian_energy(lambda x: (scale * x,), torch.rand(2, 3, 4, 4))
    np.testing.assert_allclose(energy.values, scale**2, rtol=1e-6)


def test_nothing_of_the_caller_is_changed():
    head, images = head_of(Convolutions), images_of()
    before = torch.get_rng_state()
    with torch.inference_mode():
        within = jacobian_energy(head, images)
    with torch.no_grad():
        without = jacobian_energy(head, images)
    np.testing.assert_array_equal(within.samples, without.samples)
    assert torch.equal(before, torch.get_rng_state())
    assert not images.requires_grad and all(p.grad is None for p in head.parameters())


def test_a_tensor_that_does_not_depend_on_the_image_has_no_energy():
    constant = torch.ones(2, 5)
    energy = jacobian_energy(lambda x: (x * 2, constant[: len(x)]), torch.rand(2, 3, 4, 4))
    np.testing.assert_allclose(energy.samples[:, 0].mean(1), 4, rtol=1e-6)
    np.testing.assert_array_equal(energy.samples[:, 1], 0)


def test_features_that_cannot_be_derived_are_refused():
    with pytest.raises(UserError, match="no derivative by the images"):
        jacobian_energy(lambda x: (x.detach(),), torch.rand(2, 3, 4, 4))
    images = torch.rand(3, 3, 4, 4)
    images[2] = 0
    with pytest.raises(UserError, match="not finite at image 2,"):
        jacobian_energy(lambda x: (x.sqrt(),), images, batch=2)


@pytest.mark.parametrize("options", [{"probes": 1}, {"batch": 0}, {"images": torch.rand(0, 3, 4, 4)}])
def test_arguments_out_of_range(options):
    images = options.pop("images", torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="give ≥ 1, ≥ 2 and ≥ 1"):
        jacobian_energy(lambda x: (x,), images, **options)


def test_the_interval_is_over_images():
    head, images = head_of(Convolutions), images_of(5)
    energy = jacobian_energy(head, images)
    interval = energy.interval()
    assert interval["mean"] == pytest.approx(energy.values.mean())
    assert interval["low"] < interval["mean"] < interval["high"]
