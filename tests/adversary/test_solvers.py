import time

import pytest
import torch
from torch import nn

from adversary.live.engine import Engine, WindowSettings
from adversary.live.windows import Observation, Window, Windower
from adversary.whitebox.solvers import adam, plug_and_play
from adversary.whitebox.terms import FeatureMatch, Pull, TemporalSmoothing
from adversary.whitebox.variables import Noise, Variable
from splitsight.errors import UserError


class _Plain(Variable):
    def __init__(self, value):
        self.value = value.clone().requires_grad_()

    def images(self):
        return self.value


class _Head(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 2),)


def test_adam_finds_the_minimum_of_a_quadratic_and_reports_it():
    target = torch.rand(2, 3, 4, 4)
    outcome = adam(_Plain(torch.zeros_like(target)), [Pull(target, 2.0)], iterations=300, lr=0.05)
    torch.testing.assert_close(outcome.images, target, atol=1e-2, rtol=0)
    assert outcome.iterations == 300 and outcome.losses[-1] < 1e-3 * outcome.losses[0]


def test_adam_returns_the_best_value_of_each_frame_not_the_last():
    target = torch.rand(1, 3, 4, 4)
    outcome = adam(_Plain(target), [Pull(target, 1.0)], iterations=5, lr=1.0)
    torch.testing.assert_close(outcome.value, target)


def test_adam_stops_at_the_deadline_with_an_answer():
    outcome = adam(
        _Plain(torch.rand(1, 3, 4, 4)),
        [Pull(torch.zeros(1, 3, 4, 4), 1.0)],
        iterations=10**9,
        deadline=time.monotonic() + 0.2,
    )
    assert 0 < outcome.iterations < 10**9 and outcome.images.shape == (1, 3, 4, 4)


def _problem(prior, frames=4):
    with torch.no_grad():
        truth = prior.decode(torch.randn(1, *prior.latent_shape).repeat(frames, 1, 1, 1)).clamp(0, 1)
    head = _Head()
    return truth, head, [z.detach() for z in head(truth)]


def test_algorithm_2_lowers_the_loss_and_draws_frames_together(flow_prior):
    _, head, z = _problem(flow_prior)
    start = Noise.draw(flow_prior, 4, 0, shared=False)
    spread = lambda v: float((v - v.mean(0)).square().sum())  # noqa: E731
    terms = [FeatureMatch(head, z), TemporalSmoothing(5.0)]
    outcome = adam(Noise(flow_prior, start, steps=2), terms, iterations=40)
    assert outcome.losses[-1] < outcome.losses[0]
    assert spread(outcome.value) < 0.2 * spread(start)


def test_same_seed_same_noise_and_shared_noise_is_one_draw(flow_prior):
    a, b = (Noise.draw(flow_prior, 3, 7, shared=True) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(a[0], a[2])
    assert not torch.equal(Noise.draw(flow_prior, 3, 7, shared=False)[1], a[0])


def test_plug_and_play_fits_features_and_is_deterministic(flow_prior):
    _, head, z = _problem(flow_prior)
    start = torch.zeros(4, *flow_prior.latent_shape)
    match = FeatureMatch(head, z, relative=True)
    with torch.no_grad():
        before = float(match(start, flow_prior.decode(start)).mean())
    runs = [plug_and_play(flow_prior, start, match, levels=(0.3, 0.1), inner=25, samples=2, seed=3) for _ in range(2)]
    assert torch.equal(runs[0].images, runs[1].images)
    assert runs[0].losses[-1] < 0.5 * before and runs[0].iterations == 100


def _frames(z, latents=None):
    return [
        Observation(
            i,
            i * 500_000,
            time.monotonic(),
            tuple(t[i : i + 1] for t in z),
            None if latents is None else latents[i : i + 1],
        )
        for i in range(len(z[0]))
    ]


@pytest.mark.parametrize("solver", ["pnp", "dmb"])
def test_engine_answers_before_its_deadline_with_either_solver(flow_prior, solver):
    _, head, z = _problem(flow_prior)
    engine = Engine(flow_prior, head, None, WindowSettings(solver=solver, iterations=10**6, inner=10**6))
    window = Window(0, _frames(z), True)
    engine.refine(window, deadline=time.monotonic() + 0.3)
    begin = time.monotonic()
    result = engine.refine(window, deadline=begin + 0.6)
    assert time.monotonic() - begin < 1.5
    assert result.images.shape == (4, 3, 16, 16) and result.iterations > 0 and result.model_evaluations > 0


def test_unknown_window_solver_is_named(flow_prior):
    with pytest.raises(UserError, match="unknown window solver 'x'"):
        Engine(flow_prior, _Head(), None, WindowSettings(solver="x"))


def _observe(windower, times_ms):
    return [
        w for i, t in enumerate(times_ms) if (w := windower.add(Observation(i, int(t * 1000), 0.0, ()))) is not None
    ]


def test_windows_of_four_frames_half_a_second_apart():
    windows = _observe(Windower(4, 0.5), range(0, 5000, 500))
    assert [[f.sequence for f in w.frames] for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_windows_take_every_fifth_frame_at_ten_frames_a_second_and_survive_jitter():
    windows = _observe(Windower(4, 0.5), [100 * i + (7 if i % 2 else -7) for i in range(25)])
    assert [f.sequence for f in windows[0].frames] == [0, 5, 10, 15]


def test_windows_drop_repeats_survive_gaps_and_flush_the_rest():
    windower = Windower(4, 0.5)
    assert _observe(windower, [0, 500, 9000]) == []
    assert windower.add(Observation(1, 500_000, 0.0, ())) is None
    rest = windower.flush()
    assert rest is not None and not rest.complete and [f.sequence for f in rest.frames] == [0, 1, 2]
    assert windower.flush() is None
