"""The live window's fit of latents, then pixels."""

import time

import pytest
import torch
from torch import nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.callback import Callback
from adversary.whitebox.posterior import PIXEL_NOISE
from adversary.whitebox.window import Start, fit_window
from splitsight.features import FeatureSpec


class _Head(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 2),)


@pytest.fixture
def network(flow_prior):
    """Answers zero; its errors were measured."""
    torch.manual_seed(0)
    network = InversionNetwork([FeatureSpec("z0", (3, 8, 8))], flow_prior.latent_shape, width=8, depth=1).eval()
    nn.init.zeros_(network.exit.weight)
    nn.init.zeros_(network.exit.bias)
    network.expect_errors().measure(torch.randn(200, *flow_prior.latent_shape), [0.05 * torch.randn(200, 3, 8, 8)])
    network.expect_pixels(16).measure(0.1 * torch.randn(200, 3, 16, 16), [])
    return network.requires_grad_(False)


@torch.no_grad()
def _case(prior, frames=3, spread=1.0):
    torch.manual_seed(4)
    truth = prior.decode(spread * torch.randn(frames, *prior.latent_shape)).clamp(0, 1)
    return truth, list(_Head()(truth))


def _start(prior, z, **more):
    centre = torch.zeros(len(z[0]), *prior.latent_shape)
    return Start(z, [FeatureSpec("z0", (3, 8, 8))], [0.0], centre, centre.clone(), **more)


def _error(images, z):
    return float((_Head()(images)[0] - z[0]).square().mean())


def test_pixels_reach_what_latents_cannot(flow_prior, network):
    _, z = _case(flow_prior)
    latents = fit_window(flow_prior, _Head(), network, _start(flow_prior, z), inner=6, pixels=0, smoothing=0.0)
    both = fit_window(flow_prior, _Head(), network, _start(flow_prior, z), inner=6, pixels=20, smoothing=0.0)
    assert latents.detail is None and both.detail.shape == (3, 3, 16, 16)
    assert _error(both.outcome.images, z) < 0.5 * _error(latents.outcome.images, z)
    torch.testing.assert_close(both.outcome.value, latents.outcome.value)
    assert both.outcome.iterations == len(both.outcome.losses)
    assert both.outcome.images.min() >= 0 and both.outcome.images.max() <= 1


def test_pixels_are_the_closed_form_of_a_linear_problem(flow_prior, network):
    """For a linear F1: ``x₀ + Q Hᵀ (H Q Hᵀ + σ² I)⁻¹ (z − H x₀)``."""
    _, z = _case(flow_prior, frames=1, spread=0.05)
    fit = fit_window(flow_prior, _Head(), network, _start(flow_prior, z), inner=3, pixels=150, smoothing=0.0)
    latents = fit_window(flow_prior, _Head(), network, _start(flow_prior, z), inner=3, pixels=0, smoothing=0.0)
    got = latents.outcome.images + fit.detail
    n = 3 * 16 * 16
    with torch.no_grad():
        root = network.pixels.displacement(torch.eye(n).view(n, 3, 16, 16)).view(n, n).T.double()
        h = _Head()(torch.eye(n).view(n, 3, 16, 16))[0].flatten(1).T.double()
        x0 = flow_prior.decode(torch.zeros(1, *flow_prior.latent_shape)).clamp(0, 1).flatten().double()
    q, sigma = root @ root.T, PIXEL_NOISE * float(z[0].flatten().var().sqrt())
    y = z[0].flatten().double() - h @ x0
    wanted = x0 + q @ h.T @ torch.linalg.solve(h @ q @ h.T + sigma**2 * torch.eye(len(h)).double(), y)
    # answers are images; the fit itself is not clamped
    torch.testing.assert_close(got.flatten().double(), wanted.clamp(0, 1), atol=2e-3, rtol=0)


def test_without_f1_or_errors_of_pixels_the_latents_have_the_time(flow_prior, network):
    _, z = _case(flow_prior)
    network.pixels = None
    fit = fit_window(flow_prior, _Head(), network, _start(flow_prior, z), inner=4, pixels=9, smoothing=0.0)
    assert fit.outcome.iterations == 4 + 9 // 3 and fit.detail is None
    alone = fit_window(flow_prior, None, network, _start(flow_prior, z), inner=4, pixels=9, smoothing=1.0)
    assert alone.detail is None and alone.outcome.iterations > 0


def test_a_deadline_leaves_most_of_the_time_to_pixels_and_is_kept(flow_prior, network):
    _, z = _case(flow_prior)
    begin = time.monotonic()
    many = 10**6
    fit = fit_window(
        flow_prior,
        _Head(),
        network,
        _start(flow_prior, z),
        inner=many,
        pixels=many,
        smoothing=1.0,
        callback=Callback(begin + 0.8),
    )
    assert time.monotonic() - begin < 2
    assert fit.detail is not None
    # nothing at all before a deadline that has passed
    late = fit_window(
        flow_prior, _Head(), network, _start(flow_prior, z), inner=5, pixels=5, smoothing=1.0, callback=Callback(begin)
    )
    assert late.outcome.iterations == 0 and late.outcome.images.isfinite().all()
