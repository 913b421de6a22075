import time

import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Callback, Problem
from adversary.attacks._stages import STAGES, State, _perturbations, takes_time
from adversary.attacks.best import BestSettings
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

QUICK = {"fit_evaluations": 6, "pixel_evaluations": 6, "round_evaluations": 3, "residual_evaluations": 5}
QUICK |= {
    "noise_iterations": 3,
    "noise_steps": 2,
    "levels": (0.4, 0.2),
    "samples": 2,
    "fit_samples": 2,
    "pixel_samples": 2,
    "unaided_samples": 2,
    "unaided_levels": (0.8, 0.3),
}


class _Head(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 2),)


def _missing():
    raise NoInversionNetwork("none")


@pytest.fixture
def network(flow_prior):
    """An inversion network that answers zero, with measured errors of unit variance."""
    torch.manual_seed(0)
    network = InversionNetwork([FeatureSpec("z0", (3, 8, 8))], flow_prior.latent_shape, width=8, depth=1).eval()
    nn.init.zeros_(network.exit.weight)
    nn.init.zeros_(network.exit.bias)
    noise = torch.randn(200, *flow_prior.latent_shape)
    network.expect_errors().measure(noise, [0.05 * torch.randn(200, 3, 8, 8)])
    network.expect_pixels(16).measure(0.2 * torch.randn(200, 3, 16, 16), [])
    return network.requires_grad_(False)


def _problem(prior, network=None, frames=3, **more):
    torch.manual_seed(4)
    nn.init.normal_(prior.denoiser.proj_out.weight, std=0.3)
    with torch.no_grad():
        truth = prior.decode(torch.randn(frames, *prior.latent_shape)).clamp(0, 1)
    z = [t.detach() for t in _Head()(truth)]
    return truth, Problem(z, _Head(), prior=prior, initial=_missing if network is None else lambda: network, **more)


def _solve(problem, setting="faithful", method="best", callback=None, **changes):
    return ATTACKS.get(method).configured(setting, changes=QUICK | changes).reconstruct(problem, callback=callback)


def _error(images, truth):
    return float((nn.functional.avg_pool2d(images, 2) - nn.functional.avg_pool2d(truth, 2)).square().mean())


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"denoise"}))
def test_each_stage_fits_the_features_and_says_that_it_ran(flow_prior, network, stage):
    truth, problem = _problem(flow_prior, network)
    with torch.no_grad():
        before = _error(flow_prior.decode(network(tuple(problem.features))).clamp(0, 1), truth)
    answer = _solve(problem, stages=(stage,), residual_ratio=0.0, combine="last")
    assert answer.images.shape == truth.shape and answer.images.min() >= 0 and answer.images.max() <= 1
    ran = "fit" if stage == "posterior" else stage
    assert answer.about == {"start": "inversion network", "stages": ran}
    # a zero latent is nowhere near what noise of unit variance generates, so that stage starts again
    assert min(answer.curve) < answer.curve[0] if stage == "noise" else _error(answer.images, truth) < before
    assert answer.iterations == len(answer.curve) > 0 and answer.model_evaluations >= answer.iterations
    assert answer.losses.shape == (3,) and answer.loss == pytest.approx(float(answer.losses.mean()))


def test_features_that_tell_enough_are_fitted_on_the_pixels(flow_prior, network):
    # 3 × 8 × 8 numbers of 3 × 16 × 16
    for ratio, ran in ((0.25, "pixels"), (0.26, "fit")):
        answer = _solve(_problem(flow_prior, network)[1], stages=("posterior",), pixel_ratio=ratio)
        assert answer.about["stages"] == ran
    network.pixels = None  # as in a network whose errors on pixels were not measured
    assert _solve(_problem(flow_prior, network)[1], stages=("posterior",), pixel_ratio=0.0).about["stages"] == "fit"


@pytest.mark.parametrize("setting", ["faithful", "sharp"])
def test_same_seed_same_answer_and_frames_do_not_depend_on_each_other(flow_prior, network, setting):
    _, problem = _problem(flow_prior, network, seed=5)
    first = _solve(problem, setting)
    again = _solve(_problem(flow_prior, network, seed=5)[1], setting)
    assert torch.equal(first.images, again.images)
    other = _solve(_problem(flow_prior, network, seed=6)[1], setting)
    assert not torch.equal(first.images, other.images)
    z = [t[1:2] for t in problem.features]
    own = Problem(z, _Head(), prior=flow_prior, initial=lambda: network, seed=5, first=1)
    alone = _solve(own, setting)
    torch.testing.assert_close(first.images[1:2], alone.images, atol=5e-3, rtol=0)


def test_without_an_inversion_network_it_starts_at_the_priors_own_answer_and_says_so(flow_prior):
    truth, problem = _problem(flow_prior)
    before = _error(State.start(problem, 0.0).images, truth)
    answer = _solve(problem, stages=("fit", "pixels", "rounds"))
    assert answer.about == {"start": "prior", "stages": "rounds"}
    assert _error(answer.images, truth) < 0.5 * before
    # from nearly pure noise, not from the levels that are meant for a network's answer
    other = _solve(_problem(flow_prior)[1], stages=("rounds",), levels=(0.1,))
    assert torch.equal(answer.images, other.images)


def test_a_posterior_without_an_inversion_network_is_sampled_by_the_denoiser(flow_prior):
    truth, problem = _problem(flow_prior)
    before = _error(State.start(problem, 0.0).images, truth)
    mean = _solve(problem, stages=("posterior",))
    assert mean.about == {"start": "prior", "stages": "rounds"} and _error(mean.images, truth) < 0.5 * before
    # the mean of two samples, of which one alone is the first
    one = _solve(_problem(flow_prior)[1], stages=("posterior",), unaided_samples=1)
    assert not torch.equal(one.images, mean.images) and _error(mean.images, truth) < 2 * _error(one.images, truth)
    assert mean.model_evaluations > 1.5 * one.model_evaluations


def test_without_an_inversion_network_a_residual_adds_what_the_autoencoder_cannot_show(flow_prior):
    truth, problem = _problem(flow_prior)
    plain = _solve(problem, stages=("posterior",))
    # the features hold a quarter of the image's numbers
    further = _solve(problem, stages=("posterior",), unaided_residual_ratio=0.25)
    assert (plain.about["stages"], further.about["stages"]) == ("rounds", "residual")
    assert _error(further.images, truth) < 0.5 * _error(plain.images, truth)


def test_time_is_shared_among_the_stages_that_have_something_to_do(flow_prior, network):
    def timed(initial, stages):
        found = State.start(_problem(flow_prior, initial)[1], 0.0)
        return [stage for stage in stages if takes_time(found, BestSettings(), stage)]

    assert timed(None, ("posterior", "denoise")) == ["posterior"]
    assert timed(None, ("fit", "rounds", "residual")) == ["rounds"]
    assert timed(network, ("fit", "rounds", "residual")) == ["fit", "rounds"]

    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    seen = {}
    stages = {name: lambda state, s, name=name: seen.update({name: state.callback.deadline}) for name in STAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adversary.attacks.best.STAGES", stages)
        _solve(_problem(flow_prior)[1], "sharp", callback=Callback(1000.0, clock=clock))
    assert seen["rounds"] == pytest.approx(1000.0)


def test_a_network_for_other_weights_is_an_error_and_not_a_reason_to_do_without(flow_prior):
    def stale():
        raise UserError("trained for another target")

    _, problem = _problem(flow_prior)
    problem.initial = stale
    with pytest.raises(UserError, match="another target"):
        _solve(problem)


def test_a_proximal_weight_keeps_an_unmeasured_fit_near_its_start(flow_prior):
    network = (
        InversionNetwork([FeatureSpec("z0", (3, 8, 8))], flow_prior.latent_shape, width=8, depth=1)
        .eval()
        .requires_grad_(False)
    )
    _, problem = _problem(flow_prior, network)
    start = State.start(problem, 0.0).images
    near = _solve(problem, stages=("fit",), fit_proximal_weight=1e6).images
    torch.testing.assert_close(near, start, atol=0.02, rtol=0)


def test_the_mean_of_a_pair_of_samples_is_the_gaussian_posterior_mean_of_a_linear_head(flow_prior, network):
    """x ~ N(x₀, Q), z = A x: the posterior mean is known."""
    _, problem = _problem(flow_prior, network, frames=1)
    with torch.no_grad():
        centre = flow_prior.decode(network(tuple(problem.features))).clamp(0.3, 0.7)
    # far from the borders of [0, 1], where nothing is clamped
    problem.features = [t.detach() for t in _Head()(centre + 0.02 * torch.randn(1, 3, 16, 16))]
    n = 3 * 256
    basis = torch.eye(n).view(n, 3, 16, 16)
    root = network.pixels.displacement(basis).flatten(1).T.double()
    a = _Head()(basis)[0].flatten(1).T.double()
    z = problem.features[0].flatten().double()
    sigma = 0.1 * problem.features[0].flatten().double().std()
    with torch.no_grad():
        x0 = flow_prior.decode(network(tuple(problem.features))).clamp(0, 1).flatten().double()
    q = root @ root.T
    mean = x0 + q @ a.T @ torch.linalg.solve(a @ q @ a.T + sigma**2 * torch.eye(len(z)), z - a @ x0)
    answer = _solve(
        problem, stages=("pixels",), pixel_evaluations=200, pixel_samples=2, pixel_noise=0.1, pixel_scale=0.01
    )
    torch.testing.assert_close(answer.images.flatten().double(), mean.clamp(0, 1), atol=2e-3, rtol=0)


def test_perturbations_come_in_pairs_one_draw_a_frame_or_one_for_a_coupled_window(flow_prior):
    _, problem = _problem(flow_prior)
    apart = _perturbations(State.start(problem, 0.0), 4, 0.5, (2, 3))
    assert [tuple(xi.shape) for xi in apart] == [(6, 2, 3)] * 2
    assert all(torch.equal(xi[:3], -xi[3:]) for xi in apart)
    assert not torch.equal(apart[0], apart[1]) and not torch.equal(apart[0][0], apart[0][1])
    together = _perturbations(State.start(problem, 1.0), 2, 0.5, (2, 3))
    assert torch.equal(together[0][0], together[0][2])
    for samples in (0, 3):
        with pytest.raises(UserError, match="samples come in pairs"):
            _perturbations(State.start(problem, 0.0), samples, 1.0, (2,))


def test_a_window_is_drawn_together_where_features_agree(flow_prior, network):
    torch.manual_seed(4)
    _, problem = _problem(flow_prior, network)
    problem.features = [z[:1].repeat(3, 1, 1, 1) + 0.1 * torch.randn_like(z) for z in problem.features]
    spread = lambda x: float((x - x.mean(0)).square().mean())  # noqa: E731
    changes = {"stages": ("fit",), "fit_samples": 1, "fit_evaluations": 30}
    coupled = _solve(problem, "faithful", "best-multi", **changes | {"smoothing": 1000.0})
    single = _solve(problem, "faithful-single", "best-multi", **changes | {"smoothing": 0.0})
    assert spread(coupled.images) < 0.7 * spread(single.images)
    assert ATTACKS.get("best-multi").configured("faithful-single").settings.smoothing == 0


def test_it_answers_at_its_deadline(flow_prior, network):
    truth, problem = _problem(flow_prior, network)
    deadline = time.monotonic() + 0.5
    answer = _solve(problem, "sharp", callback=Callback(deadline), fit_evaluations=10**6, round_evaluations=10**6)
    assert time.monotonic() < deadline + 1.0 and answer.images.shape == truth.shape
    late = _solve(problem, "faithful", callback=Callback(time.monotonic() - 1))
    assert late.images.shape == truth.shape and late.iterations == 0 and late.about["stages"] == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stages": ["fitt"]}, "best's stages cannot be .fitt.: input should be 'fit', 'pixels', 'posterior', 'noise'"),
        ({"combine": "sum"}, "best's combine cannot be .sum.: input should be 'mean' or 'last'"),
        ({"answer": "all"}, "best's answer cannot be .all."),
        ({"stages": "fit"}, "best's stages cannot be .fit.: input should be a valid tuple"),
        ({"fit_samples": 0}, "best's fit_samples cannot be 0"),
    ],
)
def test_bad_changes_get_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        ATTACKS.get("best").configured("faithful", changes=changes)
