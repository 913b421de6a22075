"""Every recipe learns, goes on where it stopped, and writes what its target loads."""

import os
import signal

import pytest
import torch

from splitsight.artifacts import digest
from splitsight.errors import UserError
from splitsight.recipes import RECIPES, Options, yolo_small
from splitsight.recipes._loop import train
from splitsight.targets import TARGETS
from splitsight.targets.training import train_target_command
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

ALL = ["clip-small", "resnet18", "resnet50-small", "vit-small", "yolo-small"]


@pytest.fixture
def make(shards, photos, monkeypatch):
    monkeypatch.setattr(yolo_small, "_HELD", 20)

    def made(name, batch=16, **options):
        if name == "yolo-small":
            options.setdefault("photos", photos)
        recipe = RECIPES.get(name)(Options(TrainingSet.open(shards, labelled=True), torch.device("cpu"), **options))
        recipe.batch = batch
        return recipe

    return made


def test_every_recipe_makes_a_target():
    assert RECIPES.names() == ALL and set(ALL) <= set(TARGETS.names())


@pytest.mark.parametrize("name", sorted(set(ALL) - {"resnet18"}))
def test_the_loss_falls(name, make, tmp_path):
    recipe, losses = make(name, 8), []
    if recipe.optimizer == "sgd":
        recipe.peak = 0.01  # for so small a batch
    original = recipe.loss

    def loss(draw):
        value, figures = original(draw)
        losses.append(float(value.detach()))
        return value, figures

    recipe.loss = loss
    model, spent = train(recipe, tmp_path, Budget(steps=14), title="t")
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert spent["examples_seen"] == 14 * 8 and spent["finished"] and not model.training
    assert all(0 <= value <= 1 for value in recipe.measure(model).values())


@pytest.mark.parametrize("name", sorted(set(ALL) - {"resnet18"}))
def test_a_resumed_run_equals_one_that_was_not_interrupted(name, make, tmp_path):
    whole, _ = train(make(name, 4), tmp_path / "whole", Budget(steps=4), title="t", seed=3)

    stopped, steps = make(name, 4), []
    original = stopped.loss

    def loss(draw):
        steps.append(draw)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(draw)

    stopped.loss = loss
    _, spent = train(stopped, tmp_path / "parts", Budget(steps=4), title="t", seed=3)
    assert len(steps) == 2 and not spent["finished"]
    resumed, spent = train(make(name, 4), tmp_path / "parts", Budget(steps=4), title="t", seed=3)
    assert spent["finished"] and digest(resumed.state_dict()) == digest(whole.state_dict())


def test_every_example_once_an_epoch(make, tmp_path):
    recipe, seen = make("resnet50-small", 16), []
    original = recipe.loss
    recipe.loss = lambda draw: (seen.append(draw.index.tolist()), original(draw))[1]
    train(recipe, tmp_path, Budget(steps=8), title="t")
    first, second = ([i for step in epoch for i in step] for epoch in (seen[:4], seen[4:]))
    assert sorted(first) == sorted(second) == list(range(64)) and seen[:4] != seen[4:]


def test_the_command_leaves_a_folder_and_a_card(shards, tmp_path, capsys):
    folder = train_target_command(
        "resnet50-small", data=shards, out=tmp_path, minutes=None, steps=2, threads=1, bfloat16=True
    )
    card = (folder / "README.md").read_text()
    assert "splitsight train target resnet50-small --data DIR --steps 2 --bfloat16" in card
    assert "the last shard (train-1.parquet) was held out" in card and "16 instead of 64 channels" in card
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "classes.tsv", "config.json", "model.safetensors"]
    train_target_command("resnet50-small", data=shards, out=tmp_path, minutes=None, steps=3, threads=1)
    assert "train resnet50-small: resumed at step 2" in capsys.readouterr().err


def test_weights_to_go_on_from(shards, make, tmp_path):
    folder = train_target_command("resnet50-small", data=shards, out=tmp_path, minutes=None, steps=1, threads=1)
    weights = folder / "model.safetensors"
    body = make("yolo-small", start=weights).model
    again = make("resnet50-small", start=weights)
    assert torch.equal(body.layer3[2].conv2.weight, again.model.layer3[2].conv2.weight) and again.peak < 0.1
    with pytest.raises(UserError, match="does not hold a vit-small with 4 classes"):
        make("vit-small", start=weights)
    vit = train_target_command("vit-small", data=shards, out=tmp_path / "v", minutes=None, steps=1, threads=1)
    with pytest.raises(UserError, match="weights of neither a yolo-small nor a resnet50-small"):
        make("yolo-small", start=vit / "model.safetensors")


def test_what_a_recipe_does_not_take(make, shards, photos, tmp_path):
    with pytest.raises(UserError, match="unknown recipe 'resnet19': choose one of clip-small, "):
        train_target_command("resnet19", data=shards, out=tmp_path, minutes=None, steps=1)
    with pytest.raises(UserError, match="--minutes or --steps"):
        train_target_command("vit-small", data=shards, out=tmp_path, minutes=None, steps=None)
    with pytest.raises(UserError, match="vit-small is trained on --data alone"):
        make("vit-small", photos=photos)
    with pytest.raises(UserError, match="give a Parquet file of them with --photos"):
        make("yolo-small", photos=None)
    with pytest.raises(UserError, match="learns from boxes alone"):
        make("yolo-small", teacher="resnet18")
    with pytest.raises(UserError, match="leave --teacher out"):
        make("clip-small", teacher="resnet18")
    with pytest.raises(UserError, match="answers in other classes"):
        make("resnet50-small", teacher="resnet18")
