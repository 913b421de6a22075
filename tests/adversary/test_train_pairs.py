"""Black-box networks: trained on pairs alone, measured on others, found again, refused where they do not fit."""

import json
import math
import re
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from fake_oracle import FakeOracle, features
from safetensors.torch import load_file
from torch import nn

from adversary.attacks import ATTACKS, Problem
from adversary.attacks.blackbox import NetAttack, method_of, methods
from adversary.blackbox._batches import Batch
from adversary.blackbox.command import PairOptions, train_pairs_command
from adversary.blackbox.layouts import Standardised
from adversary.blackbox.losses import PairLoss, pair_loss
from adversary.blackbox.networks import (
    AttackNetwork,
    Made,
    cache_file,
    load_network,
    prior_key,
    read_made,
    save_network,
)
from adversary.blackbox.queries import Pairs, QueryStore
from adversary.blackbox.training import Stage, pair_quality, train_pairs
from adversary.priors.prior import load_prior
from adversary.whitebox.terms import Negentropy, TotalVariation
from splitsight.data import image_hash, to_tensor, write_png
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.wire.credentials import ClientCredentials
from splitsight.wire.sessions import SessionDescription

METHODS = ["net-do", "net-db", "net-dmb", "net-flow", "net-best"]


def _images(count, seed=0):
    """Pictures of two colours, one left and one right."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 16, 16, 3), np.uint8)
    images[:, :, :8], images[:, :, 8:] = rng.integers(0, 256, (2, count, 1, 1, 3), np.uint8)
    return images


def _pairs(count, seed=0):
    images = _images(count, seed)
    z = np.stack([features(image) for image in images])
    return Pairs(images, [z], ["goldfish"] * count, [image_hash(image) for image in images])


def _made(prior, method, values=None, **more):
    about = {"target": "net", "split": "L1", "head_digest": "a" * 64, "image": 16}
    about |= {
        "features": (FeatureSpec("z0", (3, 4, 4)),),
        "prior": prior.name,
        "prior_digest": prior_key(prior, method),
    }
    about["training"] = _values(method, **(values or {}))
    return Made(method=method, **{**about, **more})


def _values(method, **changes):
    small = {"batch": 16, "width": 8} | ({"steps": 1} if method == "net-dmb" else {})
    return method_of(method).training(None, {**small, **changes})[1].dump()


def _fresh(prior, method, values=None, **more):
    torch.manual_seed(0)
    return AttackNetwork(_made(prior, method, values, **more), prior)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("net-do", {}),
        ("net-db", {}),
        ("net-dmb", {}),
        ("net-dmb", {"text": True}),
        ("net-do", {"frames": 2}),
        ("net-do", {"frames": 2, "mixed": False}),
        ("net-flow", {}),
    ],
    ids=str,
)
def test_training_on_pairs_brings_answers_nearer(flow_prior, tmp_path, method, more):
    values = {"width": 24, "lr": 0.01} | ({"rank": 2} if method == "net-flow" else {})
    network = _fresh(flow_prior, method, values, **more)
    train, test = _pairs(72), _pairs(16, 1)
    network.standard.measure(train.features)
    before = pair_quality(network.eval(), test)
    trained, figures = train_pairs(network, train, test, tmp_path, steps=60)
    assert figures["psnr"] == pytest.approx(pair_quality(trained, test)["psnr"])
    assert figures["psnr"] > before["psnr"] + (1.5 if method == "net-do" else 0)
    assert figures["finished"] and figures["images_seen"] == 60 * 16 and figures["queries"] == 72
    assert not trained.training and all(p.device.type == "cpu" for p in trained.parameters())


def test_the_loss_is_equation_12(flow_prior):
    network = _fresh(flow_prior, "net-dmb", text=True).eval()
    _, paper = method_of("net-dmb").training("paper")
    assert {"lr": 0.1, "epochs": 96, "batch": 128, "tv": 1.0, "lambda_txt": 3.0}.items() <= paper.dump().items()
    assert paper.steps == 20
    pairs = _pairs(3)
    x, z, text = to_tensor(pairs.images), [torch.from_numpy(pairs.features[0])], flow_prior.embed_text(["goldfish"])
    value = network(z, text)
    y = flow_prior.generate(value, text, 1)
    wanted = (y - x).square().sum((1, 2, 3)) + TotalVariation()(value, y) + 3 * Negentropy()(value, y)
    found = pair_loss(paper, None)(network, Batch(torch.arange(3), x, z, text))
    torch.testing.assert_close(found, wanted.mean())


def test_a_part_of_a_batch_is_decoded_and_all_of_it_told_the_truth(flow_prior):
    network = _fresh(flow_prior, "net-dmb", text=True).eval()
    changes = {"part": 0.5, "steps": 1, "gradient": 0.0, "absolute": 0.0, "squared": 1.0}
    _, s = method_of("net-dmb").training(None, changes)
    pairs, truths = _pairs(4), torch.randn(9, *flow_prior.latent_shape)
    x, z, index = to_tensor(pairs.images), [torch.from_numpy(pairs.features[0])], torch.tensor([8, 2, 4, 0])
    text = flow_prior.embed_text(["goldfish", "a car", "snow", "grass"])
    value = network(z, text)
    y = flow_prior.generate(value[:2], text.first(2), 1)
    wanted = (y - x[:2]).square().mean() + 3 * Negentropy()(value[:2], y).mean()
    wanted = wanted + s.value * (value - truths[index]).square().mean()
    torch.testing.assert_close(pair_loss(s, truths)(network, Batch(index, x, z, text)), wanted)
    with pytest.raises(
        UserError, match=r"net-dmb's training value part cannot be 0\.0: input should be greater than 0"
    ):
        method_of("net-dmb").training(None, {"part": 0.0})


def test_an_interrupted_run_goes_on_to_the_same_end(flow_prior, tmp_path):
    train, test, s = _pairs(40), _pairs(16, 1), {"schedule": "constant", "early_stopping": False}
    whole, _ = train_pairs(_fresh(flow_prior, "net-db", s), train, test, tmp_path / "a", steps=8)
    train_pairs(_fresh(flow_prior, "net-db", s), train, test, tmp_path / "b", steps=3)
    torch.manual_seed(99)
    again, figures = train_pairs(AttackNetwork(whole.made, flow_prior), train, test, tmp_path / "b", steps=8)
    assert figures["images_seen"] == 8 * 16
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_what_training_refuses(flow_prior, stable_prior, tmp_path):
    train, test = _pairs(20), _pairs(16, 1)
    both = Pairs(test.images, test.features, test.captions, [*test.hashes[:-1], train.hashes[0]])
    network = _fresh(flow_prior, "net-db")
    with pytest.raises(UserError, match="share pictures"):
        train_pairs(network, train, both, tmp_path)
    bare = Pairs(train.images, train.features, [""] * 20, train.hashes)
    with pytest.raises(UserError, match="needs captions"):
        train_pairs(_fresh(flow_prior, "net-dmb", text=True), bare, test, tmp_path)
    wild = Pairs(train.images, [np.full_like(train.features[0], np.nan)], train.captions, train.hashes)
    with pytest.raises(UserError, match="diverged at step 0"):
        train_pairs(network, wild, test, tmp_path, steps=2)
    with pytest.raises(UserError, match="--set value=0"):
        train_pairs(_fresh(stable_prior, "net-dmb"), train, test, tmp_path, steps=1)


@pytest.mark.parametrize(
    ("method", "setting", "changes", "words"),
    [
        ("net-dx", None, {}, "net-best, net-db, net-dmb, net-do, net-flow"),
        ("net-do-multi", None, {}, "unknown black-box method 'net-do-multi'"),
        ("net-do", "fast", {}, "paper, tuned"),
        ("net-do", None, {"rank": 2}, "value of net-do's training 'rank'"),
        ("net-do", None, {"lr": "high"}, 'lr cannot be "high": input should be a valid number'),
        ("net-do", None, {"batch": 0}, "batch cannot be 0: input should be greater than or equal to 1"),
        (
            "net-do",
            None,
            {"schedule": "steps"},
            "input should be 'constant' or 'one_cycle'",
        ),
        ("net-flow", None, {"perceptual": "vgg"}, "'autoencoder', 'lpips' or 'none'"),
        ("net-flow", None, {"width": 6}, "multiple of 4"),
    ],
    ids=str,
)
def test_bad_settings_are_one_sentence(method, setting, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        method_of(method).training(setting, changes)
    assert "\n" not in str(caught.value)


def test_every_value_of_a_training_is_described():
    assert sorted(methods()) == sorted(METHODS)
    for method in methods().values():
        fields = method.Training.model_fields.values()
        assert all(field.description for field in fields)
        assert all(method.training(name)[0] == name for name in method.trainings if name != "paper")


def test_lpips_is_asked_for_only_where_it_is(monkeypatch):
    from adversary.blackbox import losses

    flow = method_of("net-flow")
    assert flow.trainings["paper"]["perceptual"] == "lpips"
    monkeypatch.setattr(losses, "lpips_missing", lambda: "LPIPS is left out: no weights")
    with pytest.raises(UserError, match="no weights; or train with --set perceptual=autoencoder"):
        flow.training("paper")
    monkeypatch.setattr(losses, "lpips_missing", lambda: None)
    flow.training("paper")


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_found_again_and_answers_the_same(flow_prior, tmp_path, monkeypatch, method):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    network, pairs = _fresh(flow_prior, method).eval(), _pairs(4)
    wanted = _made(flow_prior, method, {"width": 96}, features=())
    with pytest.raises(UserError, match=f"no {method} network for net at L1: make one with"):
        load_network(wanted, flow_prior)
    save_network(cache_file(network.made), network, pairs.hashes, {"psnr": 12.5})
    again = load_network(wanted, flow_prior)
    assert (again.made.queries, again.made.figures, again.values.width) == (4, {"psnr": 12.5}, 8)
    assert again.made == replace(network.made, queries=4, figures={"psnr": 12.5})
    z = [torch.from_numpy(pairs.features[0])]
    with torch.no_grad():
        torch.testing.assert_close(again.images(again(z)), network.images(network(z)), atol=0.02, rtol=0.02)
    again.check_unseen(["new"], _images(1, 5))
    with pytest.raises(UserError, match="'b' is among the pictures that the network was trained on"):
        again.check_unseen(["a", "b"], [_images(1, 5)[0], pairs.images[2]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "L9"}, r"another split \(L1, not L9\)"),
        ({"head_digest": "b" * 64}, r"another digest of F1's weights \(aaaaaaaaaaaa…, not bbbbbbbbbbbb…\)"),
        ({"prior_digest": "b" * 64}, "another prior's digest"),
        ({"method": "net-do"}, r"another method \(net-db, not net-do\)"),
        ({"frames": 2}, r"another number of frames \(1, not 2\)"),
        ({"defense": "gaussian:sigma=0.5"}, r"another defence \(identity, not gaussian:sigma=0.5\)"),
        ({"defense_digest": "b" * 64}, r"another digest of the defence's weights"),
    ],
    ids=str,
)
def test_a_network_for_something_else_is_refused(flow_prior, tmp_path, change, words):
    network = _fresh(flow_prior, "net-db")
    save_network(tmp_path / "n.safetensors", network, ["0" * 64], {})
    with pytest.raises(UserError, match=words) as caught:
        load_network(replace(network.made, **change), flow_prior, tmp_path / "n.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not a black-box network"):
        other = flow_prior.vae.state_dict()
        from splitsight.artifacts import save_weights

        save_weights(tmp_path / "o.safetensors", other)
        load_network(network.made, flow_prior, tmp_path / "o.safetensors")


def test_features_that_do_not_fit_a_network(flow_prior):
    network = _fresh(flow_prior, "net-do", frames=2)
    with pytest.raises(UserError, match="shape 3×2×2 do not fit this network, which takes 3×4×4"):
        network.check_features([torch.zeros(2, 3, 2, 2)])
    with pytest.raises(UserError, match="3 frames are no whole windows of 2"):
        network.check_features([torch.zeros(3, 3, 4, 4)])
    with pytest.raises(UserError, match="net-flow takes single frames"):
        _made(flow_prior, "net-flow", frames=4)
    with pytest.raises(UserError, match="net-db does not sample"):
        _made(flow_prior, "net-db", text=True)


def test_attacks_answer_without_f1(flow_prior):
    pairs = _pairs(4)
    z = [torch.from_numpy(pairs.features[0])]
    for name in ("net-do", "net-db", "net-dmb", "net-flow", "net-db-multi"):
        attack = ATTACKS.get(name)()
        network = _fresh(flow_prior, attack.method, frames=2 if attack.windowed else 1).eval()
        no_preview = lambda: pytest.fail("no preview is needed")  # noqa: E731
        problem = Problem(z, prior=flow_prior, initial=no_preview, network=lambda n=network: n)
        answer = attack.reconstruct(problem)
        assert answer.images.shape == (4, 3, 16, 16) and math.isnan(answer.loss)
        assert answer.images.min() >= 0 and answer.images.max() <= 1
        assert answer.model_evaluations == {"net-dmb": 1, "net-flow": 1}.get(name, 0)
    with pytest.raises(UserError, match="net-do needs its network"):
        ATTACKS.get("net-do")().reconstruct(Problem(z, prior=flow_prior))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give --oracle HOST:PORT"),
        ({"oracle": "h:1", "queries": 15}, "--queries 15 is too few"),
        ({"oracle": "h:1", "test_queries": 1}, "--test-queries 1 is too few"),
        ({"oracle": "h:1", "queries": 30, "frames": 4}, "--queries 30 makes no whole windows of 4 frames"),
        ({"oracle": "h:1", "mixing": False}, "control for windows"),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(UserError, match=words):
        PairOptions("net-db", **options)


@pytest.fixture
def world(flow_prior, tmp_path, monkeypatch):
    """A prior's folder, pictures to ask about, a cache of one's own."""
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    flow_prior.save(tmp_path / "tiny")
    (tmp_path / "images").mkdir()
    for i, image in enumerate(_images(60)):
        write_png(tmp_path / "images" / f"{i:02d}.png", image)
    common = {
        "data": tmp_path / "images",
        "prior": str(tmp_path / "tiny"),
        "queries": 24,
        "test_queries": 16,
        "steps": 2,
    }
    return lambda method="net-do", **more: PairOptions(method, **{**common, **more})


def test_from_an_oracle_to_a_network(world, tmp_path):
    with FakeOracle(budget=30) as oracle:
        with pytest.raises(
            UserError, match="budget of 30 queries is spent; 14 pairs for training and 16 for testing"
        ) as e:
            train_pairs_command(world(oracle=oracle.address))
        assert e.value.code == 1
    with FakeOracle() as oracle:
        file = train_pairs_command(world(oracle=oracle.address))
        assert len(oracle.asked) == 10
        # the pairs serve every other method too
        other = train_pairs_command(world("net-db", oracle=oracle.address, out=tmp_path / "out"))
        assert len(oracle.asked) == 10
        with pytest.raises(UserError, match="answers for split L1, not L8"):
            train_pairs_command(world(oracle=oracle.address, split="L8"))
        with pytest.raises(UserError, match="holds a run with other settings"):
            train_pairs_command(world("net-db", oracle=oracle.address, out=tmp_path / "out", seed=1))
        with pytest.raises(UserError, match="--text needs captions"):
            train_pairs_command(world("net-dmb", oracle=oracle.address, queries=32, text=True))
    assert file.parent == tmp_path / "home" / "inversion" and other == tmp_path / "out" / "net-L1-net-db.safetensors"
    assert "24 query pairs" in (other.parent / "README.md").read_text()
    # what was asked once can be trained on without an oracle
    (pairs,) = (tmp_path / "home" / "queries").iterdir()
    train_pairs_command(world(pairs=pairs, out=tmp_path / "more", data=None))
    with pytest.raises(UserError, match="24 pairs for training, fewer than 25"):
        train_pairs_command(world(pairs=pairs, queries=25, data=None))


def test_a_prior_of_another_size_answers_in_that_of_what_is_attacked(world, flow_prior, tmp_path):
    with FakeOracle(size=32) as oracle:
        file = train_pairs_command(world("net-best", oracle=oracle.address, unasked=9, changes={"width": 8}))
        # the oracle is asked about pictures as F1 takes them
        assert {image.shape for image in oracle.asked} == {(32, 32, 3)}
    made = read_made(file)
    assert made.image == 32 and flow_prior.image_size == 16
    network = load_network(made, flow_prior, file)
    (pairs,) = (tmp_path / "home" / "queries").iterdir()
    asked = QueryStore.open(pairs).pairs("train", 1)
    z = [torch.from_numpy(asked.features[0])]
    assert network.images(network(z)).shape == (1, 3, 32, 32)
    for images in (asked.images, asked.sized(32).images):
        with pytest.raises(UserError, match="is among the pictures that the network was trained on"):
            network.check_unseen(["a"], images)


def test_pairs_and_networks_are_kept_apart_by_defence(world, tmp_path):
    files = []
    for defense in ("identity", "gaussian:sigma=0.5", "gaussian:sigma=0.5+gaussian:ratio=1"):
        with FakeOracle(defense=defense) as oracle:
            files.append(train_pairs_command(world(oracle=oracle.address)))
            assert len(oracle.asked) == 40
        assert read_made(files[-1]).defense == defense
    names = [path.name for path in (*files, *(tmp_path / "home" / "queries").iterdir())]
    assert len(set(names)) == 6 and all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names)


@pytest.mark.parametrize(
    ("trouble", "options", "words"),
    [
        (
            {"token": "secret"},
            {"credentials": ClientCredentials(token="guess")},
            "refuses: the oracle asks for a token$",
        ),
        ({"max_side": 8}, {}, "refuses: a picture is too large; 0 pairs for training and 0 for testing are kept"),
        ({"die_after": 24}, {}, "was lost and did not come back within 0.1 s; 8 pairs for training and 16 for testing"),
        ({"change_after": 24}, {}, "no longer answers as it announced: .*; 8 pairs for training and 16 for testing"),
    ],
    ids=str,
)
def test_an_oracle_in_trouble_loses_nothing_that_it_answered(world, tmp_path, trouble, options, words):
    with FakeOracle(**trouble) as oracle, pytest.raises(UserError, match=words) as caught:
        train_pairs_command(world(oracle=oracle.address, patience=0.1, **options))
    assert "\n" not in str(caught.value) and caught.value.code == 1
    assert not list((tmp_path / "home").glob("inversion/*.safetensors"))
    with FakeOracle() as oracle:
        assert train_pairs_command(world(oracle=oracle.address)).is_file()
        assert len(oracle.asked) == (16 if "8 pairs for training" in words else 40)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("net-db", {"unasked": 5}, "net-db learns from answers only: leave --unasked out"),
        ("net-best", {"unasked": 5, "data": None}, "--unasked takes pictures from --data"),
        ("net-best", {"frames": 4}, "net-best takes single frames"),
        ("net-best", {"text": True}, "net-best does not sample"),
        ("net-best", {"setting": "paper"}, "unknown training of net-best 'paper'"),
        (
            "net-best",
            {"changes": {"pictures": 2.0}},
            "pictures cannot be 2.0: input should be less than",
        ),
    ],
    ids=str,
)
def test_what_net_best_refuses_costs_no_query(world, method, options, words):
    with FakeOracle() as oracle, pytest.raises(UserError, match=words) as caught:
        train_pairs_command(world(method, oracle=oracle.address, **options))
    assert not oracle.asked and "\n" not in str(caught.value)


def test_net_best_learns_from_pictures_that_it_did_not_ask_about(world, tmp_path):
    with FakeOracle() as oracle:
        file = train_pairs_command(world("net-best", oracle=oracle.address, unasked=10, changes={"width": 8}))
        assert len(oracle.asked) == 40
        without = train_pairs_command(
            world("net-best", oracle=oracle.address, unasked=0, changes={"width": 8}, out=tmp_path / "out")
        )
        assert len(oracle.asked) == 40
    assert (
        file.name.startswith("net-L1-net-best-")
        and "and 10 pictures that were not asked about"
        in (next((tmp_path / "home" / "inversion" / "runs").iterdir()) / "README.md").read_text()
    )
    for path, seen in ((file, 34), (without, 24)):
        state = load_file(path)
        assert len(state["queries"]) == seen
        made = read_made(path)
        assert made.queries == 24 and made.figures["finished"] and len(made.curve) in (0, 100)
        assert made.surrogate == (made.likelihood_weight > 0) == any(name.startswith("surrogate.") for name in state)
        assert {"surrogate_r2", "refine_weight", "refine_gain"} <= set(made.figures)


def test_the_curve_is_that_of_the_whole_training(flow_prior, tmp_path):
    train, test = _pairs(64), _pairs(16, 1)
    trained, _ = train_pairs(_fresh(flow_prior, "net-db"), train, test, tmp_path / "a", steps=40)
    rows = [json.loads(line) for line in (tmp_path / "a" / "run" / "log.jsonl").read_text().splitlines()]
    logged = {row["fraction"]: row["loss"] for row in rows if "loss" in row}
    # with fewer steps than hundredths, every one of them
    assert len(logged) == 40
    assert len(trained.made.curve) == 100 and trained.made.curve[-1] == pytest.approx(logged[max(logged)], rel=1e-6)
    assert [trained.made.curve[i] for i in (4, 49, 94)] == pytest.approx([logged[f] for f in (0.05, 0.5, 0.95)])
    assert min(logged.values()) <= min(trained.made.curve) <= max(trained.made.curve) <= max(logged.values())
    problem = Problem([torch.from_numpy(test.features[0])], prior=flow_prior, network=lambda: trained)
    assert ATTACKS.get("net-db")().reconstruct(problem).curve == list(trained.made.curve)


class _Linear(nn.Module):
    def __init__(self, features, latent):
        super().__init__()
        self.standard = Standardised(features)
        dense = nn.Linear(features[0].numel, int(np.prod(latent)))
        self.read = nn.Sequential(nn.Flatten(), dense, nn.Unflatten(1, latent))

    def forward(self, features):
        return self.read(self.standard(features)[0])


def test_a_method_of_another_package_is_one_class(world, flow_prior, monkeypatch):
    class NetLinear(NetAttack):
        """Black-box: one linear layer from features to the prior's latent."""

        name = "net-linear"
        Training = PairLoss
        trainings: ClassVar = {"plain": {"value": 1.0}}

        @classmethod
        def core(cls, made, values, prior):
            return _Linear(made.features, prior.latent_shape)

        @classmethod
        def stages(cls, fit):
            values = fit.network.values
            yield Stage(fit.network, pair_loss(values, fit.truths()), values.lr, fit.generator())

    ATTACKS.names()  # those of the package first, as an entry point would find them
    monkeypatch.setitem(ATTACKS._items, "net-linear", NetLinear)
    with FakeOracle() as oracle:
        file = train_pairs_command(world("net-linear", oracle=oracle.address, changes={"lr": 0.01, "batch": 8}))
    made = read_made(file)
    assert (made.method, made.setting, made.training["lr"]) == ("net-linear", "plain", 0.01)
    attack = ATTACKS.get("net-linear").configured()
    about = SessionDescription(made.target, made.split, made.features, head_digest=made.head_digest)
    tiny = load_prior(world(oracle="h:1").prior)
    network = attack.load(tiny, about)
    answer = attack.reconstruct(Problem([torch.rand(2, 3, 4, 4)], prior=tiny, network=lambda: network))
    assert answer.images.shape == (2, 3, 16, 16) and answer.about["training"] == "plain"
    with pytest.raises(UserError, match="net-linear takes single frames"):
        replace(made, frames=2)
