"""What attacks make of a defence: likelihoods, supports, where a fit ends, where a denoiser enters."""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from adversary.attacks import ATTACKS
from adversary.attacks._stages import STAGES, State
from adversary.attacks.base import Problem
from adversary.attacks.best import BestSettings
from adversary.blackbox.inversion import InversionNetwork
from adversary.priors.pixels import PixelDenoiser, build_pixel_denoiser, pixel_deviation
from adversary.whitebox.posterior import WhitenedMatch, pixel_match
from adversary.whitebox.solvers import lbfgs
from adversary.whitebox.terms import MODEL, FeatureMatch, Proximal, TotalVariation
from adversary.whitebox.variables import Pixels
from splitsight.features import FeatureSpec


class _Linear(nn.Module):
    """F1 as a matrix of 6 numbers by 12 pixels (2 × 2, three channels)."""

    def __init__(self, seed=0):
        super().__init__()
        self.matrix = torch.randn(6, 12, generator=torch.Generator().manual_seed(seed)).double()

    def forward(self, x):
        return ((x.flatten(1) @ self.matrix.T).view(-1, 6, 1, 1),)


SPEC = FeatureSpec("z", (6, 1, 1))


def _case(frames=2):
    torch.manual_seed(1)
    return torch.randn(frames, 6, 1, 1).double()


def _fitted(match, frames, weight=0.5):
    variable = Pixels(torch.full((frames, 3, 2, 2), 0.5).double())
    terms = [match, Proximal(torch.full((frames, 3, 2, 2), 0.5).double(), weight)]
    return lbfgs(variable, terms, evaluations=200, together=False).value.flatten(1)


def test_noise_that_differs_from_number_to_number_is_weighted_least_squares():
    head, z = _Linear(), _case()
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0, 10.0]).double().view(6, 1, 1)
    match = pixel_match(head, [z], [sigma], part=0.0)
    match.scale = torch.full_like(match.scale, 0.5)
    variance = (sigma.flatten() ** 2 + (MODEL * z.std()) ** 2).numpy()
    weights = torch.diag(torch.as_tensor(variance.mean() / variance))  # the mean weight is taken out of the scale
    a, b = head.matrix, torch.full((2, 12), 0.5).double()
    normal = 0.5 * a.T @ weights @ a + 0.5 * torch.eye(12).double()
    expected = torch.linalg.solve(normal, (0.5 * (z.flatten(1) @ weights @ a) + 0.5 * b).T).T
    torch.testing.assert_close(_fitted(match, 2), expected, atol=1e-4, rtol=1e-3)


def test_one_strength_of_noise_changes_no_relative_loss():
    head, z, x = _Linear(), _case(), torch.rand(2, 3, 2, 2).double()
    plain, noisy = FeatureMatch(head, [z], relative=True), FeatureMatch(head, [z], relative=True, noise=[0.7])
    torch.testing.assert_close(plain(x, x), noisy(x, x))


def test_noise_that_depends_from_channel_to_channel_is_generalised_least_squares():
    head, z = _Linear(), _case()
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(5)).double()
    covariance = root @ root.T / 6
    sigma = covariance.diagonal().sqrt().view(6, 1, 1)
    match = FeatureMatch(head, [z], noise=[sigma], covariances=[covariance], specs=[SPEC])
    x = torch.rand(2, 3, 2, 2).double()
    floor = (MODEL * z.std()) ** 2
    rest = (head(x)[0] - z).flatten(1)
    whole = torch.linalg.inv(covariance + floor * torch.eye(6).double())
    expected = torch.einsum("bi,ij,bj->b", rest, whole, rest) * (sigma.square().mean() + floor)
    torch.testing.assert_close(match(x, x), expected, rtol=1e-6, atol=1e-8)


def test_laplace_noise_is_fitted_by_absolute_differences():
    head, z = _Linear(), _case(1)
    z[0, 0] += 40.0  # one number that noise of heavy tails has moved far away
    match = FeatureMatch(head, [z], noise=[0.5], laplace=True)
    delta = MODEL * z.std()

    def objective(x):
        rest = torch.as_tensor(x) @ head.matrix.T - z.flatten()
        loss = 2 * math.sqrt(2) * 0.5 * ((rest**2 + delta**2).sqrt() - delta)
        return float(loss.sum() + 0.5 * ((torch.as_tensor(x) - 0.5) ** 2).sum())

    best = minimize(objective, torch.full((12,), 0.5).double().numpy(), tol=1e-10)
    found = _fitted(match, 1)[0]
    assert objective(found.numpy()) == pytest.approx(best.fun, rel=1e-3)
    # squares would follow that number
    squares = _fitted(FeatureMatch(head, [z], noise=[0.5]), 1)[0]
    others = slice(1, None)
    rests = [((x @ head.matrix.T - z.flatten())[others] ** 2).sum() for x in (found, squares)]
    assert rests[0] < rests[1]


@pytest.mark.parametrize("whitened", [False, True])
def test_only_what_the_defence_let_through_is_matched(whitened):
    head, z, x = _Linear(), _case(), torch.rand(2, 3, 2, 2).double()
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).double().view(1, 6, 1, 1).expand(2, -1, -1, -1)
    sent = z * mask
    errors = None
    if whitened:
        network = InversionNetwork([SPEC], (4, 1, 1), width=8, depth=1)
        errors = network.expect_errors().double()
        match = WhitenedMatch(head, [sent], errors, support=[mask])
    else:
        match = FeatureMatch(head, [sent], support=[mask])
    rest = ((head(x)[0] - z) * mask).flatten(1)
    torch.testing.assert_close(match(x, x), rest.square().sum(1) * (0.5 if whitened else 1.0))


def test_the_share_of_noise_is_that_of_its_energy():
    z = torch.randn(4, 50, 20, 20, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((50, 1, 1), 0.5)
    assert FeatureMatch(_Pooled(), [(z + 3) * 1.2], noise=[sigma]).noise_share == pytest.approx(
        0.25 / (1.44 - 0.25), rel=0.02
    )
    assert FeatureMatch(_Pooled(), [z]).noise_share == 0


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.15])
def test_white_noise_on_an_image_is_measured(sigma):
    rows = torch.linspace(0.2, 0.8, 64).view(1, 1, 64, 1).expand(2, 3, 64, 64)
    noisy = rows + sigma * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pixel_deviation(noisy) == pytest.approx(torch.full((2,), sigma), rel=0.05)
    assert float(pixel_deviation(rows).max()) == pytest.approx(0, abs=1e-6)


class _Pooled(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 2),)


def _state(prior, noise, errors=1.0):
    torch.manual_seed(3)
    network = InversionNetwork([FeatureSpec("z0", (3, 8, 8))], prior.latent_shape, width=8, depth=1).eval()
    network.expect_errors().measure(errors * torch.randn(400, *prior.latent_shape), [0.05 * torch.randn(400, 3, 8, 8)])
    z = [torch.rand(2, 3, 8, 8)]
    return State.start(
        Problem(z, _Pooled(), prior=prior, initial=lambda: network.requires_grad_(False), noise=noise), 0.0
    )


def test_plug_and_play_enters_at_the_noise_that_is_left_in_the_answer(flow_prior, monkeypatch):
    seen = []
    real = flow_prior.denoise
    monkeypatch.setattr(
        flow_prior, "denoise", lambda x, level, text=None: (seen.append(level), real(x, level, text))[1]
    )
    s = BestSettings(levels=(0.3, 0.1), round_evaluations=2, samples=1)
    for noise, errors, expected in (([0.5], 1.0, [0.5, 0.5 / 3]), ([0.5], 0.2, [0.3, 0.1]), (None, 1.0, [0.3, 0.1])):
        seen.clear()
        STAGES["rounds"](_state(flow_prior, noise, errors), s)
        assert seen == pytest.approx(expected, rel=0.05)


def test_the_denoiser_of_pixels_is_asked_for_the_noise_that_is_there(flow_prior):
    denoiser = PixelDenoiser(build_pixel_denoiser((8, 16)))
    flow_prior.pixel_denoiser = None
    asked = []
    denoiser.forward = lambda x, sigma: (asked.append(sigma), x * 0)[1]
    state = _state(flow_prior, [0.5])
    clean = torch.full((2, 3, 16, 16), 0.5)
    noisy = clean + torch.tensor([0.1, 0.001]).view(2, 1, 1, 1) * torch.randn(clean.shape)
    state.answers = {"pixels": noisy}
    STAGES["denoise"](state, BestSettings())
    assert list(state.answers) == ["pixels"]  # a prior without one has no say
    flow_prior.pixel_denoiser = denoiser
    STAGES["denoise"](state, BestSettings())
    assert list(state.answers) == ["pixels denoise"]
    assert float(asked[0][0]) == pytest.approx(0.1, rel=0.2)
    # an image without noise stays as it is
    assert float(state.images[0].max()) == 0 and torch.equal(state.images[1], noisy[1].clamp(0, 1))


@pytest.mark.parametrize("method", ["do", "db", "dmb"])
def test_a_told_attack_makes_smoother_images_than_one_that_believes_in_no_noise(flow_prior, method):
    torch.manual_seed(4)
    nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=0.3)
    with torch.no_grad():
        clean = nn.functional.avg_pool2d(flow_prior.decode(torch.randn(2, *flow_prior.latent_shape)).clamp(0, 1), 2)
    z = clean + 0.2 * torch.randn(clean.shape)
    attack = ATTACKS.get(method).configured("tuned", changes={"iterations": 60, "tv": 0.1, "lr": 0.05})
    rough = []
    for noise in ([0.2], [0.0]):
        images = attack.reconstruct(Problem([z], _Pooled(), prior=flow_prior, noise=noise)).images
        rough.append(float(TotalVariation()(images, images).mean()))
    assert rough[0] < rough[1]
