"""Cuts of real architectures, toys with skips, and random graphs against a brute-force enumeration."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from splitsight.errors import UserError
from splitsight.split import cut_points, split, trace


def check(model, traced, point, shape, batches=(1, 3)):
    """F2(F1(x)) is the model, for other batch sizes than the traced ones, and does not write into z."""
    f1, f2 = traced.split(point)
    for b in batches:
        x = torch.rand(b, *shape)
        with torch.no_grad():
            z = f1(x)
            kept = [t.clone() for t in z]
            y, expected = f2(z), model(x)
        assert torch.equal(y, expected)
        assert all(torch.equal(a, c) for a, c in zip(z, kept, strict=True))
        cut = traced.resolve(point)
        assert [tuple(t.shape) for t in z] == [(b, *t.shape) for t in cut.tensors]
    return f1, f2


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    return model, trace(model, torch.rand(1, 3, 64, 64))


def test_resnet18_bridges_are_what_lies_between_blocks(resnet):
    _, traced = resnet
    names = [p.name for p in traced.cut_points()]
    assert names[:4] == ["conv1", "bn1", "relu", "maxpool"] and names[-2:] == ["avgpool", "flatten"]
    assert {"layer1", "layer2", "layer3", "layer4", "layer1.0", "layer2.0.add"} <= set(names)
    assert "layer2.0.conv1" not in names  # the skip connection passes it by


def test_resnet18_figures(resnet):
    _, traced = resnet
    points = {p.name: p for p in traced.cut_points()}
    assert points["layer2"].tensors[0].shape == (128, 8, 8) and points["layer2"].bytes == 4 * 128 * 64
    assert points["conv1"].layers == 1 and points["layer1"].layers == 5
    assert points["conv1"].flops == 2 * 64 * 32 * 32 * 3 * 49
    flops = [p.flops for p in traced.cut_points()]
    assert flops == sorted(flops)
    assert "layer1.1" in points["layer1"].aliases and traced.resolve("layer1.1") == points["layer1"]


def test_resnet18_is_equal_at_every_stage(resnet):
    model, traced = resnet
    for name in ("conv1", "layer1", "layer2.0.add", "layer4", "flatten"):
        check(model, traced, name, (3, 64, 64))


def test_two_tensors_cut_through_skip_connections(resnet):
    model, traced = resnet
    single = {p.name for p in traced.cut_points(1)}
    double = {p.name: p for p in traced.cut_points(2)}
    assert single < set(double) and len(double) > 60
    for name in ("layer1+layer2.0.conv1", "layer2.0.bn2+layer2.0.downsample.0"):
        assert len(double[name].tensors) == 2
        check(model, traced, name, (3, 64, 64), batches=(3,))


def test_halves_share_the_weights_and_hold_only_their_own(resnet):
    model, traced = resnet
    f1, f2 = traced.split("layer2")
    first, second = ({p.data_ptr() for p in f.parameters()} for f in (f1, f2))
    assert first | second == {p.data_ptr() for p in model.parameters()} and not first & second


def test_gradients_reach_the_input(resnet):
    _, traced = resnet
    f1, _ = traced.split("layer2")
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    f1(x)[0].square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "size"), [("resnet50", 64), ("googlenet", 64), ("mobilenet_v3_small", 64), ("densenet", 64), ("vit", 32)]
)
def test_architectures(name, size):
    torch.manual_seed(1)
    if name == "vit":
        model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
        nn.init.normal_(model.heads.head.weight)
    elif name == "densenet":
        model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10)
    else:
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        model = getattr(torchvision.models, name)(num_classes=10, **extra)
    model.eval()
    traced = trace(model, torch.rand(1, 3, size, size))
    points = traced.cut_points()
    names = {p.name for p in points}
    expected = {
        "resnet50": {"layer2.0", "layer3.0", "layer3.4", "layer4"},
        "googlenet": {"inception3a", "inception5b"},
        "mobilenet_v3_small": {"features.1", "features.11"},
        "densenet": {"features.denseblock1", "features.transition1"},
        "vit": {"encoder.layers.encoder_layer_0", "encoder.layers"},
    }[name]
    assert expected <= names, sorted(names)
    for point in [p for p in points if p.name in expected]:
        check(model, traced, point, (3, size, size))


def test_module_names_of_resnet50_match_the_literature_points():
    # L48 ends the last bottleneck; its value is also the output of layer4, which names it
    model = torchvision.models.resnet50(num_classes=3).eval()
    traced = trace(model, torch.rand(1, 3, 32, 32))
    assert traced.resolve("layer4.2").name == "layer4"


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.middle = nn.Conv2d(4, 4, 3, 1, 1)
        self.up = nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x):
        a = torch.relu_(self.down(x))
        b = torch.relu(self.middle(a))
        return self.up(torch.cat([a, b], 1)).mean((2, 3))


def test_toy_with_a_long_skip():
    model = UNet().eval()
    traced = trace(model, torch.rand(2, 3, 16, 16))
    assert [p.name for p in traced.cut_points()] == ["down", "relu", "cat", "up"]
    assert [p.name for p in traced.cut_points(2)][2:4] == ["relu+middle", "relu+relu#2"]
    for p in traced.cut_points(2):
        check(model, traced, p, (3, 16, 16))


class TwoStreams(nn.Module):
    """Two values cross from the first line on; with sizes, chunks and a constant in between."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)
        self.token = nn.Parameter(torch.randn(1, 5))

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        left, right = self.a(left), self.b(right)
        both = torch.stack([left + self.token.expand(x.shape[0], -1), right.tanh()], 1)
        return {"sum": both.reshape(x.size(0) * 2, 5).cumsum(1).view(x.size(0), 2, 5), "right": right}


def test_two_crossing_tensors_sizes_and_structured_output():
    model = TwoStreams().eval()
    example = torch.rand(2, 12)
    assert cut_points(model, example) == []
    traced = trace(model, example)
    points = traced.cut_points(2)
    assert "a+b" in {p.name for p in points}
    for p in points:
        f1, f2 = traced.split(p)
        for b in (1, 4):
            x = torch.rand(b, 12)
            got, expected = f2(f1(x)), model(x)
            assert got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x, y):
        return (self.a(x) * self.b(y)).exp().sum(1)


def test_two_inputs():
    model = TwoInputs().eval()
    x, y = torch.rand(3, 4), torch.rand(3, 2)
    f1, f2 = split(model, (x, y), "a+b")
    assert torch.equal(f2(f1(x, y)), model(x, y))
    assert [p.name for p in cut_points(model, (x, y))] == ["mul", "exp"]


class WritesThroughView(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 0].add_(1)
        return (y * 3).sum(1)


class WritesLater(nn.Module):
    """The skip reads what relu_ wrote, as in pre-activation networks with in-place activations."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        y = x - 0.5
        h = self.f(torch.relu_(y))
        return (h + y).sum(1)


@pytest.mark.parametrize("model", [WritesThroughView(), WritesLater()])
def test_in_place_operators(model):
    model.eval()
    traced = trace(model, torch.rand(2, 4))
    points = traced.cut_points(2)
    assert points
    for p in points:
        check(model, traced, p, (4,))


class BatchNotFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(x.relu()).transpose(0, 1).exp().transpose(0, 1).sigmoid().argmax(1) + 1


def test_values_that_cannot_be_streamed_are_no_points():
    traced = trace(BatchNotFirst().eval(), torch.rand(2, 4))
    assert [p.name for p in traced.cut_points()] == ["relu", "f", "transpose#2", "sigmoid"]
    with pytest.raises(
        UserError, match=r"'exp' is not a floating-point tensor with the batch.*nearby are.*transpose#2"
    ):
        traced.split("exp")


def test_training_flags_and_weights_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3)).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    f1, f2 = split(model, torch.rand(2, 3, 8, 8), "1")
    assert [m.training for m in model] == [True, True, False, True] and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(f2(f1(x)), model.eval()(x))


def test_invalid_points_name_valid_ones(resnet):
    _, traced = resnet
    with pytest.raises(UserError, match=r"later layers also read layer1: .*nearby are .*layer1, layer2.0.add"):
        traced.split("layer2.0.conv1")
    with pytest.raises(UserError, match=r"no value 'layer9'.*layer"):
        traced.split("layer9")
    with pytest.raises(UserError, match=r"no later layer reads conv1"):
        traced.split("conv1+layer1")
    with pytest.raises(UserError, match="nearby are avgpool, flatten"):
        traced.split("fc")
    with pytest.raises(UserError, match="at least 1"):
        traced.cut_points(0)


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if bool(x.sum() > 0) else x - 1


class FixedBatch(nn.Module):
    def forward(self, x):
        if x.shape[0] not in (2, 3):
            raise ValueError("two or three")
        return x * (1 if x.shape[0] == 2 else 2)


def test_untraceable_models_are_refused_with_a_sentence():
    with pytest.raises(UserError, match=r"DataDependent cannot be traced.*export.*symbolic"):
        trace(DataDependent(), torch.rand(2, 3))
    with pytest.raises(UserError, match="FixedBatch cannot be traced"):
        trace(FixedBatch(), torch.rand(2, 3))
    with pytest.raises(UserError, match="does not run on the example"):
        trace(nn.Linear(4, 2), torch.rand(2, 3))
    with pytest.raises(UserError, match="non-empty batch"):
        trace(nn.Linear(4, 2), torch.rand(0, 4))


def test_symbolic_trace_is_the_fallback(monkeypatch):
    from splitsight.split import tracing as module

    def broken(*_):
        raise RuntimeError("no export")

    monkeypatch.setattr(module, "_exported", broken)
    for model in (UNet(), nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), TwoStreams()):
        model.eval()
        shape = {UNet: (3, 16, 16), nn.Sequential: (3,), TwoStreams: (12,)}[type(model)]
        traced = trace(model, torch.rand(1, *shape))
        points = traced.cut_points(2)
        assert points
        for p in points:
            f1, f2 = traced.split(p)
            x = torch.rand(4, *shape)
            z = f1(x)
            kept = [t.clone() for t in z]
            got, expected = f2(z), model(x)
            if isinstance(got, dict):
                got, expected = got["sum"], expected["sum"]
            # this tracer's F2 copies what it gets: of a view, which kernels may sum in another order, but the last bits
            packed = all(t.is_contiguous() and t.storage_offset() == 0 for t in z)
            assert torch.equal(got, expected) if packed else torch.allclose(got, expected)
            assert all(torch.equal(a, b) for a, b in zip(z, kept, strict=True))


class Dag(nn.Module):
    """Node i multiplies the sum of its sources; the last one is the output."""

    def __init__(self, sources):
        super().__init__()
        self.sources = sources

    def forward(self, x):
        values = [x]
        for s in self.sources:
            total = values[s[0]]
            for i in s[1:]:
                total = torch.maximum(total, values[i])
            values.append(torch.sin(total))
        return values[-1] * 2


def brute_force(traced, k):
    """Live sets of every prefix-closed set of nodes."""
    nodes = [n for n in traced._nodes if n in traced._data and n.op != "output"]
    used, todo = set(), list(traced._sources[traced._output])
    while todo:
        n = todo.pop()
        if n not in used:
            used.add(n)
            todo.extend(traced._sources[n])
    nodes = [n for n in nodes if n in used]
    found = set()
    for size in range(1, k + 1):
        for maximal in combinations([n for n in nodes if n.op != "placeholder"], size):
            half = traced._first_half(maximal)
            live = {
                n for n in half if any(u not in half and (u in used or u is traced._output) for u in traced._users[n])
            }
            if len(live) <= k and all(n.op != "placeholder" for n in live):
                found.add(frozenset(traced._names[n] for n in live))
    output = {traced._names[n] for n in traced._sources[traced._output]}
    return {f for f in found if not output <= f}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs_against_brute_force(data):
    n = data.draw(st.integers(2, 7))
    sources = [sorted(data.draw(st.sets(st.integers(max(0, i - 3), i), min_size=1, max_size=2))) for i in range(n)]
    model = Dag(sources).eval()
    traced = trace(model, torch.rand(2, 3))
    for k in (1, 2):
        assert {frozenset(p.name.split("+")) for p in traced.cut_points(k)} == brute_force(traced, k)
    for p in traced.cut_points(3):
        check(model, traced, p, (3,), batches=(1,))
