import re
import shlex

import numpy as np
import pytest
import torch
from tiny import TinyTarget
from typer.testing import CliRunner

from adversary import training
from adversary.blackbox import inversion
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_file, load_inversion
from adversary.priors.captions import WORDS, build_tokenizer, caption, measure, read_class_names
from adversary.priors.prior import load_prior
from scenarios.cli import app
from splitsight.artifacts import save_weights
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline


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
    with pytest.raises(NoInversionNetwork, match="against 'gaussian:sigma=1'"):
        load(defense="gaussian:sigma=1")


def test_what_is_missing_is_trained_by_the_command_that_the_message_names(kept, monkeypatch, pictures, flow_prior):
    with pytest.raises(NoInversionNetwork) as caught:
        load_inversion("tiny", "S2", "tiny", defense="gaussian:ratio=0.5", **WEIGHTS)
    command = shlex.split(re.search("`splitsight (.*)`", str(caught.value))[1])
    flow_prior.save(kept / "tiny")
    replaced = {"DIR": str(pictures), "tiny": str(kept / "tiny")}
    arguments = [replaced.get(word, word) if command[i - 1] != "--target" else word for i, word in enumerate(command)]
    monkeypatch.setattr(training.targets, "load", lambda name, weights: TinyTarget())
    # the same, cut short
    arguments[arguments.index("--minutes") :] = ["--steps", "2"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    about = EdgePipeline(TinyTarget(), "S2", "gaussian:ratio=0.5").description()
    weights = {"head_digest": about.head_digest, "prior_digest": load_prior(str(kept / "tiny")).latent_digest}
    network = load_inversion("tiny", "S2", "tiny", defense=about.defense, **weights)
    assert network.features == about.features and network.errors is not None
