"""The small ResNet-50, ViT, detector and CLIP image encoder: their points, halves and outputs."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from splitsight.artifacts import asset
from splitsight.errors import UserError
from splitsight.recipes import RECIPES
from splitsight.recipes.yolo_small import GROUPS
from splitsight.split import half_state
from splitsight.targets import load
from splitsight.targets.resnet50_small import NarrowResNet50
from splitsight.targets.vit_small import SmallViT, encode
from splitsight.targets.yolo_small import SmallYolo

SHAPES = {
    "resnet50-small": {
        "L12": (128, 8, 8),
        "L24": (256, 4, 4),
        "L36": (256, 4, 4),
        "L48": (512, 2, 2),
        "output": (200,),
    },
    "yolo-small": {
        "L12": (128, 8, 8),
        "L24": (256, 4, 4),
        "L36": (256, 4, 4),
        "L48": (512, 4, 4),
        "output": (75, 4, 4),
    },
    "vit-small": {**dict.fromkeys(("L3", "L4", "L5", "L8"), (65, 96)), "output": (200,)},
    "clip-small": {**dict.fromkeys(("L3", "L4", "L5", "L8"), (65, 96)), "output": (64,)},
}


def random_model(name):
    torch.manual_seed(0)
    makers = {
        "resnet50-small": lambda: NarrowResNet50(200),
        "yolo-small": lambda: SmallYolo(75),
        "vit-small": lambda: SmallViT(200),
        "clip-small": lambda: SmallViT(64),
    }
    model = makers[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # blocks that begin as the identity would hide mistakes
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    if isinstance(model, SmallViT):  # whose last layer begins with zeros
        torch.nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


@pytest.fixture(scope="module", params=list(SHAPES))
def target(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(random_model(request.param).state_dict(), path)
    if request.param == "clip-small" and not (asset("targets", "clip-small") / "text.safetensors").is_file():
        save_file({"labels": torch.eye(200)[:, :64].contiguous()}, path.with_name("text.safetensors"))
        table = asset("targets", "clip-small") / "classes.tsv"
        path.with_name("classes.tsv").write_text(table.read_text())
    return load(request.param, path)


def test_points_and_features(target):
    shapes = SHAPES[target.name]
    assert target.points() == [name for name in shapes if name != "output"] and target.input_size == 64
    assert {p: target.feature_specs(p)[0].shape for p in shapes} == shapes
    with pytest.raises(UserError, match=f"unknown split of {target.name} 'L7': choose one of"):
        target.cut("L7")


@torch.no_grad()
def test_halves_make_the_whole_and_are_those_of_the_graph(target):
    x = torch.rand(3, 3, 64, 64)
    normal = target.preprocess(x)
    whole = target.model(normal)
    for point in target.points():
        cut = target.cut(point)
        features = cut.head(x)
        assert torch.allclose(cut.tail(features), whole, atol=1e-5)
        f1, f2 = target.traced.split(target.aliases[point])
        assert torch.allclose(f1(normal)[0], features[0], atol=1e-5)
        # by hand or by the graph, each half reads the same weights
        halves = target.halves(point)
        assert set(half_state(target.model, halves[0])) == set(half_state(target.model, f1))
        assert set(half_state(target.model, halves[1])) == set(half_state(target.model, f2))


def test_differentiable_to_the_image(target):
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    target.head(target.points()[-1])(x)[0].square().sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in target.model.parameters())


def test_readings(target):
    reading = target.task.read(target.model(target.preprocess(torch.rand(1, 3, 64, 64))))[0]
    if target.name == "yolo-small":
        assert target.labels == list(GROUPS) and all(b.label.name in GROUPS for b in reading.boxes)
    else:
        assert len(target.labels) == 200 and reading.best().name in target.labels


def test_the_narrow_net_is_a_resnet50():
    """At the full width it takes torchvision's weights and computes the same."""
    torch.manual_seed(0)
    theirs = resnet50(num_classes=7).eval()
    ours = NarrowResNet50(7, 64).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    # dilated, the last maps are twice as large and the weights the same
    dilated = NarrowResNet50(7, 8, dilated=True)
    assert dilated.layer4(torch.zeros(1, 128, 4, 4)).shape == (1, 256, 4, 4)
    plain = NarrowResNet50(7, 8)
    assert {k: v.shape for k, v in dilated.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


@torch.no_grad()
def test_some_tokens_of_an_image():
    model = random_model("vit-small").eval()
    x = torch.randn(2, 3, 64, 64)
    everything = torch.arange(64).expand(2, -1)
    assert torch.allclose(encode(model, x), model(x), atol=1e-5)
    assert torch.allclose(encode(model, x, everything), model(x), atol=1e-5)
    # what is not looked at does not matter
    kept = torch.tensor([[0, 1, 8, 9], [0, 1, 8, 9]])
    other = x.clone()
    other[:, :, 16:], other[:, :, :, 16:] = 0, 0
    assert torch.allclose(encode(model, x, kept), encode(model, other, kept), atol=1e-5)


SHIPPED = sorted(name for name in SHAPES if (asset("targets", name) / "model.safetensors").is_file())
"""Whose weights are in the package; the others have a recipe."""


def test_what_is_in_the_package():
    assert "resnet50-small" in SHIPPED
    files = [path for path in asset().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 60e6, "of weights"
    assert sum(path.stat().st_size for path in files) <= 62e6, "with the gallery, clips and cards"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "a package's files are for every user"


@pytest.mark.parametrize("name", SHIPPED)
def test_embedded_weights(name):
    file = asset("targets", name) / "model.safetensors"
    target = load(name)
    assert file.stat().st_size < 2_000_000 and len(target.digest) == 64
    # the card's figures are of these weights
    card = file.with_name("README.md").read_text(encoding="utf-8")
    # CLIP's has the digest of both encoders together
    assert ("| unseen_top1 |" if name == "clip-small" else f"| digest | {target.digest[:12]} |") in card


@pytest.mark.parametrize("name", sorted({*SHAPES} - {*SHIPPED}))
def test_weights_that_are_not_in_the_package(name):
    assert name in RECIPES.names()
    with pytest.raises(UserError, match=rf"are not in this installation .*`splitsight train target {name} --data DIR"):
        load(name)
