import json

import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Callback, Problem, base, check_features
from adversary.blackbox.inversion import NoInversionNetwork
from adversary.prompts import embed_prompts, solve_with_prompts
from adversary.whitebox.variables import normalised
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

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
    return Problem([z.detach() for z in _Head()(truth)], _Head(), prior=prior, initial=_missing, **more)


def _attack(method, setting="tuned", **changes):
    attack = ATTACKS.get(method)
    quick = {"iterations": 8} | ({"steps": 2} if "steps" in attack.Settings.model_fields else {})
    return attack.configured(setting, changes=quick | changes)


def _solve(method, problem, setting="tuned", **changes):
    return _attack(method, setting, **changes).reconstruct(problem)


def _values(method, setting, **more):
    return ATTACKS.get(method).configured(setting, **more).settings.dump()


def test_published_settings_are_the_papers():
    for name in DESCENTS:
        paper = _values(name, "paper")
        published = {"iterations": 1500, "lr": 0.1, "schedule": "constant", "relative": False, "tv": 1.0, "restarts": 1}
        assert published.items() <= paper.items()
    assert _values("dmb", "paper")["steps"] == 20
    multi = _values("dmb-multi", "paper")
    assert (multi["smoothing"], multi["steps"], multi["shared"]) == (5.0, 10, False)
    for name in ("dmb", "dmb-multi"):
        assert _values(name, "paper")["lambda_txt"] == 10


def test_what_tuning_may_choose_is_valid_and_a_choice():
    spaces = {name: attack.space() for name, attack in ATTACKS}
    assert {"iterations", "lr", "tv"} <= set(spaces["do"]) and not spaces["preview"]
    for name, attack in ATTACKS:
        for key, values in spaces[name].items():
            assert len(values) > 1
            for value in values:
                assert getattr(attack.configured(attack.tunes, changes={key: value}).settings, key) == value


def test_every_attack_says_in_a_line_what_it_is_and_what_it_needs():
    for _, attack in ATTACKS:
        assert attack.summary.endswith(".") and attack.needs and not attack.needs & attack.uses
        assert all(info.description for info in attack.Settings.model_fields.values())
        for setting in (*attack.presets, *attack.variants):
            assert attack.configured(setting).setting == setting.replace("tuned", "default")


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
    with pytest.raises(UserError, match=f"{method}'s start cannot be .x.: input should be"):
        ATTACKS.get(method).configured("tuned", changes={"start": "x"})


def test_restarts_keep_the_best_of_each_frame(flow_prior):
    one = _solve("dmb", _problem(flow_prior))
    more = _solve("dmb", _problem(flow_prior), restarts=3)
    assert (more.losses <= one.losses).all() and (more.losses < one.losses).any()
    assert more.iterations == 24
    window = _solve("dmb-multi", _problem(flow_prior), restarts=3)
    assert window.loss <= _solve("dmb-multi", _problem(flow_prior)).loss


@pytest.mark.parametrize("method", DESCENTS)
def test_after_a_rung_of_halving_the_best_start_of_each_frame_goes_on(flow_prior, method):
    changes = {"start": "noise"} if method in ("do", "db") else {}
    short = _solve(method, _problem(flow_prior), restarts=3, iterations=4, schedule="constant", **changes)
    more = _solve(method, _problem(flow_prior), restarts=3, halving_steps=4, schedule="cosine", **changes)
    assert more.iterations == len(more.curve) == 3 * 4 + 8
    # the last run's first loss is that of the best of each frame, or of the window, so far
    assert more.curve[:12] == pytest.approx(short.curve) and more.curve[12] == pytest.approx(short.loss)
    assert (more.losses <= short.losses).all() and more.loss < short.loss
    one = [_solve(method, _problem(flow_prior), halving_steps=n, **changes).images for n in (0, 4)]
    assert torch.equal(*one)  # a single start has nothing to be chosen from
    with pytest.raises(UserError, match="halving_steps"):
        ATTACKS.get(method).configured("tuned", changes={"halving_steps": -1})


def test_statistics_of_batch_norms_are_a_term_of_do(flow_prior):
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    class _Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = head.eval().requires_grad_(False)

        def forward(self, x):
            return (self.body(x),)

    problem = _problem(flow_prior)
    problem = Problem([torch.randn(3, 4, 14, 14)], _Normed(), prior=flow_prior)
    without, heavy = (_solve("do", problem, statistics=s, iterations=30) for s in (0.0, 100.0))
    assert not torch.equal(without.images, heavy.images)
    assert heavy.model_evaluations - without.model_evaluations == 30  # one pass for both terms: no more than before


def test_the_single_frame_control_differs_in_the_coupling_alone(flow_prior):
    for name in ("fast", "tuned", "paper", "live"):
        coupled, single = _values("dmb-multi", name), _values("dmb-multi", f"{name}-single")
        assert coupled["smoothing"] > 0 and single == coupled | {"smoothing": 0.0}
    assert _values("dmb-multi", "tuned-independent") == _values("dmb-multi", "tuned") | {"shared": False}
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
    with pytest.raises(UserError, match="alpha cannot be 3"):
        _solve("dmb", _problem(flow_prior), alpha=3.0)


def test_prompts_are_all_tried_and_the_lowest_loss_of_each_image_wins(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda", "panda"])
    attack = _attack("dmb", iterations=5)
    problem = _problem(flow_prior)
    prompted = solve_with_prompts(attack, problem, texts)
    table = torch.stack(list(prompted.losses.values()))
    assert table.shape == (3, 3)
    assert torch.equal(prompted.answer.losses, table.min(0).values)
    assert prompted.won == [list(texts)[i] for i in table.argmin(0).tolist()]
    assert prompted.answer.iterations == 15
    for prompt, text in texts.items():
        alone = attack.reconstruct(_problem(flow_prior, text=text))
        torch.testing.assert_close(prompted.losses[prompt], alone.losses)
        for i, won in enumerate(prompted.won):
            assert won != prompt or torch.equal(prompted.answer.images[i], alone.images[i])


def test_a_window_has_one_prompt(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda"])
    prompted = solve_with_prompts(_attack("dmb-multi", iterations=3), _problem(flow_prior), texts)
    assert len(set(prompted.won)) == 1


class _Ticking:
    """A second passes whenever it is read."""

    at = 0.0

    def __call__(self):
        self.at += 1.0
        return self.at


def test_prompts_share_the_time(flow_prior):
    texts = embed_prompts(flow_prior, ["goldfish", "red panda"])
    attack, clock = _attack("dmb", "paper", iterations=1500), _Ticking()
    prompted = solve_with_prompts(attack, _problem(flow_prior), texts, Callback(60.0, clock=clock))
    # one step may have begun in time and each solution reads the clock when it is done
    assert clock.at < 70
    half = attack.reconstruct(_problem(flow_prior), callback=Callback(30.0, clock=_Ticking()))
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
    check_features([good], [FeatureSpec("z0", (3, 4, 4))])
    bad = good.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="features of frame 1 hold NaN or infinity"):
        Problem([bad], _Head(), prior=flow_prior)
    with pytest.raises(UserError, match="shape 3×5×5 do not fit this split, which makes 3×4×4"):
        Problem([torch.rand(3, 3, 5, 5)], _Head(), prior=flow_prior)
    with pytest.raises(UserError, match="3×4×4 and 3×4×4 do not fit"):
        Problem([good, good], _Head(), prior=flow_prior)
    with pytest.raises(UserError, match="no features to attack"):
        Problem([], _Head(), prior=flow_prior)


def test_tuned_values_are_laid_over_a_setting_by_target_and_split(tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    found = {"dmb": {"tuned": {"any": {"tv": 0.5, "lr": 0.07}, "L16": {"tv": 2.0}}}}
    file.write_text(json.dumps({"net": found}))
    monkeypatch.setattr(base, "TUNED", file)
    base._tuned.cache_clear()
    try:
        attack, untuned = ATTACKS.get("dmb"), _values("dmb", "tuned")
        of = lambda setting, split="", target="net", **more: attack.configured(  # noqa: E731
            setting, target=target, split=split, **more
        )
        assert of("tuned").settings.tv == 0.5 == of("tuned", "L4").settings.tv
        deep = of("tuned", "L16").settings
        assert deep.tv == 2.0 and deep.lr == untuned["lr"]
        assert of("paper", "L16").settings.tv == 1.0
        assert of("tuned", "L16", changes={"tv": 3}).settings.tv == 3
        assert of("tuned", "L16", use_tuned=False).settings.dump() == untuned
        # of another target nothing is known, and the report does not pretend so
        assert of("tuned", "L16", "other").settings.dump() == untuned == of("default", "L16").settings.dump()
        names = [of(s, target=t).setting for t in ("net", "other") for s in ("tuned", "paper", "default")]
        assert names == ["tuned", "paper", "default", "default", "paper", "default"]
        with pytest.raises(UserError, match="unknown value of dmb's setting tuned 'tvv': choose one of"):
            of("tuned", "L16", changes={"tvv": 3})
    finally:
        base._tuned.cache_clear()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iterations": "many"}, 'dmb\'s iterations cannot be "many": input should be a valid integer'),
        ({"iterations": 0}, "dmb's iterations cannot be 0: input should be greater than or equal to 1"),
        ({"iterations": 1.5}, "input should be a valid integer"),
        ({"relative": 1}, "dmb's relative cannot be 1: input should be a valid boolean"),
        ({"lr": float("nan")}, "dmb's lr cannot be NaN: input should be a finite number"),
        ({"alpha": 0.5}, "dmb's alpha cannot be 0.5: input should be greater than or equal to 1"),
        ({"schedule": "staircase"}, "schedule cannot be .staircase.: input should be 'constant' or 'cosine'"),
    ],
)
def test_bad_changes_get_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        ATTACKS.get("dmb").configured("tuned", changes=changes)


def test_a_whole_number_is_a_number():
    assert ATTACKS.get("dmb").configured("tuned", changes={"tv": 2}).settings.tv == 2.0


def test_the_live_window_may_be_changed_value_by_value():
    values = _values("window", "live", changes={"smoothing": 10, "inner": 12})
    assert (values["solver"], values["smoothing"], values["inner"]) == ("map", 10.0, 12)
    # what differs from the live settings is the coupling, nothing else
    assert _values("window", "single") == {**_values("window", "live"), "smoothing": 0.0}
    with pytest.raises(UserError, match="inner cannot be 0"):
        _values("window", "live", changes={"inner": 0})


def test_what_an_attack_needs_is_missed_in_one_sentence(flow_prior):
    z = [torch.rand(2, 3, 4, 4)]
    for method, known, sentence in (
        ("do", {"image_size": 16}, "do needs the first part of the attacked network"),
        ("db", {"pipeline": _Head(), "image_size": 16}, "db needs a generative prior"),
        ("preview", {"prior": flow_prior}, "preview needs an inversion network"),
        ("window", {"prior": flow_prior, "pipeline": _Head()}, "window needs an inversion network"),
        ("net-do", {"prior": flow_prior}, "net-do needs its network"),
    ):
        with pytest.raises(UserError, match=sentence):
            ATTACKS.get(method).configured().reconstruct(Problem(z, **known))


def test_a_window_goes_on_from_the_last_ones_noise(flow_prior):
    first = _attack("dmb-multi", "live").reconstruct(_problem(flow_prior))
    assert first.state.shape == (1, *flow_prior.latent_shape)
    start = _attack("dmb-multi", "live", iterations=1).reconstruct(_problem(flow_prior), first.state)
    with torch.no_grad():
        wanted = flow_prior.generate(normalised(first.state), None, 2).clamp(0, 1).expand(3, -1, -1, -1)
    torch.testing.assert_close(start.images, wanted)
    assert _solve("dmb-multi", _problem(flow_prior), "paper").state is None
    assert _solve("dmb", _problem(flow_prior)).state is None


def test_do_needs_no_prior_and_works_at_the_size_it_is_given():
    z = [t.detach() for t in _Head()(torch.rand(2, 3, 24, 24))]
    assert _solve("do", Problem(z, _Head(), image_size=24)).images.shape == (2, 3, 24, 24)
