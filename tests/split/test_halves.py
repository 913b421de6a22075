"""Halves: sizes and types that they refuse, saving and copying, devices, and which of the model's weights they read."""

from __future__ import annotations

import copy
import io
import pickle
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils import _pytree as pytree
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification

from splitsight.errors import UserError
from splitsight.split import half_state, split, trace
from splitsight.targets.resnet18 import _LAYERS as LAYERS
from splitsight.targets.resnet18 import ResNet18, build

# ------------------------------------------------------------------ sizes


class Resizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear")


class DividesByArea(Resizes):
    def forward(self, x):
        return self.b(self.a(x).relu()).sum((2, 3)) / (x.shape[-1] * x.shape[-2])


class PoolsThenDivides(Resizes):
    """Features of one size for images of every size, yet the right half depends on the image's size."""

    def forward(self, x):
        return self.b(F.adaptive_avg_pool2d(self.a(x), 2)) * x.shape[-1]


class Views(Resizes):
    def forward(self, x):
        y = self.a(x)
        return self.b(y).view(x.shape[0], 2, -1).mean(2).view(-1, 1, 2)


class Branches(Resizes):
    def forward(self, x):
        y = self.a(x)
        return self.b(y if y.shape[-1] > 6 else y * 2)


class CountsOnArange(Resizes):
    def forward(self, x):
        y = self.a(x)
        return self.b(y * torch.arange(y.shape[-1])) + torch.ones(y.shape[-2], 1)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return {"out": self.bn(self.a(x)).relu()}


def fcn():
    return torchvision.models.segmentation.FCN(Backbone(), torchvision.models.segmentation.fcn.FCNHead(8, 2))


@pytest.mark.parametrize("make", [Resizes, DividesByArea, PoolsThenDivides, Views, Branches, CountsOnArange, fcn])
def test_another_image_size_is_refused_and_not_computed_otherwise(make):
    torch.manual_seed(0)
    model = make().eval()
    traced = trace(model, torch.rand(2, 3, 32, 32))
    points = traced.cut_points()
    f1, f2 = traced.split(points[len(points) // 2])
    with torch.no_grad():
        x = torch.rand(3, 3, 32, 32)
        assert all(map(torch.equal, pytree.tree_leaves(f2(f1(x))), pytree.tree_leaves(model(x))))
        for size in ((40, 32), (32, 24), (64, 64), (1, 1)):
            with pytest.raises(
                UserError, match=rf"traced for inputs of size 3×32×32 and was given 3×{size[0]}×{size[1]}"
            ):
                f1(torch.rand(2, 3, *size))
        with pytest.raises(UserError, match=r"given 32×32 \(shape \(3, 32, 32\)\).*trace the model again"):
            f1(torch.rand(3, 32, 32))
        # another traced half takes the other size
        g1, g2 = split(model, torch.rand(2, 3, 48, 40), points[0].name)
        y = torch.rand(1, 3, 48, 40)
        assert all(map(torch.equal, pytree.tree_leaves(g2(g1(y))), pytree.tree_leaves(model(y))))
        z = g1(y)
        if points[0].tensors[0].shape != tuple(z[0].shape[1:]):
            with pytest.raises(UserError, match=r"traced for features of size .* and was given"):
                traced.split(points[0])[1](z)


def test_features_and_inputs_of_another_kind_are_refused():
    f1, f2 = split(Resizes().eval(), torch.rand(2, 3, 8, 8), "a")
    z = tuple(t.detach() for t in f1(torch.rand(1, 3, 8, 8)))
    for bad, message in (
        ((z[0], z[0]), "takes 1 feature tensor, not Tensor, Tensor"),
        ((), "takes 1 feature tensor, not nothing"),
        ((z[0].numpy(),), "takes 1 feature tensor, not ndarray"),
        ((z[0][0],), "traced for features of size 4×4×4 and was given 4×4"),
        ((z[0].int(),), "floating-point features, not int32"),
    ):
        with pytest.raises(UserError, match=message):
            f2(bad)
    for bad, message in (
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "inputs of type float32 and was given uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "inputs of type float32 and was given float64"),
        ("x", "takes 1 input tensor, not str"),
    ):
        with pytest.raises(UserError, match=message):
            f1(bad)
    assert torch.equal(f2(z), f2(*z)) and torch.equal(f2(list(z)), f2(z))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x, y):
        return (self.a(x) * self.b(y)).exp().sum(1)


def test_inputs_of_different_batch_sizes_are_refused():
    x, y = torch.rand(3, 4), torch.rand(3, 2)
    f1, _ = split(TwoInputs().eval(), (x, y), "mul")
    with pytest.raises(UserError, match="all inputs need the same batch size, but these have 3 and 1"):
        f1(x, y[:1])
    with pytest.raises(UserError, match="need the same batch size, but have 2, 3"):
        trace(TwoInputs(), (x, y[:2]))


class BatchBranch(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.condition = condition
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.f(x).relu()
        return self.g(y * 2 if self.condition(y.shape[0]) else y)


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        (lambda b: b > 8, (1, 2, 8), (9, 20)),
        (lambda b: b % 4 == 0, (1, 2, 3, 5), (4, 8)),
        (lambda b: b == 1, (2, 3, 7), (1,)),
        (lambda b: b > 0, (1, 2, 3, 50), ()),
    ],
)
def test_a_branch_on_the_batch_size_is_followed_or_refused(condition, good, bad):
    model = BatchBranch(condition).eval()
    f1, f2 = split(model, torch.rand(2, 4), "relu")
    for b in good:
        x = torch.rand(b, 4)
        assert torch.equal(f2(f1(x)), model(x))
    for b in bad:
        for half in (f1, f2):
            with pytest.raises(UserError, match=rf"for batches of .*not of {b}: give another number at a time"):
                half(torch.rand(b, 4))


# ------------------------------------------------------------------ saving and copying

Pair = namedtuple("Pair", ["logits", "features"])


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def forward(self, x):
        h = self.a(x).relu() * self.scale + torch.tensor([0.5, float("inf"), 1.0]).clamp(max=9)
        return {"pair": Pair(self.b(h), [h, (h.sum(), x.shape[0])]), "mask": h.masked_fill(h < 0, float("-inf"))}


def small_vit():
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **size))


def small_clip():
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **size))


CASES = {
    "structured": (Structured, (4,)),
    "resizes": (Resizes, (3, 16, 16)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), (3, 32, 32)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), (3, 32, 32)),
    "vit": (small_vit, (3, 16, 16)),
    "clip": (small_clip, (3, 16, 16)),
}


def saved(half):
    file = io.BytesIO()
    torch.save(half, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(half):
    return pickle.loads(pickle.dumps(half))


@pytest.mark.parametrize("name", CASES)
def test_halves_can_be_saved_loaded_and_copied(name):
    torch.manual_seed(0)
    make, shape = CASES[name]
    model = make().eval()
    traced = trace(model, torch.rand(2, *shape))
    points = traced.cut_points()
    x = torch.rand(3, *shape)
    for point in (points[0], points[len(points) // 2], points[-1]):
        f1, f2 = traced.split(point)
        with torch.no_grad():
            expected = model(x)
            for way in (saved, pickled, copy.deepcopy, lambda half: saved(copy.deepcopy(saved(half)))):
                g1, g2 = way(f1), way(f2)
                got = g2(g1(x))
                assert type(got) is type(expected) and not g2.training
                got, wanted = pytree.tree_leaves(got), pytree.tree_leaves(expected)
                assert all(
                    torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                    for a, b in zip(got, wanted, strict=True)
                )
                with pytest.raises(UserError, match="trace the model again"):
                    g1(torch.rand(2, *shape[:-1], shape[-1] + 8))


def test_halves_of_the_fallback_can_be_saved(monkeypatch):
    from splitsight.split import tracing

    def broken(*_):
        raise RuntimeError("no export")

    monkeypatch.setattr(tracing, "_exported", broken)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    f1, f2 = split(model, torch.rand(2, 3), "1")
    x = torch.rand(3, 3)
    assert torch.equal(saved(f2)(copy.deepcopy(f1)(x)), model(x))
    assert list(half_state(model, f1)) == ["0.weight", "0.bias"]
    assert list(half_state(model, f2)) == [
        *("2.weight", "2.bias", "2.running_mean", "2.running_var"),
        *("3.weight", "3.bias"),
    ]


def test_saving_both_halves_together_saves_shared_weights_once():
    f1, f2 = split(Tied().eval(), torch.rand(2, 4), "a")
    g1, g2 = saved(nn.ModuleList([f1, f2]))
    assert {p.data_ptr() for p in g1.parameters()} & {p.data_ptr() for p in g2.parameters()}
    x = torch.rand(2, 4)
    assert torch.equal(g2(g1(x)), f2(f1(x)))


def test_constants_follow_to_another_device():
    f1, f2 = split(CountsOnArange().eval(), torch.rand(2, 3, 8, 8), "a")
    z = f2.to("meta")(f1.to("meta")(torch.rand(1, 3, 8, 8, device="meta"))[0])
    assert z.device.type == "meta" and z.shape == (1, 2, 4, 4)


# ------------------------------------------------------------------ which weights a half reads


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.unused, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("offset", torch.rand(4), persistent=False)

    def forward(self, x):
        return self.b(self.a(x).relu() + self.offset) * torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_names_of_what_a_half_reads():
    model = Tied().eval()
    f1, f2 = split(model, torch.rand(2, 4), "relu")
    first, second = half_state(model, f1), half_state(model, f2)
    assert list(first) == ["a.weight", "a.bias"]
    # the first of two names, a buffer outside of the state dict, nothing that is not read, then the constant
    assert list(second)[:3] == ["offset", "a.weight", "b.bias"]
    (constant,) = list(second)[3:]
    assert second[constant].tolist() == [1, 2, 3, 4]
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    for state in (first, second):
        assert all(state[k].data_ptr() == names[k].data_ptr() for k in state if k != constant)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    target = object.__new__(ResNet18)
    target.model = build().eval()
    return target, trace(target.model, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("point", LAYERS)
def test_same_cut_by_hand_and_by_tracing_reads_the_same(resnet, point):
    target, traced = resnet
    for by_hand, half in zip(target.halves(point), traced.split(f"layer{LAYERS[point]}"), strict=True):
        expected, got = half_state(target.model, by_hand), half_state(target.model, half)
        assert list(got) == list(expected)
        assert all(torch.equal(got[k], expected[k]) and got[k].data_ptr() == expected[k].data_ptr() for k in got)
        assert not any("num_batches_tracked" in k for k in got)
    whole = half_state(target.model, target.model)
    both = [half_state(target.model, half) for half in target.halves(point)]
    assert (
        set(whole)
        == set(both[0]) | set(both[1])
        == {k for k in target.model.state_dict() if "num_batches_tracked" not in k}
    )


def test_what_the_model_does_not_hold_keeps_its_own_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    f1, _ = split(model, torch.rand(2, 4), "1")

    class Wrapped(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.preprocess = nn.Linear(4, 4, bias=False)
            self.body = body

    assert list(half_state(model, Wrapped(f1))) == ["0.weight", "0.bias", "preprocess.weight"]
    assert list(half_state(model, Wrapped(model[:2]))) == ["0.weight", "0.bias", "preprocess.weight"]
    # a copy shares no memory with the model
    assert list(half_state(model, copy.deepcopy(f1))) == ["0.weight", "0.bias"]
    assert list(half_state(model, Wrapped(copy.deepcopy(f1)))) == ["preprocess.weight", "body.0.weight", "body.0.bias"]


def test_parameters_that_the_first_half_reads():
    model = Tied().eval()
    traced = trace(model, torch.rand(2, 4))
    points = {p.name: p.parameters for p in traced.cut_points()}
    assert points["a"] == points["relu"] == 20 and points["b"] == 24  # the tied matrix once
    resnet = torchvision.models.resnet18(num_classes=3).eval()
    traced = trace(resnet, torch.rand(2, 3, 32, 32))
    for p in traced.cut_points()[::6]:
        assert p.parameters == sum(q.numel() for q in traced.split(p)[0].parameters())


def test_changed_weights_of_the_model_are_the_halves():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    f1, f2 = split(model, torch.rand(2, 4), "1")
    with torch.no_grad():
        model[0].weight.mul_(3)
        model[1].running_mean.add_(1)
    x = torch.rand(2, 4)
    assert torch.equal(f2(f1(x)), model(x))
