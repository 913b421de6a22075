"""net-best: a surrogate of F1 from pairs alone, a choice by held-out pairs, attacks through it, files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Problem
from adversary.attacks.blackbox import method_of
from adversary.blackbox import _train_best, networks
from adversary.blackbox._batches import Batch, Batches, held_out
from adversary.blackbox._train_best import Pictures, choose, invert_loss, surrogate_error, surrogate_loss
from adversary.blackbox.networks import (
    AttackNetwork,
    Made,
    cache_file,
    embedded_file,
    load_network,
    prior_key,
    save_network,
)
from adversary.blackbox.queries import Pairs
from adversary.blackbox.surrogate import LatentNetwork, Surrogate
from adversary.blackbox.training import pair_quality, train_pairs
from splitsight.data import image_hash, to_tensor
from splitsight.errors import UserError
from splitsight.features import FeatureSpec


def _head():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU()).eval()


def _pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    with torch.no_grad():
        z = _head()(to_tensor(images)).numpy()
    return Pairs(images, [z], [""] * count, [image_hash(image) for image in images])


SPECS = (FeatureSpec("z0", (5, 4, 4)),)


def _values(**changes):
    return method_of("net-best").training(None, {"width": 8, **changes})[1]


def _made(prior, values=None, **more):
    about = {
        "target": "net",
        "split": "L1",
        "head_digest": "a" * 64,
        "image": 16,
        "training": _values(**(values or {})).dump(),
    }
    about |= {"features": SPECS, "prior": prior.name, "prior_digest": prior_key(prior, "net-best")}
    return Made(**{"method": "net-best", **about, "surrogate": True, **more})


def _fresh(prior, values=None, **more):
    torch.manual_seed(0)
    return AttackNetwork(_made(prior, values, **more), prior)


@pytest.mark.parametrize(
    "shape",
    [(8, 16, 16), (8, 4, 4), (8, 1, 1), (17, 6), (16, 6), (7, 6), (9,), (8, 5, 3), (5, 5, 8), (2, 3, 4, 4)],
    ids=str,
)
def test_a_surrogate_has_the_shape_of_any_feature(shape):
    surrogate = Surrogate([FeatureSpec("z0", shape), FeatureSpec("z1", (4, 8, 8))], 16)
    rng = np.random.default_rng(0)
    first = rng.normal(3, 2, (6, *shape)).astype(np.float32)
    surrogate.measure([first, rng.random((6, 4, 8, 8), np.float32)])
    assert surrogate.rectified.tolist() == [bool((first >= 0).all()), True]
    z = surrogate.eval()(torch.rand(2, 3, 16, 16))
    assert [tuple(f.shape) for f in z] == [(2, *shape), (2, 4, 8, 8)] and (z[1] >= 0).all()
    again = surrogate.standard(surrogate.standard.restored([f - 1 for f in z]))
    torch.testing.assert_close(again[1], z[1] - 1)


def test_a_surrogate_learns_f1_from_pairs(flow_prior):
    torch.manual_seed(0)
    network, pairs, held = _fresh(flow_prior), _pairs(200), _pairs(50, 1)
    network.surrogate.measure(pairs.features)
    x, z = to_tensor(pairs.images), [torch.from_numpy(pairs.features[0])]
    generator = torch.Generator()
    before = Pictures(network, pairs.images, held, share=0.5, crop=0.6, generator=generator).r2
    optimizer = torch.optim.Adam(network.surrogate.train().parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        surrogate_loss(network, Batch(torch.arange(200), x, z)).backward()
        optimizer.step()
    pictures = Pictures(network, pairs.images, held, share=0.5, crop=0.6, generator=generator)
    assert pictures.r2 > 0.6 > before and pictures.share(9.0) == pytest.approx(0.5 * pictures.r2)
    # what it draws is nearer to F1 than another picture's features, and is what it says plus a known residual
    images, features = pictures.draw(16)
    with torch.no_grad():
        truth, own = _head()(images), network.surrogate(images)[0]
    assert (features[0] - truth).square().mean() < 0.6 * (truth.roll(1, 0) - truth).square().mean()
    rest = (features[0] - own)[:, None] - pictures.residuals[0][None]
    assert rest.abs().amax((2, 3, 4)).amin(1).max() < 1e-5


def test_pairs_that_are_new_are_not_displaced_by_pictures(flow_prior):
    network, pairs = _fresh(flow_prior), _pairs(20)
    network.surrogate.measure(pairs.features)
    batches = Batches(pairs, 1, 4)
    pictures = Pictures(network, pairs.images, pairs, share=0.5, crop=0.6, generator=torch.Generator(), fresh=2.0)
    pictures._most = 0.5
    # five batches an epoch
    for step, share in ((0, 0.0), (5, 0.25), (10, 0.5), (30, 0.5)):
        assert pictures.share(batches.at(step).epoch) == share
    with pytest.raises(UserError, match="fresh cannot be -1"):
        _values(fresh=-1.0)


def test_a_surrogate_that_explains_nothing_makes_no_pictures(flow_prior):
    network, pairs = _fresh(flow_prior).eval(), _pairs(20)
    for parameter in network.surrogate.exits.parameters():
        nn.init.constant_(parameter, 5.0)
    pictures = Pictures(network, pairs.images, pairs, share=0.5, crop=0.6, generator=torch.Generator())
    assert pictures.r2 < 0 and pictures.share(9.0) == 0
    # so that every picture of a batch is one that was asked about
    s = _values(perceptual_weight=0.0, perceptual="none", gradient=0.0, value=0.0)
    x, z = to_tensor(pairs.images), [torch.from_numpy(pairs.features[0])]
    truths = torch.zeros(20, *flow_prior.latent_shape)
    loss = invert_loss(s, truths, pictures)(network, Batch(torch.arange(20), x, z))
    y = flow_prior.decode(network(z))
    torch.testing.assert_close(loss, (y - x).abs().mean() + 4 * (y - x).square().mean())


def test_the_last_tenth_is_held_out():
    pairs = _pairs(100)
    learnt, held = held_out(pairs)
    assert (len(learnt), len(held)) == (90, 10) and held.hashes == pairs.hashes[90:]
    assert not set(learnt.hashes) & set(held.hashes) and len(learnt.features[0]) == len(learnt.captions) == 90
    assert len(held_out(_pairs(16))[1]) == 4
    # whole windows, and no more than are wanted
    assert [len(held_out(pairs, 8, frames)[1]) for frames in (1, 4, 5, 20)] == [8, 8, 5, 20]


def test_a_surrogate_is_believed_only_where_it_helps_and_dropped_where_it_explains_nothing(flow_prior, monkeypatch):
    network, held = _fresh(flow_prior).eval(), _pairs(24)
    gains = {0.03: 0.1, 0.1: 0.5, 0.3: 0.4, 1.0: -2.0}
    seen = []

    class Match(_train_best.WhitenedMatch):
        def __init__(self, *args, weight, **more):
            seen.append(weight)
            super().__init__(*args, weight=weight, **more)

    def psnr(images, x):
        spread = torch.linspace(-1, 1, len(x)) * 0.2
        return torch.zeros(len(x)) if not seen else spread + gains[seen[-1]] * scale

    monkeypatch.setattr(_train_best, "WhitenedMatch", Match)
    monkeypatch.setattr(_train_best, "_psnr", psnr)
    scale = 1.0
    found = choose(network, held, -0.1)
    assert (found["refine_weight"], found["refine_gain"], found["refine_tried"]) == (0.1, 0.5, 12)
    assert network.made.likelihood_weight == 0.1 and network.surrogate is not None
    # a gain within twice its standard error is none
    scale = 0.05
    seen.clear()
    assert choose(network, held, 0.1)["refine_weight"] == 0.0
    assert network.surrogate is not None and network.made.surrogate and network.made.likelihood_weight == 0.0
    seen.clear()
    assert choose(network, held, -0.1)["refine_weight"] == 0.0
    assert network.surrogate is None and not network.made.surrogate and network.made.likelihood_weight == 0.0


@pytest.mark.parametrize("unasked", [None, 12])
def test_training_brings_answers_nearer_and_says_what_it_found(flow_prior, tmp_path, unasked):
    train, test = _pairs(64), _pairs(16, 1)
    more = None if unasked is None else _pairs(unasked, 2).images
    s = {"batch": 8, "lr": 0.01}
    _, first = train_pairs(_fresh(flow_prior, s), train, test, tmp_path / "a", steps=2)
    trained, figures = train_pairs(_fresh(flow_prior, s), train, test, tmp_path / "b", steps=60, unasked=more)
    assert figures["psnr"] > first["psnr"] and figures["finished"] and figures["images_seen"] == 60 * 8
    assert {"surrogate_r2", "refine_weight", "refine_gain", "refine_gain_error", "refine_tried"} <= set(figures)
    assert trained.made.likelihood_weight == figures["refine_weight"]
    assert (trained.surrogate is not None) == (figures["surrogate_r2"] > 0)
    errors = trained.core.errors
    assert not torch.equal(errors.latent, torch.eye(flow_prior.latent_shape[0]).expand_as(errors.latent))
    # what a surrogate is wrong about goes with it; the network's own errors are needed for live windows
    assert hasattr(errors, "feature0") == (trained.surrogate is not None)


def _log(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["held_out"] for row in rows if "held_out" in row]


@pytest.mark.parametrize("average", [0.9, 0.0])
def test_few_pairs_are_not_learnt_by_heart(flow_prior, tmp_path, average):
    train, test = _pairs(24), _pairs(8, 1)
    learnt, held = held_out(train)
    changes = {"batch": 8, "lr": 0.01, "surrogate_lr": 0.02, "average": average}
    steps = 150
    ends = {}
    for stop in (True, False):
        fresh = _fresh(flow_prior, {**changes, "early_stopping": stop})
        network, _ = train_pairs(fresh, train, test, tmp_path / str(stop), steps=steps)
        ends[stop] = -pair_quality(network, held)["psnr"]
        if stop:
            best = surrogate_error(network, held)
    looked = _log(tmp_path / "True" / "run-invert")
    # pairs put aside are looked at at most twenty times, and in the end
    assert 15 <= len(looked) <= 21 and len(learnt) + len(held) == 24
    # the last weights are worse than the best ones, which are those that are kept
    assert ends[True] == pytest.approx(min(looked), abs=1e-5) and looked[-1] > min(looked)
    assert ends[True] < ends[False] and not _log(tmp_path / "False" / "run-invert")
    # the surrogate, too
    assert best == pytest.approx(min(_log(tmp_path / "True" / "run-surrogate")), abs=1e-5)


def test_a_training_that_goes_on_remembers_its_best_weights(flow_prior, tmp_path):
    train, test = _pairs(24), _pairs(8, 1)
    for steps in (40, 80):
        fresh = _fresh(flow_prior, {"batch": 8, "lr": 0.01})
        network, _ = train_pairs(fresh, train, test, tmp_path, steps=steps)
    looked = _log(tmp_path / "run-invert")
    assert -pair_quality(network, held_out(train)[1])["psnr"] == pytest.approx(min(looked), abs=1e-5)


@pytest.mark.parametrize(("weight", "surrogate"), [(0.0, False), (0.0, True), (0.3, True)])
@pytest.mark.parametrize("name", ["faithful", "sharp", "one-pass"])
def test_it_attacks_without_f1(flow_prior, name, weight, surrogate):
    pairs = _pairs(2)
    network = _fresh(flow_prior).eval()
    network.surrogate.measure(pairs.features)
    network.decide(weight, surrogate=surrogate)
    z = [torch.from_numpy(pairs.features[0])]
    no_preview = lambda: pytest.fail("not the preview's network")  # noqa: E731
    problem = Problem(z, prior=flow_prior, initial=no_preview, network=lambda: network)
    changes = (
        {} if name == "one-pass" else {"fit_samples": 1, "fit_evaluations": 3, "samples": 1, "round_evaluations": 2}
    )
    attack = ATTACKS.get("net-best").configured(name, changes=changes)
    answer = attack.reconstruct(problem)
    assert answer.images.shape == (2, 3, 16, 16) and answer.images.min() >= 0 and answer.images.max() <= 1
    # near answers believe it as held-out pairs say; those that are to be recognised fit it whenever it is there
    believed = {"faithful": weight, "sharp": float(surrogate), "one-pass": 0.0}[name]
    by_surrogate = believed > 0
    assert answer.about["surrogate"] == (f"likelihood weight {believed:g}" if by_surrogate else "not used")
    assert math.isnan(answer.loss) != by_surrogate and (answer.iterations > 0) == by_surrogate
    plain = flow_prior.decode(network(z)).clamp(0, 1).detach()
    if not by_surrogate:
        assert torch.equal(answer.images, plain) == (name != "sharp")
        assert answer.model_evaluations == (1 if name == "sharp" else 0)
    again = attack.reconstruct(problem)
    torch.testing.assert_close(again.images, answer.images)


def test_a_fit_through_a_perfect_surrogate_finds_more(flow_prior):
    class Same(nn.Module):
        def forward(self, images):
            return (_head()(images),)

    network = _fresh(flow_prior).eval()
    with torch.no_grad():
        u = torch.randn(2, *flow_prior.latent_shape)
        x = flow_prior.decode(u).clamp(0, 1)
        z = [_head()(x)]
        network.core.errors.measure(torch.randn(200, *flow_prior.latent_shape), [0.01 * torch.randn(200, 5, 4, 4)])
    network.decide(1.0)
    network.surrogate = Same()
    problem = Problem(z, prior=flow_prior, network=lambda: network)
    names, attack = ("faithful", "one-pass"), ATTACKS.get("net-best")
    answers = {name: attack.configured(name).reconstruct(problem).images for name in names}
    with torch.no_grad():
        left = {name: float((_head()(y) - z[0]).square().mean()) for name, y in answers.items()}
    assert left["faithful"] < 0.3 * left["one-pass"]


def test_a_file_keeps_the_choice_and_what_was_seen(flow_prior, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(networks, "asset", lambda *parts: tmp_path.joinpath("package", *parts))
    pairs, more = _pairs(4), _pairs(2, 5)
    wanted = _made(flow_prior, features=(), surrogate=False)
    for weight, surrogate in ((0.0, False), (0.0, True), (0.3, True)):
        network = _fresh(flow_prior).eval()
        measured = torch.randn(40, *flow_prior.latent_shape), [torch.randn(40, 5, 4, 4)]
        network.core.errors.measure(*measured)
        latent = network.core.errors.latent.clone()
        network.decide(weight, surrogate=surrogate)
        save_network(cache_file(network.made), network, pairs.hashes, {"psnr": 9.0}, more.hashes)
        again = load_network(wanted, flow_prior)
        assert again.made.likelihood_weight == weight and again.made.queries == 4
        assert (again.surrogate is not None) == hasattr(again.core.errors, "feature0") == surrogate
        torch.testing.assert_close(again.core.errors.latent, latent, atol=2e-3, rtol=2e-3)
        with pytest.raises(UserError, match="'b' is among the pictures"):
            again.check_unseen(["a", "b"], [_pairs(1, 9).images[0], more.images[1]])
    # an attacker that has not met its victim takes what there is, unless there are several
    any_weights = replace(wanted, head_digest="")
    assert load_network(any_weights, flow_prior).made.head_digest == "a" * 64
    other = _fresh(flow_prior, head_digest="b" * 64)
    save_network(cache_file(other.made), other, pairs.hashes, {})
    with pytest.raises(UserError, match="holds 2 net-best networks for net at L1: say which one with --network"):
        load_network(any_weights, flow_prior)


def test_the_package_comes_before_the_cache(flow_prior, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(networks, "asset", lambda *parts: tmp_path.joinpath("package", *parts))
    network, wanted = _fresh(flow_prior).eval(), _made(flow_prior)
    with pytest.raises(UserError, match="no net-best network for net at L1: make one with"):
        load_network(wanted, flow_prior)
    save_network(cache_file(wanted), network, ["0" * 64], {})
    assert load_network(wanted, flow_prior).made.queries == 1
    assert embedded_file(wanted) == tmp_path / "package" / "inversion" / "net-L1-net-best-tiny.safetensors"
    save_network(embedded_file(wanted), network, ["0" * 64] * 2, {})
    assert load_network(wanted, flow_prior).made.queries == 2
    # the package's is for other weights: the cache's serves, and without one the reason is said
    own = replace(network.made, head_digest="b" * 64)
    network.made = own
    save_network(cache_file(own), network, ["0" * 64] * 3, {})
    assert load_network(own, flow_prior).made.queries == 3
    cache_file(own).unlink()
    with pytest.raises(UserError, match=r"another digest of F1's weights \(aaaaaaaaaaaa…, not bbbbbbbbbbbb…\)"):
        load_network(own, flow_prior)


def test_a_network_answers_features_as_they_were_tapped(flow_prior):
    core = LatentNetwork(SPECS, flow_prior.latent_shape, 8).eval()
    z = torch.rand(3, 5, 4, 4)
    before = core([z])
    core.standard.measure([(100 * torch.randn(50, 5, 4, 4) + 7).numpy()])
    mean, scale = core.standard.mean0[:, None, None], core.standard.scale0[:, None, None]
    torch.testing.assert_close(core([z / scale + mean]), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"pictures": 0.95}, {"crop": 0.0}, {"crop": 1.5}, {"surrogate_share": -1.0}, {"surrogate_lr": 0.0}],
    ids=str,
)
def test_bad_values_are_one_sentence(changes):
    ((name, value),) = changes.items()
    with pytest.raises(
        UserError, match=f"net-best's training value {name} cannot be {value}: input should be"
    ) as caught:
        _values(**changes)
    assert "\n" not in str(caught.value)


def test_windows_and_prompts_are_refused(flow_prior):
    with pytest.raises(UserError, match="net-best takes single frames"):
        _made(flow_prior, frames=4)
    with pytest.raises(UserError, match="net-best does not sample"):
        _made(flow_prior, text=True)
