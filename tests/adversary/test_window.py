"""The window attack, and the live engine that drives it or any other."""

import time

import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Callback, Problem
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork
from adversary.live.engine import Engine
from adversary.live.windows import Observation, Window
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

SPECS = (FeatureSpec("z0", (3, 8, 8)),)


class _Head(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 2),)


def _missing():
    raise NoInversionNetwork("none")


@pytest.fixture
def network(flow_prior):
    """Answers nearly zero; its errors were measured."""
    torch.manual_seed(0)
    network = InversionNetwork([FeatureSpec("z0", (3, 8, 8))], flow_prior.latent_shape, width=8, depth=1).eval()
    nn.init.normal_(network.exit.weight, std=0.01)
    network.expect_errors().measure(torch.randn(200, *flow_prior.latent_shape), [0.05 * torch.randn(200, 3, 8, 8)])
    network.expect_pixels(16).measure(0.1 * torch.randn(200, 3, 16, 16), [])
    return network.requires_grad_(False)


@pytest.fixture
def z(flow_prior):
    """Features of four frames in which nothing moves."""
    nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=0.3)
    with torch.no_grad():
        truth = flow_prior.decode(torch.randn(1, *flow_prior.latent_shape).repeat(4, 1, 1, 1)).clamp(0, 1)
        return [t.detach() for t in _Head()(truth)]


def _error(images, z):
    return float((_Head()(images)[0] - z[0]).square().mean())


def _window(name="window", setting="live", **changes):
    return ATTACKS.get(name).configured(setting, changes=changes)


def _frames(z, first=0):
    return [Observation(first + i, 0, 0.0, tuple(t[i : i + 1] for t in z)) for i in range(len(z[0]))]


def _engine(attack, prior, network=None, **more):
    return Engine(attack, SPECS, **({"pipeline": _Head(), "prior": prior, "initial": network} | more))


def test_what_pixels_added_is_carried_to_the_next_window(flow_prior, network, z):
    engine = _engine(_window(inner=3, pixels=6), flow_prior, network)
    first, second = (engine.refine(Window(i, _frames(z, 4 * i), True)) for i in range(2))
    assert _error(second.images, z) < _error(first.images, z)
    assert first.iterations == 9 and first.model_evaluations == 4 * 9
    engine.forget()
    torch.testing.assert_close(engine.refine(Window(2, _frames(z, 8), True)).images, first.images)


def test_plug_and_play_runs_with_and_without_previews(flow_prior, network, z):
    def answer(initial, **changes):
        attack = _window("window", "denoised", inner=2, samples=1, smoothing=0.0, **changes)
        problem = Problem(z, _Head(), SPECS, prior=flow_prior, initial=initial)
        return attack.reconstruct(problem).images

    unaided = answer(_missing, unaided_levels=(0.8, 0.3))
    assert torch.equal(unaided, answer(None, unaided_levels=(0.8, 0.3), levels=(0.1,)))
    assert not torch.equal(unaided, answer(None, unaided_levels=(0.1,)))
    aided = answer(lambda: network, levels=(0.1,))
    assert torch.equal(aided, answer(lambda: network, levels=(0.1,), unaided_levels=(0.2,)))


def test_noise_that_the_attacker_was_told_about_is_not_fitted(flow_prior, network, z):
    noisy = [t + 0.5 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in z]
    fitted = []
    for noise in (None, [0.5]):
        problem = Problem(noisy, _Head(), SPECS, prior=flow_prior, initial=lambda: network, noise=noise)
        images = _window("window", "single", inner=4, pixels=8).reconstruct(problem).images
        fitted.append(_error(images, noisy))
    assert fitted[1] > fitted[0]
    with pytest.raises(ValueError, match="2 standard deviations"):
        Problem(noisy, _Head(), SPECS, prior=flow_prior, noise=[0.1, 0.1])


class _Clock:
    """A tenth of a second passes whenever somebody asks."""

    at = 0.0

    def __call__(self):
        self.at += 0.1
        return self.at


@pytest.mark.parametrize(("method", "setting"), [("window", "live"), ("window", "denoised"), ("dmb-multi", "live")])
def test_an_answer_comes_at_the_deadline(flow_prior, network, z, method, setting):
    budget = {"iterations": 10**6} if method == "dmb-multi" else {"inner": 10**6}
    attack, state = _window(method, setting, **budget), None
    for _ in range(2):  # the second one knows how long a step takes
        clock = _Clock()
        problem = Problem(z, _Head(), SPECS, prior=flow_prior, initial=lambda: network)
        answer = attack.reconstruct(problem, state, Callback(3.0, clock=clock))
        assert clock.at < 6 and answer.iterations > 0 and answer.images.shape == (4, 3, 16, 16)
        state = answer.state


ANY = [("do", "tuned"), ("db", "tuned"), ("dmb", "fast"), ("best", "faithful"), ("best-multi", "sharp")]
ANY += [("window", "denoised"), ("dmb-multi", "live")]


@pytest.mark.parametrize(("method", "setting"), ANY)
def test_any_attack_runs_live_without_a_preview_network(flow_prior, z, method, setting):
    engine = _engine(_window(method, setting), flow_prior)
    assert engine.preview(_frames(z)[0]) is None
    begin = time.monotonic()
    result = engine.refine(Window(0, _frames(z)[:3], False), time.monotonic() + 0.3)
    assert time.monotonic() - begin < 30 and result.images.shape == (3, 3, 16, 16) and result.images.isfinite().all()


def test_what_is_missing_is_said_before_the_stream(flow_prior):
    with pytest.raises(UserError, match="window needs an inversion network"):
        _engine(_window(), flow_prior)
    with pytest.raises(UserError, match="net-do needs its network"):
        _engine(ATTACKS.get("net-do").configured(), flow_prior)
    with pytest.raises(UserError, match="window needs the first part of the attacked network"):
        _engine(_window("window", "denoised"), flow_prior, pipeline=None)


def test_a_prior_of_another_size_than_the_target(flow_prior, network):
    """Images are made at the prior's 16 pixels, the pipeline resizes them to the target's 32."""

    class Resizing(nn.Module):
        def forward(self, x):
            return (nn.functional.avg_pool2d(nn.functional.interpolate(x, (32, 32), mode="bilinear"), 4),)

    with torch.no_grad():
        z = [t.detach() for t in Resizing()(torch.rand(4, 3, 32, 32))]
    for method, setting in (("window", "live"), ("best", "sharp"), ("db", "tuned")):
        problem = Problem(z, Resizing(), prior=flow_prior, initial=lambda: network)
        answer = _window(method, setting).reconstruct(problem, callback=Callback(time.monotonic() + 0.3))
        assert answer.images.shape == (4, 3, 16, 16)
    pixels = Problem(z, Resizing(), image_size=32)
    brief = _window("do", "tuned", iterations=2).reconstruct(pixels)
    assert brief.images.shape == (4, 3, 32, 32)


def test_pixels_are_denoised_after_the_fit_at_levels_that_suit_the_preview(flow_prior, network, z):
    asked = []

    class _Halves(nn.Module):
        def forward(self, x, sigma):
            asked.append(sigma)
            return x / 2

    def answer(setting="live", **changes):
        asked.clear()
        problem = Problem(z, _Head(), SPECS, prior=flow_prior, initial=lambda: network)
        return _window("window", setting, inner=2, pixels=4, **changes).reconstruct(problem)

    fitted = answer("map")
    flow_prior.pixel_denoiser = _Halves()
    denoised = answer(expected_share=0.0, pixel_levels=(0.04, 0.02), pixel_share=1.0)
    assert asked == [0.04, 0.02] and network.pixels.deviation > 0.04
    torch.testing.assert_close(denoised.images, fitted.images.clamp(0, 1) / 4)
    # what the fit found is what the next window starts from
    torch.testing.assert_close(denoised.state.detail, fitted.state.detail)
    answer(expected_share=0.0, pixel_levels=(0.04, 0.02), pixel_share=0.1)
    assert asked == pytest.approx([0.1 * network.pixels.deviation, 0.05 * network.pixels.deviation])
    # a part of the way to E[x | fit] at the preview's error
    asked.clear()
    part = answer(expected_share=0.4, pixel_levels=()).images
    torch.testing.assert_close(part, 0.6 * fitted.images + 0.2 * fitted.images.clamp(0, 1))
    assert asked == [pytest.approx(network.pixels.deviation)]
    torch.testing.assert_close(answer("map").images, fitted.images)
    assert asked == []


def test_time_for_denoising_is_kept_before_the_deadline(flow_prior, network, z):
    clock, cost = _Clock(), 2.0

    class _Slow(nn.Module):
        def forward(self, x, sigma):
            clock.at += cost
            return x

    flow_prior.pixel_denoiser = _Slow()
    attack, state, ends = _window(inner=10**6, pixels=10**6, expected_share=0.0, pixel_levels=(0.04,)), None, []
    for _ in range(2):  # the second one knows what it takes
        clock.at = 0.0
        problem = Problem(z, _Head(), SPECS, prior=flow_prior, initial=lambda: network)
        state = attack.reconstruct(problem, state, Callback(6.0, clock=clock)).state
        ends.append(clock.at)
    assert ends[0] > 8 and ends[1] < 7.5


def test_a_prior_without_a_denoiser_of_pixels_is_told_before_the_stream(flow_prior, network):
    flow_prior.pixel_denoiser = None
    with pytest.raises(UserError, match="window:map"):
        _engine(_window(), flow_prior, network)
    _engine(_window("window", "map"), flow_prior, network)
