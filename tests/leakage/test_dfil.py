"""dFIL and its bounds against linear maps, where both and the estimators that attain them are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splitsight.leakage import Energy, cramer_rao, dfil, jacobian_energy, van_trees
from splitsight.leakage.estimates import Estimates
from splitsight.pipeline import EdgePipeline

SIDE, D = 2, 12
DRAWS = 20_000


def linear(matrix):
    """F1 of one vector: ``A x``."""
    return lambda x: (x.flatten(1) @ matrix.to(x).T,)


def orthogonal(factor, seed=0):
    q, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))
    return factor * q


def any_matrix(rows=20, seed=1):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) / 3


def leakage(matrix, sigma, probes=400):
    return dfil(jacobian_energy(linear(matrix), torch.rand(2, 3, SIDE, SIDE), probes=probes), sigma)


def observed(matrix, x, sigma, rng):
    return x @ matrix.double().numpy().T + sigma * rng.standard_normal((len(x), len(matrix)))


def energy_of(*values):
    """Of two tensors with the energies given, known exactly, for each of three images."""
    samples = np.broadcast_to(np.array(values)[None, :, None], (3, len(values), 2))
    return Energy(samples.sum(1).mean(1), np.zeros(3), samples)


def test_dfil_is_the_trace_of_the_fisher_information():
    a, sigma = any_matrix(), 0.3
    found = leakage(a, sigma)
    expected = float(a.double().square().sum()) / sigma**2 / D
    assert (np.abs(found.values - expected) < 4 * found.errors).all()


def test_least_squares_attains_cramer_rao_where_the_map_is_a_rotation():
    a, sigma, rng = orthogonal(1.7), 0.4, np.random.default_rng(0)
    bound = cramer_rao(leakage(a, sigma))
    x = rng.uniform(size=(DRAWS, D))
    estimate = observed(a, x, sigma, rng) @ np.linalg.pinv(a.double().numpy()).T
    mse = np.square(estimate - x).mean()
    assert mse == pytest.approx(sigma**2 / 1.7**2, rel=0.02)
    assert bound.mse == pytest.approx(mse, rel=0.02)
    assert bound.psnr == pytest.approx(-10 * math.log10(mse), abs=0.1)


def test_least_squares_stays_above_cramer_rao_elsewhere():
    a, sigma, rng = any_matrix(), 0.4, np.random.default_rng(0)
    x = rng.uniform(size=(DRAWS, D))
    mse = np.square(observed(a, x, sigma, rng) @ np.linalg.pinv(a.double().numpy()).T - x).mean()
    assert cramer_rao(leakage(a, sigma)).high < mse


def test_a_biased_attacker_goes_below_cramer_rao_and_not_below_van_trees():
    a, sigma, spread, rng = orthogonal(0.5), 1.0, 0.3, np.random.default_rng(0)
    found = leakage(a, sigma)
    x = spread * rng.standard_normal((DRAWS, D))
    z = observed(a, x, sigma, rng)
    posterior = z @ a.double().numpy() / (0.5**2 + sigma**2 / spread**2)
    mse = np.square(posterior - x).mean()
    bound = van_trees(found, spread**-2)
    assert mse < 0.05 * cramer_rao(found).mse
    assert bound.mse == pytest.approx(1 / (0.5**2 / sigma**2 + spread**-2), rel=1e-3)
    assert bound.mse == pytest.approx(mse, rel=0.02)  # attained by the posterior mean


def test_the_posterior_mean_stays_above_van_trees_elsewhere():
    a, sigma, rng = any_matrix(rows=5), 0.2, np.random.default_rng(0)
    deviations = np.linspace(0.1, 0.5, D)
    x = deviations * rng.standard_normal((DRAWS, D))
    m = a.double().numpy()
    covariance = np.linalg.inv(m.T @ m / sigma**2 + np.diag(deviations**-2.0))
    mse = np.square(observed(a, x, sigma, rng) @ m @ covariance / sigma**2 - x).mean()
    bound = van_trees(leakage(a, sigma), float((deviations**-2.0).mean()))
    assert 0 < bound.mse < mse


def test_each_tensor_is_weighted_by_its_own_noise():
    energy = energy_of(2.0, 0.5)
    np.testing.assert_allclose(dfil(energy, [1.0, 0.1]).values, 2 + 50)
    np.testing.assert_allclose(dfil(energy, 0.5).values, 10)
    np.testing.assert_allclose(
        dfil(energy, np.array([[1, 1], [2, 1], [1, 0.5]])).values, [2.5, 2 / 4 + 0.5, 2 + 0.5 * 4]
    )


def test_errors_are_those_of_the_weighted_sum():
    energy = jacobian_energy(lambda x: (x[:, :1] * x[:, 1:2], x.sum((1, 2, 3))[:, None]), torch.rand(4, 3, 4, 4))
    found = dfil(energy, [0.1, 10.0])
    sums = energy.samples[:, 0] * 100 + energy.samples[:, 1] / 100
    np.testing.assert_allclose(found.errors, sums.std(1, ddof=1) / math.sqrt(sums.shape[1]))


@pytest.mark.parametrize("sigma", [0, 0.0, [1.0, 0.0], np.array([[1, 1], [1, 0], [1, 1]])])
def test_without_noise_nothing_is_guaranteed(sigma):
    found = dfil(energy_of(2.0, 0.5), sigma)
    assert found is None
    assert cramer_rao(found) is None
    assert van_trees(found, 3.0) is None


@pytest.mark.parametrize("sigma", [-1, math.nan, math.inf, [1.0], [1.0, 1.0, 1.0], np.ones((2, 2))])
def test_deviations_that_cannot_be(sigma):
    with pytest.raises(ValueError, match="deviations"):
        dfil(energy_of(2.0, 0.5), sigma)


def test_bounds_carry_the_interval_over_images():
    found = Estimates(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    interval, bound = found.interval(), cramer_rao(found)
    assert (bound.mse, bound.high) == (pytest.approx(0.5), math.inf)  # the interval of the mean reaches below 0
    assert bound.low == pytest.approx(1 / interval["high"])
    assert van_trees(found, 2.0).high == 0.5
    assert van_trees(found, 0.0) == bound


def test_features_that_say_nothing_bound_everything():
    bound = cramer_rao(Estimates(np.zeros(3), np.zeros(3)))
    assert (bound.mse, bound.psnr) == (math.inf, -math.inf)
    assert van_trees(Estimates(np.zeros(3), np.zeros(3)), 12.0).mse == pytest.approx(1 / 12)


def test_an_infinite_prior_information_leaves_no_bound_but_is_no_error():
    assert van_trees(Estimates(np.ones(3), np.zeros(3)), math.inf).mse == 0
    assert van_trees(Estimates(np.ones(3), np.zeros(3)), math.inf).psnr == math.inf


@pytest.mark.parametrize("information", [-1.0, math.nan])
def test_prior_information_that_cannot_be(information):
    with pytest.raises(ValueError, match="at least 0"):
        van_trees(Estimates(np.ones(3), np.zeros(3)), information)


@pytest.mark.parametrize("split", ["S1", "S2"])
def test_the_noise_of_a_pipelines_defence(tiny_target, split):
    pipeline, images = EdgePipeline(tiny_target, split, "gaussian:sigma=0.3"), torch.rand(3, 3, 16, 16)
    energy = jacobian_energy(pipeline.head, images)
    found = dfil(energy, pipeline.deviations(pipeline.head(images)))
    np.testing.assert_allclose(found.values, energy.values / 0.09)
    undefended = EdgePipeline(tiny_target, split)
    assert dfil(energy, undefended.deviations(undefended.head(images))) is None
