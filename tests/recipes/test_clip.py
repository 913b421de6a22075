"""The contrastive loss, zero-shot labels, and captions that name their class."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from splitsight.captions import WORDS, caption
from splitsight.errors import UserError
from splitsight.recipes import RECIPES, Options
from splitsight.recipes.clip_small import PROMPT, TEMPLATES, UNSEEN, contrastive_loss
from splitsight.targets import load
from splitsight.targets.clip_small import load_text_encoder
from splitsight.training_data import TrainingSet


def test_contrastive_loss_in_closed_form():
    u, one = torch.eye(3), torch.tensor(1.0)
    # an image's own caption at cosine 1, two others at 0; lengths do not matter
    expected = -math.log(math.e / (math.e + 2))
    assert contrastive_loss(2 * u, 5 * u, one, ["a", "b", "c"]) == pytest.approx(expected, abs=1e-6)
    assert contrastive_loss(u, u, torch.tensor(0.01), ["a", "b", "c"]) < 1e-6
    # equal captions count as one: either is right
    texts = torch.stack([u[0], u[0], u[2]])
    images = torch.stack([u[0], u[0], u[2]])
    rows = [math.log(2 * math.e + 1) - 1] * 2 + [math.log(math.e + 2) - 1]
    assert contrastive_loss(images, texts, one, ["a", "a", "c"]) == pytest.approx(sum(rows) / 3, abs=1e-6)


def test_captions_always_name_their_class():
    rng = np.random.default_rng(0)
    found = [caption(["slug", "snail"], 0b101, rng, TEMPLATES, complete=True) for _ in range(300)]
    assert all("slug" in text or "snail" in text for text in found)
    begun = {text.split(",")[0].replace("snail", "{}").replace("slug", "{}") for text in found}
    assert begun == set(TEMPLATES) and not begun & set(UNSEEN) and any(WORDS[0] in text for text in found)
    # words of the templates that measure it have all been seen
    assert {w for t in UNSEEN for w in t.split()} <= {w for t in TEMPLATES for w in t.split()}


@pytest.fixture
def saved(shards, tmp_path):
    recipe = RECIPES.get("clip-small")(Options(TrainingSet.open(shards, labelled=True), torch.device("cpu")))
    recipe.model.eval()
    recipe.save(tmp_path, recipe.model)
    recipe.restore(tmp_path, recipe.model)
    return recipe, tmp_path


def test_zero_shot_labels(saved):
    recipe, folder = saved
    target = load("clip-small", folder / "model.safetensors")
    assert target.labels == ["Chihuahua", "goose", "banana", "slug"] and target.folder == folder
    images, truth = recipe._held, recipe._held_labels
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    found = target.model(target.preprocess(x))
    own = target.embed_texts([PROMPT.format(name.lower()) for name in target.labels])
    assert torch.allclose(own.norm(dim=1), torch.ones(4), atol=1e-5)
    nearest = (found / found.norm(dim=1, keepdim=True) @ own.T).argmax(1)
    readings = target.task.read(found)
    assert [r.nearest[0].index for r in readings] == nearest.tolist() and len(readings[0].values) == 64
    top1 = target.task.utility(found, truth)["top1"].mean().item()
    assert recipe.measure(recipe.model)["top1"] == pytest.approx(top1, abs=1e-6)
    # a text's last token is what counts, wherever the padding begins
    encoder = load_text_encoder(folder)
    alone, beside = encoder(["a goose"]), encoder(["a goose", "the picture with a banana"])
    assert torch.allclose(alone[0], beside[0], atol=1e-5) and not torch.allclose(beside[0], beside[1], atol=1e-3)


def test_no_text_encoder(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*text\.safetensors"):
        load_text_encoder(Path(tmp_path))
