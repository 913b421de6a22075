"""FSInfo against log determinants of linear maps, and of full Jacobians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from splitsight.errors import UserError
from splitsight.leakage import fsinfo, jacobian_energy

D = 3 * 8 * 8
VARIANCE = 1 / 12


def matrix(rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=g) * torch.logspace(0, -2, rows)[:, None] / math.sqrt(D) * 10


def linear(*matrices):
    return lambda x: tuple(x.flatten(1) @ m.T for m in matrices)


def mutual_information(weighted, variance=VARIANCE):
    """``½ log det(I + τ² WAAᵀW)/d``, nats an input number."""
    m = weighted.double().numpy()
    return 0.5 * np.linalg.slogdet(np.eye(len(m)) + variance * m @ m.T)[1] / D


IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [10, 100, 300], ids=["all rows", "fewer features", "more features"])
def test_the_information_is_that_between_a_gaussian_image_and_linear_features(rows):
    a = matrix(rows)
    found = fsinfo(linear(a), IMAGES, 0.3, probes=40, steps=30)
    expected = mutual_information(a / 0.3)
    np.testing.assert_allclose(found.information.values, expected, rtol=0.02)
    assert (np.abs(found.information.values - expected) <= 4 * found.errors + 1e-6).all()


def test_the_certainty_is_minus_the_entropy_of_the_posterior():
    a, sigma = matrix(100), 0.3
    precision = a.double().numpy().T @ a.double().numpy() / sigma**2 + np.eye(D) / VARIANCE
    entropy = 0.5 * (D * math.log(2 * math.pi * math.e) - np.linalg.slogdet(precision)[1])
    found = fsinfo(linear(a), IMAGES, sigma, probes=40, steps=30)
    np.testing.assert_allclose(found.values, -entropy / D, rtol=0.02)


def test_a_vague_prior_gives_the_published_form():
    torch.manual_seed(0)
    a, sigma = torch.linalg.qr(torch.randn(D, D))[0] * torch.linspace(0.5, 2, D)[:, None], 0.3
    # σ = det(JᵀJ)^(1/2d) / (e^FSInfo √(2πe)), solved for FSInfo
    log_det = np.linalg.slogdet(a.double().numpy().T @ a.double().numpy())[1]
    published = log_det / (2 * D) - math.log(sigma * math.sqrt(2 * math.pi * math.e))
    found = fsinfo(linear(a), IMAGES, sigma, prior_variance=1e6, probes=20, steps=20)
    np.testing.assert_allclose(found.values, published, atol=0.01)


def test_the_mutual_information_of_draws_is_estimated_the_same():
    # H(z) − H(z|x) of a Gaussian image, from the covariance of draws instead of from the map
    a, sigma, count = matrix(10), 0.3, 200_000
    rng = np.random.default_rng(0)
    x = 0.5 + math.sqrt(VARIANCE) * rng.standard_normal((count, D), np.float32)
    z = x @ a.numpy().T + sigma * rng.standard_normal((count, 10), np.float32)
    drawn = 0.5 * np.linalg.slogdet(np.cov(z.T.astype(np.float64)) / sigma**2)[1] / D
    np.testing.assert_allclose(fsinfo(linear(a), IMAGES, sigma).information.values, drawn, rtol=0.01)


@pytest.mark.parametrize("rows", [(6, 4), (40, 50), (200, 100)])
def test_several_tensors_with_noise_of_their_own(rows):
    a, b = matrix(rows[0]), matrix(rows[1], 5)
    found = fsinfo(linear(a, b), IMAGES, [0.3, 2.0], probes=40, steps=30)
    np.testing.assert_allclose(found.information.values, mutual_information(torch.cat([a / 0.3, b / 2])), rtol=0.02)


def test_noise_of_each_image():
    a = matrix(10)
    found = fsinfo(linear(a), IMAGES, np.array([[0.1], [1.0]]))
    expected = [mutual_information(a / 0.1), mutual_information(a)]
    np.testing.assert_allclose(found.information.values, expected, rtol=1e-4)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images):
        a = self.first(images).relu()
        return a, self.pool(self.second(a).relu())


def test_a_network_against_its_full_jacobian():
    head = Small().eval().requires_grad_(False)
    found = fsinfo(head, IMAGES, [0.05, 0.1], probes=40, steps=24)
    for i, image in enumerate(IMAGES):
        first, second = torch.func.jacrev(lambda x: head(x[None]))(image)
        j = torch.cat([first.reshape(-1, D) / 0.05, second.reshape(-1, D) / 0.1])
        assert found.information.values[i] == pytest.approx(mutual_information(j), rel=0.02)


def test_too_few_steps_overstate_the_leakage():
    a = matrix(100)
    values = [fsinfo(linear(a), IMAGES, 0.01, probes=40, steps=s).values for s in (2, 4, 8, 16, 32)]
    assert (np.diff(values, axis=0) < 1e-6).all()


def test_more_noise_leaves_less():
    found = [fsinfo(linear(matrix(100)), IMAGES, sigma).information.values for sigma in (0.01, 0.1, 1, 10, 1e4)]
    assert (np.diff(found, axis=0) < 0).all()
    np.testing.assert_allclose(found[-1], 0, atol=1e-6)


def test_features_of_few_directions_end_lanczos_early():
    # ten directions among 100 features: Lanczos has found all after ten steps
    a = torch.cat([matrix(10)] * 10)
    found = fsinfo(linear(a), IMAGES, 0.3, probes=100, steps=14).information
    assert (np.abs(found.values - mutual_information(a / 0.3)) < 4 * found.errors).all()
    assert (found.errors < 0.1 * found.values).all()
    zero = fsinfo(linear(torch.zeros(100, D)), IMAGES, 0.3)
    np.testing.assert_allclose(zero.information.values, 0, atol=1e-12)


def test_seeds_batches_and_single_images():
    head = Small().eval().requires_grad_(False)
    once = fsinfo(head, IMAGES, 0.1, seed=2)
    np.testing.assert_array_equal(once.values, fsinfo(head, IMAGES, 0.1, seed=2).values)
    np.testing.assert_allclose(once.values, fsinfo(head, IMAGES, 0.1, seed=2, batch=1).values, rtol=1e-4)
    np.testing.assert_allclose(once.values[:1], fsinfo(head, IMAGES[:1], 0.1, seed=2).values, rtol=1e-4)
    assert (fsinfo(head, IMAGES, 0.1, seed=3).values != once.values).all()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_features_does_not_matter(scale):
    a = matrix(100)
    found = [fsinfo(linear(a * s), IMAGES, 0.3 * s).values for s in (1, scale)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_without_noise_it_is_infinite():
    assert fsinfo(linear(matrix(10)), IMAGES, 0) is None
    assert fsinfo(linear(matrix(10), matrix(20)), IMAGES, [0.1, 0.0]) is None


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * 2


@pytest.mark.parametrize(
    "head",
    [lambda x: (Once.apply(x),), lambda x: (x.mean(1), Once.apply(x)), lambda x: (x[:, :2] + Once.apply(x)[:, 1:],)],
    ids=["alone", "in one tensor", "in one branch"],
)
def test_an_operator_with_one_derivative_alone_is_refused_and_has_energy_still(head):
    with pytest.raises(UserError, match=r"neither a second nor a forward-mode.*leave it out;"):
        fsinfo(head, IMAGES, 0.1)
    assert (jacobian_energy(head, IMAGES).values > 0).all()


def test_forward_mode_takes_over_where_a_derivative_has_none():
    a = matrix(100)
    found = fsinfo(lambda x: (nn.functional.hardsigmoid(x.flatten(1) @ a.T),), IMAGES, 0.1, probes=40, steps=30)
    for i, z in enumerate(IMAGES.flatten(1) @ a.T):
        inner = (z.abs() < 3)[:, None] * a / 6
        assert found.information.values[i] == pytest.approx(mutual_information(inner / 0.1), rel=0.03)


def test_fused_attention_is_no_obstacle():
    def head(x):
        tokens = x.flatten(2)
        return (nn.functional.scaled_dot_product_attention(tokens, tokens, tokens),)

    assert (fsinfo(head, IMAGES, 0.1).information.values > 0).all()


@pytest.mark.parametrize(
    "options", [{"probes": 1}, {"steps": 0}, {"batch": 0}, {"prior_variance": 0.0}, {"prior_variance": math.inf}]
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match="a positive number"):
        fsinfo(linear(matrix(10)), IMAGES, 0.1, **options)
    with pytest.raises(ValueError, match="deviations"):
        fsinfo(linear(matrix(10)), IMAGES, [0.1, 0.1])
