from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from splitsight.errors import UserError
from splitsight.split import trace
from splitsight.targets import TARGETS, load, read_classes
from splitsight.targets.resnet18 import build, preprocessing


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in build().state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def target(weights):
    return load("resnet18", weights)


def test_registry():
    assert "resnet18" in TARGETS.names()
    with pytest.raises(UserError, match=r"unknown target 'resnet19': choose one of .*resnet18"):
        load("resnet19")


def test_points_and_features(target):
    assert target.points() == ["L4", "L8", "L12", "L16"] and target.input_size == 64
    shapes = [tuple(s.shape for s in target.feature_specs(p)) for p in target.points()]
    assert shapes == [((64, 16, 16),), ((128, 8, 8),), ((256, 4, 4),), ((512, 2, 2),)]
    for call in (target.head, target.tail, target.feature_specs):
        with pytest.raises(UserError, match=r"unknown split of resnet18 'L5': choose one of L4, L8, L12, L16, output"):
            call("L5")


@pytest.mark.parametrize("batch", [1, 3])
def test_halves_make_the_whole(target, batch):
    x = torch.rand(batch, 3, 64, 64)
    whole = target.model(target.preprocess(x))
    for point in target.points():
        features = target.head(point)(x)
        assert isinstance(features, tuple) and torch.equal(target.tail(point)(features), whole)


def test_named_points_are_generic_cut_points(target):
    x = torch.rand(2, 3, 64, 64)
    normal = target.preprocess(x)
    traced = trace(target.model, normal)
    bridges = {p.name for p in traced.cut_points()}
    for point, layer in zip(target.points(), ("layer1", "layer2", "layer3", "layer4"), strict=True):
        assert layer in bridges
        f1, f2 = traced.split(layer)
        mine, generic = target.head(point)(x), f1(normal)
        assert torch.equal(mine[0], generic[0])
        assert torch.equal(target.tail(point)(mine), f2(generic))
        assert traced.resolve(layer).tensors[0].shape == target.feature_specs(point)[0].shape


def test_frozen_but_differentiable_to_the_image(target):
    assert not any(p.requires_grad for p in target.model.parameters()) and not target.model.training
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    target.head("L8")(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


def test_preprocessing_is_the_configured_normalisation():
    x = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert preprocessing()(x).abs().max() < 1e-6
    assert torch.allclose(
        preprocessing()(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([2.2489, 2.4286, 2.64]), atol=1e-4
    )


def test_labels_and_predictions(target):
    assert len(target.labels) == 200 and target.labels[0] == "goldfish"
    logits = torch.zeros(2, 200)
    logits[0, 3], logits[1, 199] = 9, 9
    first, second = target.task.read(logits)
    assert first.top[0][:2] == (3, target.labels[3]) and second.top[0].index == 199
    assert len(first.top) == 5 and first.top[0].probability == pytest.approx(torch.softmax(logits, 1)[0, 3].item())


def test_digest_does_not_depend_on_the_file_format(target, weights, tmp_path):
    path = tmp_path / "same.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in target.model.state_dict().items()}}, path)
    other = load("resnet18", path)
    assert other.digest == target.digest and len(target.digest) == 64
    changed = {k: v.clone() for k, v in target.model.state_dict().items()}
    changed["fc.bias"][0] += 1
    torch.save(changed, path)
    assert load("resnet18", path).digest != target.digest


def test_weights_that_do_not_fit(tmp_path, target):
    state = {k: v.clone() for k, v in target.model.state_dict().items()}

    def refused(change, match):
        path = tmp_path / "bad.pt"
        torch.save(change(dict(state)), path)
        with pytest.raises(UserError, match=match) as error:
            load("resnet18", path)
        assert "\n" not in str(error.value)

    refused(lambda s: s | {"fc.weight": torch.zeros(1000, 512)}, "holds 1000 classes but resnet18 has 200")
    refused(lambda s: s | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, "'conv1.weight' is .* where .* is needed")
    refused(lambda s: {k: v for k, v in s.items() if k != "layer1.0.conv1.weight"}, "lacks 'layer1.0.conv1.weight'")
    refused(lambda s: s | {"extra": torch.zeros(1)}, "unexpected 'extra'")
    refused(lambda s: s | {"bn1.weight": torch.full((64,), float("nan"))}, "NaN or infinite")
    refused(lambda s: {"a": 1}, "does not hold a state dict")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a readable PyTorch state dict"):
        load("resnet18", tmp_path / "noise.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load("resnet18", tmp_path / "noise.safetensors")
    with pytest.raises(UserError, match="no weights at"):
        load("resnet18", tmp_path / "absent.pt")


def test_class_table(tmp_path):
    path = tmp_path / "classes.tsv"
    path.write_text("1\tn2\tcat, Felis catus\n0\tn1\tdog\n")
    assert read_classes(path) == [["dog"], ["cat", "Felis catus"]]
    path.write_text("dog\n")
    with pytest.raises(UserError, match="not a readable class table"):
        read_classes(path)
