import numpy as np
import pytest
import torch

from adversary.blackbox.inversion import InversionNetwork, load_inversion
from adversary.priors.captions import WORDS, build_tokenizer, caption, measure, read_class_names
from splitsight.errors import UserError


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


@pytest.mark.parametrize(
    "shapes", [[(128, 8, 8)], [(512, 2, 2)], [(64, 16, 16)], [(50, 32)], [(512,)], [(16, 4, 4), (8, 8, 8)]]
)
def test_inversion_network_builds_itself_for_any_feature_shape(shapes):
    network = InversionNetwork(shapes, (8, 16, 16), width=16, depth=1)
    assert network(tuple(torch.randn(2, *s) for s in shapes)).shape == (2, 8, 16, 16)


def test_inversion_network_is_refused_for_other_weights(tmp_path):
    network = InversionNetwork([(16, 4, 4)], (8, 16, 16), width=16, depth=1)
    file = tmp_path / "n.safetensors"
    network.save(file, target_digest="a" * 64, prior_digest="b" * 64, target="resnet18", split="L8", prior="small")
    load = lambda **k: load_inversion("resnet18", "L8", "small", path=file, **k)  # noqa: E731
    loaded = load(target_digest="a" * 64, prior_digest="b" * 64)
    z = (torch.randn(1, 16, 4, 4),)
    torch.testing.assert_close(loaded(z), network.eval()(z), atol=5e-3, rtol=1e-2)
    with pytest.raises(UserError, match="trained for another target"):
        load(target_digest="c" * 64, prior_digest="b" * 64)
    with pytest.raises(UserError, match="trained for another prior"):
        load(target_digest="a" * 64, prior_digest="c" * 64)
    with pytest.raises(UserError, match="train inversion"):
        load_inversion("resnet18", "L4", "nowhere", target_digest="", prior_digest="")
