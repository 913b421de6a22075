import json

import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Problem, base, check_features
from adversary.blackbox.inversion import NoInversionNetwork
from adversary.prompts import embed_prompts, solve_with_prompts
from adversary.whitebox.clock import Clock
from splitsight.errors import UserError

DESCENTS = ("do", "db", "dmb", "dmb-multi")


class _Head(nn.Module):
    def forward(self, x):
        return (nn.functional.avg_pool2d(x, 4).tanh(),)


def _missing():
    raise NoInversionNetwork("none")


def _problem(prior, frames=3, **more):
    torch.manual_seed(4)
    nn.init.normal_(prior.denoiser.proj_out.weight, std=0.3)
    with torch.no_grad():
        truth = prior.decode(torch.randn(frames, *prior.latent_shape)).clamp(0, 1)
    return Problem(prior, _Head(), [z.detach() for z in _Head()(truth)], _missing, **more)


def _solve(method, problem, setting="tuned", **changes):
    attack = ATTACKS.get(method)()
    values = attack.setting(setting, tuned=False)[1]  # whatever tuning found
    quick = {"iterations": 8} | ({"steps": 2} if "steps" in values else {})
    return attack.solve(problem, **(values | quick | changes))


def test_published_settings_are_the_papers():
    for name in DESCENTS:
        paper = ATTACKS.get(name).setting("paper")[1]
        published = {"iterations": 1500, "lr": 0.1, "schedule": "constant", "relative": False, "tv": 1.0, "restarts": 1}
        assert published.items() <= paper.items()
    assert ATTACKS.get("dmb").setting("paper")[1]["steps"] == 20
    multi = ATTACKS.get("dmb-multi").setting("paper")[1]
    assert (multi["smoothing"], multi["steps"], multi["shared"]) == (5.0, 10, False)
    for name in ("dmb", "dmb-multi"):
        assert ATTACKS.get(name).setting("paper")[1]["lambda_txt"] == 10


def test_every_setting_can_be_tuned_in_what_its_space_names():
    for _, attack in ATTACKS:
        if attack.space:
            values = attack.setting(attack.tunes)[1]
            assert set(attack.space) <= set(values)
            assert all(len(options) > 1 for options in attack.space.values())


@pytest.mark.parametrize(
    ("method", "setting", "changes"),
    [(method, setting, {}) for method in DESCENTS for setting in ("paper", "tuned")]
    + [("db", "tuned", {"start": "prior"})],
)
def test_each_lowers_its_loss_and_accounts_for_its_effort(flow_prior, method, setting, changes):
    problem = _problem(flow_prior)
    answer = _solve(method, problem, setting, **changes)
    assert answer.images.shape == (3, 3, 16, 16) and answer.images.min() >= 0 and answer.images.max() <= 1
    assert answer.loss < answer.curve[0] and answer.loss == pytest.approx(float(answer.losses.mean()))
    assert answer.iterations == len(answer.curve) == 8
    per_step = 1 if method in ("do", "db") else 3  # F1, and two sampling steps
    start = int(changes.get("start") == "prior")  # the denoiser's answer to noise
    assert answer.model_evaluations == 8 * per_step + start


@pytest.mark.parametrize("method", DESCENTS)
def test_same_seed_same_answer(flow_prior, method):
    def once(seed):
        changes = {"start": "noise"} if method in ("do", "db") else {}
        return _solve(method, _problem(flow_prior, seed=seed), restarts=2, **changes).images

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


@pytest.mark.parametrize(("method", "starts"), [("do", ("grey", "noise")), ("db", ("noise", "grey", "prior"))])
def test_starts(flow_prior, method, starts):
    first = {s: _solve(method, _problem(flow_prior), start=s, iterations=1).images for s in starts}
    assert not torch.equal(first[starts[0]], first[starts[1]])
    if method == "do":
        assert torch.equal(first["grey"], torch.full_like(first["grey"], 0.5))
    with pytest.raises(UserError, match=f"unknown start of {method} 'x': choose one of"):
        ATTACKS.get(method).setting("tuned", changes={"start": "x"})


def test_restarts_keep_the_best_of_each_frame(flow_prior):
    one = _solve("dmb", _problem(flow_prior))
    more = _solve("dmb", _problem(flow_prior), restarts=3)
    assert (more.losses <= one.losses).all() and (more.losses < one.losses).any()
    assert more.iterations == 24
    window = _solve("dmb-multi", _problem(flow_prior), restarts=3)
    assert window.loss <= _solve("dmb-multi", _problem(flow_prior)).loss


@pytest.mark.parametrize("method", DESCENTS)
def test_after_auditions_the_best_start_of_each_frame_goes_on(flow_prior, method):
    changes = {"start": "noise"} if method in ("do", "db") else {}
    short = _solve(method, _problem(flow_prior), restarts=3, iterations=4, schedule="constant", **changes)
    more = _solve(method, _problem(flow_prior), restarts=3, audition=4, schedule="cosine", **changes)
    assert more.iterations == len(more.curve) == 3 * 4 + 8
    # the last run's first loss is that of the best of each frame, or of the window, so far
    assert more.curve[:12] == pytest.approx(short.curve) and more.curve[12] == pytest.approx(short.loss)
    assert (more.losses <= short.losses).all() and more.loss < short.loss
    one = [_solve(method, _problem(flow_prior), audition=n, **changes).images for n in (0, 4)]
    assert torch.equal(*one)  # a single start has nothing to be chosen from
    with pytest.raises(UserError, match="audition"):
        ATTACKS.get(method).setting("tuned", changes={"audition": -1})


def test_statistics_of_batch_norms_are_a_term_of_do(flow_prior):
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    class _Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = head.eval().requires_grad_(False)

        def forward(self, x):
            return (self.body(x),)

    problem = _problem(flow_prior)
    problem = Problem(flow_prior, _Normed(), [torch.randn(3, 4, 14, 14)], _missing)
    without, heavy = (_solve("do", problem, statistics=s, iterations=30) for s in (0.0, 100.0))
    assert not torch.equal(without.images, heavy.images)
    assert heavy.model_evaluations - without.model_evaluations == 30  # one pass for both terms: no more than before


def test_the_single_frame_control_differs_in_the_coupling_alone(flow_prior):
    attack = ATTACKS.get("dmb-multi")
    for name in ("fast", "tuned", "paper"):
        coupled, single = attack.setting(name)[1], attack.setting(f"{name}-single")[1]
        assert coupled["smoothing"] > 0 and single == coupled | {"smoothing": 0.0}
    assert attack.setting("tuned-independent")[1] == attack.setting("tuned")[1] | {"shared": False}
    both = [_solve("dmb-multi", _problem(flow_prior), s, iterations=1) for s in ("tuned", "tuned-single")]
    assert torch.equal(both[0].images, both[1].images)  # before the first step: the same noise
    assert both[0].model_evaluations == both[1].model_evaluations
    coupled = _solve("dmb-multi", _problem(flow_prior), "tuned", smoothing=100.0, shared=False, iterations=30)
    single = _solve("dmb-multi", _problem(flow_prior), "tuned-single", shared=False, iterations=30)
    spread = lambda x: float((x - x.mean(0)).square().mean())  # noqa: E731
    assert spread(coupled.images) < spread(single.images)


def test_shared_noise_starts_every_frame_alike_and_independent_noise_does_not(flow_prior):
    shared, apart = (_solve("dmb-multi", _problem(flow_prior), shared=s, iterations=1).images for s in (True, False))
    assert torch.equal(shared[0], shared[2]) and not torch.equal(apart[0], apart[2])


def test_a_text_prior_adds_its_embedding_and_the_negentropy(flow_prior):
    text = flow_prior.embed_text(["red panda"])
    none, embedded, full = (
        _solve("dmb", _problem(flow_prior, text=t), lambda_txt=weight).curve[0]
        for t, weight in ((None, 10.0), (text, 0.0), (text, 10.0))
    )
    assert none != embedded
    # E log cosh² of something with unit variance lies between 0 and 1
    assert -10 < full - embedded < 0
    with pytest.raises(UserError, match="alpha is 3"):
        _solve("dmb", _problem(flow_prior), alpha=3.0)


def test_prompts_are_all_tried_and_the_lowest_loss_of_each_image_wins(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda", "panda"])
    attack = ATTACKS.get("dmb")()
    settings = attack.setting("tuned", tuned=False)[1] | {"iterations": 5, "steps": 2}
    problem = _problem(flow_prior)
    prompted = solve_with_prompts(attack, problem, texts, settings)
    table = torch.stack(list(prompted.losses.values()))
    assert table.shape == (3, 3)
    assert torch.equal(prompted.answer.losses, table.min(0).values)
    assert prompted.won == [list(texts)[i] for i in table.argmin(0).tolist()]
    assert prompted.answer.iterations == 15
    for prompt, text in texts.items():
        alone = attack.solve(_problem(flow_prior, text=text), **settings)
        torch.testing.assert_close(prompted.losses[prompt], alone.losses)
        for i, won in enumerate(prompted.won):
            assert won != prompt or torch.equal(prompted.answer.images[i], alone.images[i])


def test_a_window_has_one_prompt(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda"])
    attack = ATTACKS.get("dmb-multi")()
    settings = attack.setting("tuned")[1] | {"iterations": 3, "steps": 2}
    prompted = solve_with_prompts(attack, _problem(flow_prior), texts, settings)
    assert len(set(prompted.won)) == 1


class _Ticking(Clock):
    """A second passes whenever it is read."""

    seconds_passed = 0.0

    def now(self):
        self.seconds_passed += 1.0
        return self.seconds_passed


def test_prompts_share_the_time(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda"])
    attack = ATTACKS.get("dmb")()
    clock = _Ticking()
    problem = _problem(flow_prior, deadline=60.0, clock=clock)
    settings = attack.setting("paper", changes={"steps": 2})[1]
    prompted = solve_with_prompts(attack, problem, texts, settings)
    # one step may have begun in time and each solution reads the clock when it is done
    assert clock.seconds_passed < 70
    half = attack.solve(_problem(flow_prior, deadline=30.0, clock=_Ticking()), **settings)
    assert 1.6 * half.iterations < prompted.answer.iterations <= 2 * half.iterations
    assert all(torch.isfinite(loss).all() for loss in prompted.losses.values())


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [([], "list of prompts is empty"), (["a", " "], "a prompt is empty"), (["a", "a"], "'a' is given twice")],
)
def test_bad_prompts_get_one_sentence(flow_prior, prompts, sentence):
    with pytest.raises(UserError, match=sentence):
        embed_prompts(flow_prior, prompts)


def test_features_that_cannot_be_attacked_get_one_sentence(flow_prior):
    good = torch.rand(3, 3, 4, 4)
    check_features([good], _Head(), 16)
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="features of frame 1 hold NaN or infinity"):
        Problem(flow_prior, _Head(), [bad], _missing)
    with pytest.raises(UserError, match="shape 3×5×5 do not fit this split, which makes 3×4×4"):
        Problem(flow_prior, _Head(), [torch.rand(3, 3, 5, 5)], _missing)
    with pytest.raises(UserError, match="3×4×4 and 3×4×4 do not fit"):
        Problem(flow_prior, _Head(), [good, good], _missing)
    with pytest.raises(UserError, match="no features to attack"):
        Problem(flow_prior, _Head(), [], _missing)


def test_tuned_values_are_laid_over_a_setting_by_split(tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"dmb": {"tuned": {"any": {"tv": 0.5, "lr": 0.07}, "L16": {"tv": 2.0}}}}))
    monkeypatch.setattr(base, "TUNED", file)
    base._tuned.cache_clear()
    try:
        attack = ATTACKS.get("dmb")
        assert attack.setting("tuned")[1]["tv"] == 0.5 == attack.setting("tuned", "L4")[1]["tv"]
        deep = attack.setting("tuned", "L16")[1]
        assert deep["tv"] == 2.0 and deep["lr"] == attack.settings["tuned"]["lr"]
        assert attack.setting("paper", "L16")[1]["tv"] == 1.0
        assert attack.setting("tuned", "L16", {"tv": 3})[1]["tv"] == 3
        with pytest.raises(UserError, match="unknown value of dmb's setting tuned 'tvv': choose one of"):
            attack.setting("tuned", "L16", {"tvv": 3})
    finally:
        base._tuned.cache_clear()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iterations": "many"}, "dmb's iterations takes a whole number, like 300, not 'many'"),
        ({"iterations": 0}, "dmb's iterations takes numbers from 1, not 0"),
        ({"iterations": 1.5}, "takes a whole number"),
        ({"relative": 1}, "dmb's relative takes true or false"),
        ({"lr": float("nan")}, "dmb's lr takes numbers from 0"),
        ({"alpha": 0.5}, "dmb's alpha takes numbers from 1"),
        ({"schedule": "staircase"}, "unknown schedule of dmb 'staircase': choose one of constant, cosine"),
    ],
)
def test_bad_changes_get_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        ATTACKS.get("dmb").setting("tuned", changes=changes)


def test_a_whole_number_is_a_number():
    assert ATTACKS.get("dmb").setting("tuned", changes={"tv": 2})[1]["tv"] == 2.0


def test_the_live_window_may_be_changed_value_by_value():
    window = ATTACKS.get("window")
    _, values = window.setting("live", changes={"smoothing": 10, "inner": 12})
    assert (values["solver"], values["smoothing"], values["inner"]) == ("map", 10.0, 12)
    # what differs from the live settings is the coupling, nothing else
    assert window.setting("single")[1] == {**window.setting("live")[1], "smoothing": 0.0}
    with pytest.raises(UserError, match="inner takes numbers from 1"):
        window.setting("live", changes={"inner": 0})
