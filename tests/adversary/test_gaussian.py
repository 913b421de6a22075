"""Measured errors and the maximum a posteriori fit, against closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from adversary.attacks import ATTACKS, Problem
from adversary.blackbox.inversion import InversionNetwork, load_inversion
from adversary.gaussian import GaussianErrors, cosine_basis, whitened
from adversary.whitebox.posterior import GaussianPrior, OnLatents, WhitenedLatent, WhitenedMatch
from adversary.whitebox.solvers import lbfgs
from adversary.whitebox.terms import TemporalSmoothing
from splitsight.errors import UserError
from splitsight.features import FeatureSpec


def test_cosine_basis_is_orthonormal_and_a_dct():
    basis = cosine_basis(8)
    assert torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-6)
    x = torch.arange(8.0)
    # definition of the DCT-II, coefficient 3
    want = math.sqrt(2 / 8) * sum(float(x[i]) * math.cos(math.pi * (i + 0.5) * 3 / 8) for i in range(8))
    assert float((basis @ x)[3]) == pytest.approx(want, abs=1e-4)


def _specs(*shapes):
    return [FeatureSpec(f"z{i}", shape) for i, shape in enumerate(shapes)]


@pytest.fixture
def measured():
    """Errors measured on samples of a known, correlated distribution."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4000, 3, 4, 4, generator=generator)
    mix = torch.tensor([[1.0, 0, 0], [0.8, 0.3, 0], [-0.2, 0.1, 2.0]])
    latent = torch.einsum("cd,ndhw->nchw", mix, white)
    features = torch.einsum(
        "cd,ndhw->nchw", torch.tensor([[2.0, 0.0], [1.5, 1.0]]), torch.randn(4000, 2, 2, 2, generator=generator)
    )
    errors = GaussianErrors((3, 4, 4), _specs((2, 2, 2), (5,)))
    vector = torch.randn(4000, 5, generator=generator) * torch.tensor([1.0, 2, 3, 4, 5])
    errors.measure(latent, [features, vector])
    return errors, latent, features, vector


def test_displacement_and_whitened_are_inverse(measured):
    errors, *_ = measured
    a = torch.randn(2, 3, 4, 4)
    assert torch.allclose(errors.whitened(errors.displacement(a)), a, atol=1e-4)


def test_whitening_makes_the_measured_errors_white(measured):
    errors, latent, features, vector = measured
    white = errors.whitened(latent).flatten(1)
    assert torch.allclose(white.T @ white / len(white), torch.eye(48), atol=0.12)
    rows = torch.einsum("kc,nchw->nhwk", errors.whitener(0), features).flatten(0, 2)
    assert torch.allclose(rows.T @ rows / len(rows), torch.eye(2), atol=0.08)
    flat = vector @ errors.whitener(1).T
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(5), atol=0.08)


def test_known_noise_adds_to_the_covariance(measured):
    errors, *_ = measured
    w, with_noise = errors.whitener(0), errors.whitener(0, noise=0.7)
    covariance = torch.linalg.inv(w.T @ w) + 0.49 * torch.eye(2)
    assert torch.allclose(torch.linalg.inv(with_noise.T @ with_noise), covariance, rtol=1e-3, atol=1e-4)


def test_noise_of_each_channel_adds_to_its_own_variance(measured):
    errors = measured[0]
    channels = errors.whitener(0).shape[0]
    sigma = torch.linspace(0, 1, channels)
    per_entry = errors.specs[0].per_channel(sigma)[None]
    covariance = torch.linalg.inv((errors.whitener(0).T @ errors.whitener(0)).double())
    found = torch.linalg.inv((errors.whitener(0, noise=per_entry).T @ errors.whitener(0, noise=per_entry)).double())
    torch.testing.assert_close(found, covariance + torch.diag(sigma.double() ** 2), rtol=1e-3, atol=1e-4)
    alike = [errors.whitener(1, noise=n) for n in (0.7, torch.full((1, *errors.specs[1].shape), 0.7))]
    torch.testing.assert_close(*alike)


def test_a_large_feature_without_grid_has_variances_only():
    errors = GaussianErrors((1, 2, 2), _specs((2000,)))
    errors.measure(torch.randn(50, 1, 2, 2), [3 * torch.randn(400, 2000)])
    assert errors.whitener(0).shape == (2000,)
    assert float(errors.whitener(0).mean()) == pytest.approx(1 / 3, rel=0.05)
    assert float(errors.whitener(0, noise=4.0).mean()) == pytest.approx(1 / 5, rel=0.05)


class _Linear(torch.nn.Module):
    """F1: a fixed linear map of the image to five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(5, 48, generator=torch.Generator().manual_seed(1)) / 5)

    def forward(self, x):
        return (x.flatten(1) @ self.matrix.T,)


def test_the_fit_is_the_closed_form_for_a_linear_model(measured):
    """Gaussian prior and linear observation: u = u₀ + C Jᵀ (J C Jᵀ + R)⁻¹ (z − J u₀)."""
    latent = measured[1]
    errors = GaussianErrors((3, 4, 4), _specs((5,)))
    errors.measure(latent, [measured[3]])
    prior = SimpleNamespace(decode=lambda u: u)
    head = _Linear().requires_grad_(False)
    centre = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    variable = WhitenedLatent(prior, errors, centre)
    outcome = lbfgs(variable, [WhitenedMatch(head, [z], errors), GaussianPrior()], evaluations=200, together=False)
    found = variable.latents(outcome.value).flatten(1)

    factor = errors.displacement(torch.eye(48).view(48, 3, 4, 4)).flatten(1).T
    c = (factor @ factor.T).double()
    w = errors.whitener(0).double()
    r = torch.linalg.inv(w.T @ w)
    j = head.matrix.double()
    u0 = centre.flatten(1).double()
    gain = c @ j.T @ torch.linalg.inv(j @ c @ j.T + r)
    want = u0 + (z.double() - u0 @ j.T) @ gain.T
    assert torch.allclose(found.double(), want, atol=1e-3)


def test_terms_on_latents_see_latents(measured):
    errors = measured[0]
    variable = WhitenedLatent(SimpleNamespace(decode=lambda u: u), errors, torch.zeros(2, 3, 4, 4))
    value = torch.randn(2, 3, 4, 4)
    smoothing = TemporalSmoothing(0.5)
    on = OnLatents(variable, smoothing)
    assert on.weight == 0.5
    assert torch.equal(on(value, value), smoothing(variable.latents(value), value))


def test_errors_travel_with_the_network(tmp_path, measured):
    network = InversionNetwork(_specs((2, 2, 2), (5,)), (3, 4, 4), width=4, depth=1)
    network.expect_errors().load_state_dict(measured[0].state_dict())
    about = {"head_digest": "t", "prior_digest": "p", "target": "a", "split": "b", "prior": "c"}
    network.save(tmp_path / "n.safetensors", **about)
    loaded = load_inversion("a", "b", "c", head_digest="t", prior_digest="p", path=tmp_path / "n.safetensors")
    assert loaded.errors is not None
    a = torch.randn(1, 3, 4, 4)
    assert torch.allclose(loaded.errors.displacement(a), measured[0].displacement(a), atol=5e-3)
    bare = InversionNetwork([FeatureSpec("z0", (2, 2, 2))], (3, 4, 4), width=4, depth=1)
    bare.save(tmp_path / "bare.safetensors", **about)
    assert (
        load_inversion("a", "b", "c", head_digest="t", prior_digest="p", path=tmp_path / "bare.safetensors").errors
        is None
    )


def test_a_network_without_errors_is_refused_by_name(flow_prior):
    network = InversionNetwork([FeatureSpec("z0", (8, 4, 4))], flow_prior.latent_shape, width=8, depth=1)
    problem = Problem([torch.rand(2, 8, 4, 4)], prior=flow_prior, initial=lambda: network)
    with pytest.raises(UserError, match="retrain it with `splitsight train inversion`, or choose window:denoised"):
        ATTACKS.get("window").configured().reconstruct(problem)


@pytest.mark.parametrize("shape", [(1500, 3, 3), (3, 3, 1500), (17, 20), (17, 1500), (2000,), (2, 3, 4, 5)], ids=str)
def test_features_of_any_layout_are_whitened(shape):
    (spec,) = _specs(shape)
    errors = GaussianErrors((1, 2, 2), [spec])
    scale = torch.linspace(0.5, 2, spec.channels)
    residual = spec.per_channel(scale) * torch.randn(400, *shape, generator=torch.Generator().manual_seed(0))
    errors.measure(torch.randn(50, 1, 2, 2), [residual])
    whitener = errors.whitener(0)
    # a full covariance only where it is small
    assert whitener.shape == ((spec.channels,) if spec.channels > 1024 else (spec.channels, spec.channels))
    white = whitened(residual, spec, whitener).movedim(1, -1)
    assert white.shape[-1] == spec.channels
    torch.testing.assert_close(
        white.reshape(-1, spec.channels).square().mean(0), torch.ones(spec.channels), atol=0.02, rtol=0
    )
