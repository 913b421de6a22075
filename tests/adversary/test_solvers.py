import itertools
import time

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from adversary.callback import Callback
from adversary.live.windows import Observation, Windower
from adversary.whitebox.solvers import adam, lbfgs, plug_and_play
from adversary.whitebox.terms import FeatureMatch, Proximal, TemporalSmoothing
from adversary.whitebox.variables import Noise, Variable


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
    outcome = adam(_Plain(torch.zeros_like(target)), [Proximal(target, 2.0)], iterations=300, lr=0.05)
    torch.testing.assert_close(outcome.images, target, atol=1e-2, rtol=0)
    assert outcome.iterations == 300 and outcome.losses[-1] < 1e-3 * outcome.losses[0]


def test_adam_returns_the_best_value_of_each_frame_not_the_last():
    target = torch.rand(1, 3, 4, 4)
    outcome = adam(_Plain(target), [Proximal(target, 1.0)], iterations=5, lr=1.0)
    torch.testing.assert_close(outcome.value, target)


def test_adam_stops_at_the_deadline_with_an_answer():
    outcome = adam(
        _Plain(torch.rand(1, 3, 4, 4)),
        [Proximal(torch.zeros(1, 3, 4, 4), 1.0)],
        iterations=10**9,
        callback=Callback(time.monotonic() + 0.2),
    )
    assert 0 < outcome.iterations < 10**9 and outcome.images.shape == (1, 3, 4, 4)


class _Bowls:
    """A convex quadratic a frame, each of another shape."""

    weight = 1.0

    def __init__(self, frames, numbers, condition=1e3):
        generator = torch.Generator().manual_seed(0)
        self.center = torch.randn(frames, numbers, generator=generator, dtype=torch.float64)
        self.hessians = []
        for i in range(frames):
            q, _ = torch.linalg.qr(torch.randn(numbers, numbers, generator=generator, dtype=torch.float64))
            eigenvalues = torch.logspace(0, torch.tensor(condition * 10.0**-i).log10(), numbers, dtype=torch.float64)
            self.hessians.append(q @ torch.diag(eigenvalues) @ q.T)

    def __call__(self, value, images):
        d = value - self.center
        return torch.stack([0.5 * x @ h @ x for x, h in zip(d, self.hessians, strict=True)])


class _Rosenbrock:
    weight = 1.0

    def __call__(self, value, images):
        return (100 * (value[:, 1:] - value[:, :-1] ** 2) ** 2 + (1 - value[:, :-1]) ** 2).sum(1)


def test_lbfgs_finds_the_minimum_of_quadratics_about_as_fast_as_scipy():
    bowl = _Bowls(1, 30)
    count = 0

    def value(x):
        nonlocal count
        count += 1
        d = torch.from_numpy(x) - bowl.center[0]
        return float(0.5 * d @ bowl.hessians[0] @ d), (bowl.hessians[0] @ d).numpy()

    minimize(
        value, torch.zeros(30).double().numpy(), jac=True, method="L-BFGS-B", options={"maxcor": 10, "ftol": 1e-14}
    )
    outcome = lbfgs(_Plain(torch.zeros(1, 30).double()), [bowl], evaluations=int(1.5 * count))
    assert float(outcome.final[0]) < 1e-6 * outcome.losses[0]


@pytest.mark.parametrize("together", [True, False])
def test_lbfgs_follows_a_curved_valley(together):
    start = torch.tensor([[-1.2, 1.0, -0.5, 0.8], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    outcome = lbfgs(_Plain(start), [_Rosenbrock()], evaluations=150, together=together)
    torch.testing.assert_close(outcome.value, torch.ones_like(start), atol=1e-3, rtol=0)


def test_lbfgs_solves_frames_that_share_nothing_as_if_each_were_alone():
    bowls = _Bowls(3, 12)
    together = lbfgs(_Plain(torch.zeros(3, 12).double()), [bowls], evaluations=25, together=False)
    for i in range(3):
        one = _Bowls(3, 12)
        one.center, one.hessians = one.center[i : i + 1], one.hessians[i : i + 1]
        alone = lbfgs(_Plain(torch.zeros(1, 12).double()), [one], evaluations=25, together=False)
        torch.testing.assert_close(together.value[i : i + 1], alone.value)
        torch.testing.assert_close(together.final[i : i + 1], alone.final)


def test_lbfgs_keeps_to_its_evaluations_and_never_hands_back_something_worse():
    class _Cliff:
        weight = 1.0
        calls = 0

        def __call__(self, value, images):
            self.calls += 1
            x = value.flatten(1).sum(1)
            return torch.where(x > 0.5, torch.nan, (x - 1) ** 2)  # not a number beyond the edge

    cliff = _Cliff()
    outcome = lbfgs(_Plain(torch.zeros(2, 3)), [cliff], evaluations=30)
    assert cliff.calls == outcome.iterations == 30
    assert (outcome.final < 1).all() and (outcome.final >= 0.25 - 1e-6).all()
    assert lbfgs(_Plain(torch.ones(1, 2)), [_Rosenbrock()], evaluations=0).iterations == 0


class _Time:
    """A millisecond passes whenever somebody asks."""

    def __init__(self):
        self.at = 0.0

    def __call__(self):
        self.at += 0.001
        return self.at

    def sleep(self, seconds):
        self.at += seconds


def test_time_stands_still_while_somebody_looks():
    seen, slow_time = [], _Time()

    def look(seconds, images):
        seen.append((seconds, images.clone()))
        slow_time.sleep(20)

    target = torch.rand(1, 3, 4, 4)
    outcome = adam(
        _Plain(torch.zeros_like(target)),
        [Proximal(target, 1.0)],
        iterations=200,
        lr=0.05,
        callback=Callback(look=look, growth=0.3, clock=slow_time),
    )
    assert 5 < len(seen) < 200 and 0.2 < outcome.seconds < 20
    times = [t for t, _ in seen]
    assert times == sorted(times) and times[-1] <= outcome.seconds + 0.01
    # what is shown is the best so far, so it can only come nearer
    errors = [float((x - target).square().sum()) for _, x in seen]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(errors)) and errors[-1] < errors[0]


def test_looking_does_not_use_up_the_time_before_a_deadline():
    slow_time = _Time()
    callback = Callback(look=lambda seconds, images: slow_time.sleep(20), growth=0, clock=slow_time)
    callback.deadline = callback.now() + 0.25
    outcome = adam(
        _Plain(torch.rand(1, 3, 4, 4)),
        [Proximal(torch.zeros(1, 3, 4, 4), 1.0)],
        iterations=10,
        callback=callback,
    )
    assert outcome.iterations == 10


def test_a_part_has_its_share_of_the_time_and_counts_on():
    now, told, seen = [100.0], [], []
    whole = Callback(
        110.0, progress=lambda *step: told.append(step), look=lambda *_: seen.append(1), growth=0, clock=lambda: now[0]
    )
    half = whole.part(0.5, done=3, planned=20, shown=False)
    quarter = half.part(0.5, done=2, planned=7)
    assert (whole.left, half.left, quarter.left) == (10, 5, 2.5)
    quarter.step(1, 4, 0.5)
    whole.step(1, 4, 0.5)
    assert told == [(6, 20, 0.5), (1, 4, 0.5)]
    for callback in (quarter, half, whole):
        callback.show(lambda: torch.zeros(1))
    assert len(seen) == 1
    now[0] = 103.0
    assert quarter.late() and not half.late()
    assert half.part(0.5).left == 1.0 and Callback().left == float("inf") and not Callback().part(0.1).late()


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


@pytest.mark.parametrize("answer", ["mean", "pixels", "best"])
def test_samples_become_one_answer(flow_prior, answer):
    nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=1.0)
    _, head, z = _problem(flow_prior, 2)
    start = torch.zeros(2, *flow_prior.latent_shape)
    match = FeatureMatch(head, z)
    options = {"levels": (0.8,), "inner": 3, "seed": 3}
    one = plug_and_play(flow_prior, start, match, **options)
    joined = plug_and_play(flow_prior, start, match, samples=4, answer=answer, **options)
    assert joined.images.shape == one.images.shape and joined.iterations == 12
    with torch.no_grad():
        decoded = flow_prior.decode(joined.value).clamp(0, 1)
        fits = [float(match(o.value, o.images).sum()) for o in (one, joined)]
    if answer != "pixels":
        torch.testing.assert_close(decoded, joined.images)
    if answer == "best":
        assert fits[1] <= fits[0]


def test_with_a_seed_a_frame_an_answer_does_not_depend_on_the_other_frames(flow_prior):
    nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=1.0)
    _, head, z = _problem(flow_prior, 3)
    start = torch.randn(3, *flow_prior.latent_shape)
    options = {"levels": (0.5, 0.2), "inner": 4, "samples": 2}
    every = plug_and_play(flow_prior, start, FeatureMatch(head, z), seed=[7, 8, 9], **options)
    one = plug_and_play(flow_prior, start[1:2], FeatureMatch(head, [t[1:2] for t in z]), seed=[8], **options)
    torch.testing.assert_close(every.images[1:2], one.images, atol=1e-3, rtol=0)


def test_the_last_round_is_kept_near_the_anchor(flow_prior):
    _, head, z = _problem(flow_prior, 1)
    start = torch.zeros(1, *flow_prior.latent_shape)
    options = {"levels": (0.5, 0.0), "inner": 5, "proximal_weight": lambda level: 0.25 if level else 1e6}
    outcome = plug_and_play(flow_prior, start, FeatureMatch(head, z), **options)
    assert outcome.value.abs().max() < 0.05


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


def test_windows_go_on_when_the_edges_clock_is_set_back():
    hour = 3_600_000
    windows = _observe(Windower(4, 0.5), [hour, hour + 500, *range(0, 3000, 500)])
    assert [[f.sequence for f in w.frames] for w in windows] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_windows_drop_repeats_survive_gaps_and_flush_the_rest():
    windower = Windower(4, 0.5)
    assert _observe(windower, [0, 500, 9000]) == []
    assert windower.add(Observation(1, 500_000, 0.0, ())) is None
    rest = windower.flush()
    assert rest is not None and not rest.complete and [f.sequence for f in rest.frames] == [0, 1, 2]
    assert windower.flush() is None
