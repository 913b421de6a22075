import re
import shlex

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from adversary import training
from adversary.blackbox import inversion
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_file, load_inversion
from adversary.priors.prior import load_prior
from adversary.training import train_inversion_command
from scenarios.cli import app
from splitsight.artifacts import save_weights
from splitsight.captions import WORDS, build_tokenizer, caption, measure, read_class_names
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline
from splitsight.targets import Normalize, Target
from splitsight.tasks.classify import Classify
from splitsight.training import Budget


def _words(image):
    bits = measure(image)
    return {w for i, w in enumerate(WORDS) if bits >> i & 1}


def test_measured_words_follow_the_pixels():
    sky = np.zeros((64, 64, 3), np.uint8)
    sky[:32], sky[32:] = (90, 150, 230), (60, 160, 50)
    assert {"blue sky", "grass", "blue", "green"} <= _words(sky)
    assert "blue sky" not in _words(sky[::-1])
    assert {"black", "dark", "black background", "plain background"} <= _words(np.zeros((64, 64, 3), np.uint8))
    assert {"white", "bright", "white background"} <= _words(np.full((64, 64, 3), 255, np.uint8))


def test_captions_use_synonyms_and_are_sometimes_empty():
    rng = np.random.default_rng(0)
    drawn = [caption(["tabby", "tabby cat"], measure(np.zeros((64, 64, 3), np.uint8)), rng) for _ in range(400)]
    assert 0.08 < drawn.count("") / 400 < 0.2
    assert any("tabby cat" in c for c in drawn) and any(c == "tabby" for c in drawn) and any("dark" in c for c in drawn)
    assert not any("tabby" in caption(None, 0, rng) for _ in range(50))


def test_tokenizer_knows_every_caption_word(tmp_path):
    table = tmp_path / "classes.tsv"
    table.write_text("1\tn2\tpicket fence, paling\n0\tn1\tdragonfly, devil's darning needle\n")
    names = read_class_names(table)
    assert names[0] == ["dragonfly", "devil's darning needle"]
    tokenizer = build_tokenizer(names)
    ids = tokenizer("a photo of a devil's darning needle, blue sky, picket fence")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("zebra")["input_ids"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The package's folder and the cache, both empty."""
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(inversion, "asset", lambda *parts: tmp_path.joinpath("package", *parts))
    return tmp_path


WEIGHTS = {"head_digest": "a" * 64, "prior_digest": "b" * 64}


def _network():
    torch.manual_seed(0)
    return InversionNetwork([FeatureSpec("z0", (16, 4, 4)), FeatureSpec("z1", (17, 8))], (8, 16, 16), width=16, depth=1)


def test_a_network_is_kept_with_what_it_is_for(kept):
    network, file = _network(), kept / "n.safetensors"
    network.save(file, target="net", split="L8", prior="small", **WEIGHTS)
    load = lambda **changes: load_inversion("net", "L8", "small", path=file, **{**WEIGHTS, **changes})  # noqa: E731
    loaded = load()
    z = (torch.randn(1, 16, 4, 4), torch.randn(1, 17, 8))
    torch.testing.assert_close(loaded(z), network.eval()(z), atol=5e-3, rtol=1e-2)
    assert loaded.features == network.features
    with pytest.raises(UserError, match=r"trained for other weights of F1 \(digest aaaaaaaaaaaa…, not cccccccccccc…\)"):
        load(head_digest="c" * 64)
    with pytest.raises(UserError, match="trained for another prior"):
        load(prior_digest="c" * 64)
    save_weights(kept / "other.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(UserError, match="is not an inversion network"):
        load_inversion("net", "L8", "small", path=kept / "other.safetensors", **WEIGHTS)


def test_the_package_comes_before_the_cache_and_a_folder_serves(kept):
    load = lambda **changes: load_inversion("net", "L8", "small", **{**WEIGHTS, **changes})  # noqa: E731
    with pytest.raises(NoInversionNetwork):
        load()
    about = {"target": "net", "split": "L8", "prior": "small"}
    cached = inversion_file("net", "L8", "small", **WEIGHTS)
    _network().save(cached, **about, **WEIGHTS)
    assert load().width == 16 and cached.parent == kept / "home" / "inversion"
    package = kept / "package" / "inversion" / "net-L8-small.safetensors"
    InversionNetwork([FeatureSpec("z0", (16, 4, 4))], (8, 16, 16), width=8).save(package, **about, **WEIGHTS)
    assert load().width == 8
    # the package's is for other weights: the cache's serves, and where there is none, the reason is said
    InversionNetwork([FeatureSpec("z0", (16, 4, 4))], (8, 16, 16), width=8).save(
        package, **about, **{**WEIGHTS, "head_digest": "c" * 64}
    )
    assert load().width == 16
    with pytest.raises(UserError, match="other weights of F1"):
        load(head_digest="d" * 64)
    assert load(head_digest="c" * 64, path=package.parent).width == 8
    # against a defence, the network that was trained for it, else the one for undefended features, which says so
    defended = {**WEIGHTS, "defense": "gaussian:sigma=1"}
    assert load(**defended, features=_network().features).defense == "identity"
    with pytest.raises(NoInversionNetwork, match="against 'gaussian:sigma=1'"):
        load(**defended, features=[FeatureSpec("z0", (8, 4, 4))])
    _network().save(inversion_file("net", "L8", "small", **defended), **about, **defended)
    assert load(**defended).defense == "gaussian:sigma=1"
    with pytest.raises(NoInversionNetwork, match="against 'gaussian:sigma=1'"):
        load_inversion("net", "L4", "small", **defended)


def test_what_is_missing_is_trained_by_the_command_that_the_message_names(
    kept, monkeypatch, pictures, flow_prior, tiny_target
):
    with pytest.raises(NoInversionNetwork) as caught:
        load_inversion("tiny", "S2", "tiny", defense="gaussian:ratio=0.5", **WEIGHTS)
    command = shlex.split(re.search("`splitsight (.*)`", str(caught.value))[1])
    flow_prior.save(kept / "tiny")
    replaced = {"DIR": str(pictures), "tiny": str(kept / "tiny")}
    arguments = [replaced.get(word, word) if command[i - 1] != "--target" else word for i, word in enumerate(command)]
    monkeypatch.setattr(training.targets, "load", lambda name, weights: tiny_target)
    # the same, cut short
    arguments[arguments.index("--minutes") :] = ["--steps", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    about = EdgePipeline(tiny_target, "S2", "gaussian:ratio=0.5").description()
    weights = {"head_digest": about.head_digest, "prior_digest": load_prior(str(kept / "tiny")).latent_digest}
    network = load_inversion("tiny", "S2", "tiny", defense=about.defense, **weights)
    assert network.features == about.features and network.errors is not None


class _Wide(Target):
    """Two tensors that cross, of an image of 32 pixels."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__("wide", nn.Conv2d(3, 4, 1), Normalize([0.5] * 3, [0.25] * 3), Classify(["a"]), 32)

    def points(self):
        return ["S1"]

    def halves(self, point):
        class Two(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, x):
                z = self.model(x)
                return nn.functional.avg_pool2d(z, 4), z.flatten(2).mean(2)

        return Two(self.model), nn.Identity()


@pytest.mark.parametrize("minutes", [None, 1.0])
def test_a_target_of_another_size_than_the_priors_is_inverted(kept, monkeypatch, pictures, flow_prior, minutes):
    flow_prior.save(kept / "tiny")
    monkeypatch.setattr(training.targets, "load", lambda name, weights: _Wide())
    monkeypatch.setattr(training, "load_prior", lambda name: flow_prior)
    budgets = []
    monkeypatch.setattr(training, "Budget", lambda *given, **_: budgets.append(given) or Budget(steps=3))
    file = train_inversion_command(data=pictures, target="wide", minutes=minutes, out=None if minutes else kept / "out")
    # without a budget, half an hour; without a split, the middle one
    assert budgets == [((minutes or training.MINUTES) * 60, None)] and "wide-S1-tiny" in file.name
    about = EdgePipeline(_Wide(), "S1").description()
    weights = {"head_digest": about.head_digest, "prior_digest": flow_prior.latent_digest}
    network = load_inversion("wide", "S1", "tiny", path=None if minutes else file, **weights)
    z = EdgePipeline(_Wide(), "S1")(torch.rand(2, 3, 32, 32))
    # the prior answers at the size of what is attacked
    assert flow_prior.decode(network(z)).shape == (2, 3, 32, 32)
    assert [tuple(spec.shape) for spec in network.features] == [(4, 8, 8), (4,)]
    assert "splitsight train inversion --target wide --split S1" in next(kept.rglob("README.md")).read_text()
