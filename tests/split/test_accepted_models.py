"""What may be given to be split: wrappers, signatures, things that are no model; and that it is left as it was."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from splitsight.errors import UserError
from splitsight.split import cut_points, half_state, split, trace

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
V = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def names(model, example=X):
    return [p.name for p in cut_points(model, example)]


# ------------------------------------------------------------------ wrappers and signatures


class Wraps(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.module = small()
        self.lock = threading.Lock()  # cannot be copied
        self._forward = forward

    def forward(self, *args, **kwargs):
        return self._forward(self.module, *args, **kwargs)


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = small()

    def forward(self, x=None, mask=None, *rest, scale=1.0, **kwargs):
        return self.module(x if mask is None else x * mask) * scale


class OnlyByName(Defaults):
    def forward(self, *, pixels):
        return self.module(pixels)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        lambda m: nn.DataParallel(torch.compile(m)),
        torch.fx.symbolic_trace,
    ],
)
def test_wrappers_that_only_run_a_model_are_taken_off(wrap):
    inner = small()
    model = wrap(inner)
    assert names(model) == ["0", "1", "2"]
    f1, f2 = split(model, X, "1")
    assert torch.equal(f2(f1(X)), (model if isinstance(model, torch.fx.GraphModule) else inner)(X))
    assert {p.data_ptr() for f in (f1, f2) for p in f.parameters()} == {p.data_ptr() for p in model.parameters()}


def test_wrappers_inside_of_a_model_are_taken_off():
    model = nn.Sequential(torch.compile(nn.Conv2d(3, 3, 1)), nn.DataParallel(small())).eval()
    assert names(model) == ["0", "1.0", "1.1", "1.2"]
    f1, _ = split(model, X, "1.0")
    assert list(half_state(model, f1)) == [k for k in model.state_dict() if not k.startswith("1.module.3")]
    compiled = small()
    compiled.compile()
    assert names(compiled) == ["0", "1", "2"]


def test_other_wrappers_and_signatures_are_traced():
    for model in (Wraps(lambda module, *args, **kwargs: module(*args, **kwargs)), Defaults()):
        assert names(model) == [
            "module.0",
            "module.1",
            "module.2",
            *(["module"] if isinstance(model, Defaults) else []),
        ]
        f1, f2 = split(model, X, "module.1")
        assert torch.equal(f2(f1(X)), model(X))


def test_other_signatures_are_traced_by_the_fallback(monkeypatch):
    from splitsight.split import tracing

    def broken(*_):
        raise RuntimeError("no export")

    monkeypatch.setattr(tracing, "_exported", broken)
    for model in (Wraps(lambda module, *args, **kwargs: module(*args, **kwargs)), Defaults()):
        f1, f2 = split(model, X, "module.1")
        assert torch.equal(f2(f1(X)), model(X))


def test_what_cannot_be_traced_says_what_to_give():
    def branches(module, *args):
        return module(*args) if args[0].sum().item() < 1e9 else 0

    with pytest.raises(UserError, match=r"Wraps cannot be traced.*wraps the model in its .module, give that instead"):
        trace(Wraps(branches), X)
    with pytest.raises(UserError, match=r"does not run on the example.*must take the tensors by position"):
        trace(OnlyByName(), X)


# ------------------------------------------------------------------ no models


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda: torch.export.export(small(), (X,)), "program of torch.export.*give the nn.Module"),
        (lambda: torch.export.export(small(), (X,)).module(), "program of torch.export.*give the nn.Module"),
        (lambda: torch.export.export(small(), (X,)).module(check_guards=False), "program of torch.export"),
        (lambda: torch.jit.trace(small(), X), "TorchScript.*give the nn.Module"),
        (lambda: lambda x: x, "no nn.Module: give one whose forward"),
        (lambda: small().forward, "'forward' is no nn.Module: give one whose forward"),
        (lambda: small().state_dict(), "a state dict holds no model: build the model"),
        (lambda: {"model": {}}, "a state dict holds no model"),
        (lambda: nn.Linear, r"Linear is a class: give an instance of it, Linear\(…\)"),
        (lambda: None, "must be an nn.Module, not NoneType"),
        (lambda: "model.pt", "must be an nn.Module, not str"),
        (lambda: [small()], "must be an nn.Module, not list"),
        (lambda: nn.ModuleList([small()]), "does not run on the example input"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU()), "lazy parameters.*run it once"),
        (lambda: small().to("meta"), "cannot|does not run"),
    ],
)
def test_what_is_no_model_is_refused_with_a_sentence(thing, message):
    with pytest.raises(UserError, match=message) as error:
        cut_points(thing(), X)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("example", [None, {"x": X}, X.numpy(), (), [X, 3], torch.tensor(1.0), "x", X[:0]])
def test_what_is_no_example_is_refused_with_a_sentence(example):
    with pytest.raises(UserError, match="must be a tensor, or a tuple of tensors, with a non-empty batch"):
        trace(small(), example)


@pytest.mark.parametrize("point", [None, 3, ["1"]])
def test_what_is_no_point_is_refused_with_a_sentence(point):
    with pytest.raises(UserError, match="a split point is a name or a cut point, not"):
        split(small(), X, point)


# ------------------------------------------------------------------ models without a point


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.c = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.bn.running_mean.uniform_()
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.history, self.cache = 0, [], {}

    def forward(self, x):
        return self.c(self.bn(self.a(x)).relu())


class Autocast(Base):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class AutocastInside(Base):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x).relu_()
        return self.c(y.float())


class EnableGrad(Base):
    @torch.enable_grad()
    def forward(self, x):
        return super().forward(x)


class InferenceMode(Base):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class Checkpointed(Base):
    def forward(self, x):
        return self.c(checkpoint(lambda x: self.bn(self.a(x)).relu(), x, use_reentrant=False))


@pytest.mark.parametrize("make", [Autocast, AutocastInside, EnableGrad, InferenceMode, Checkpointed])
def test_modes_within_forward_are_cut_through(make):
    torch.manual_seed(0)
    model = make().eval()
    traced = trace(model, V)
    points = traced.cut_points()
    assert len(points) >= 3 and all(p.layers <= 2 for p in points) and points[-1].layers >= 1
    for p in points:
        f1, f2 = traced.split(p)
        for x in (V, V[:1]):
            with torch.no_grad():
                assert torch.equal(f2(f1(x)), model(x))


class NestedAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.body(x)
            with torch.autocast("cpu", enabled=False):
                y = y.float().exp()
            return self.head(y)


def test_points_under_autocast_are_named_after_modules():
    found = [p.name for p in cut_points(NestedAutocast(), V)]
    assert {"body.0", "body.1", "body.2", "body.3", "body", "exp"} <= set(found), found
    assert {"a", "relu"} <= set(names(AutocastInside(), V))


def test_modes_around_tracing_do_not_matter():
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f1, f2 = split(model, X, "1")
        assert torch.equal(f2(f1(X)), model(X)) and f1(X)[0].dtype == torch.bfloat16
    assert torch.equal(f2(f1(X)), model(X)) and f1(X)[0].dtype == torch.float32
    with torch.inference_mode():
        f1, f2 = split(small(), torch.rand(2, 3, 8, 8), "1")


class Transposed(Base):
    """The batch comes second throughout."""

    def forward(self, x):
        y = x.t()
        return (y.exp() * 2).sin().t()


class Indices(Base):
    def forward(self, x):
        return (x > 0.5).long().cumsum(1) + 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Identity(), "nothing is computed before its output"),
        (nn.Sequential(), "nothing is computed before its output"),
        (nn.Linear(4, 2), "nothing is computed before its output"),
        (Transposed(), "'t' is not a floating-point tensor with the batch as its first dimension"),
        (Indices(), "'gt' is not a floating-point tensor"),
    ],
)
def test_a_model_without_a_point_says_why(model, reason):
    for call in (lambda: cut_points(model, V), lambda: split(model, V, "layer1")):
        with pytest.raises(UserError, match=f"the model has no split point, because {reason}"):
            call()


class TwoStreams(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return {"a": self.a(x).exp(), "b": self.b(x).exp()}


def test_a_model_without_a_point_of_one_tensor_names_wider_ones():
    assert cut_points(TwoStreams(), V) == []
    with pytest.raises(UserError, match=r"no point of a single tensor, and valid points are for example exp\+b"):
        split(TwoStreams(), V, "layer1")
    with pytest.raises(
        UserError, match=r"'a' is not a valid.* no point of a single tensor, and valid points are for example exp\+b"
    ):
        split(TwoStreams(), V, "a")


# ------------------------------------------------------------------ the caller's model is as it was


class ForcedToTrain(Base):
    def forward(self, x):
        self.bn.train()
        return super().forward(x)


class StaysInTraining(Base):
    def train(self, mode=True):
        super().train(mode)
        self.bn.train()
        return self


class FunctionalTraining(Base):
    def forward(self, x):
        y = F.batch_norm(self.a(x), self.bn.running_mean, self.bn.running_var, training=True, momentum=0.5)
        y = F.instance_norm(y[:, :, None].expand(-1, -1, 3), self.bn.running_mean, self.bn.running_var)
        return self.c(y.mean(2).relu())


class Counts(Base):
    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.history.append(x)
        self.cache["last"] = x
        return super().forward(x)


class ReplacesBuffer(Base):
    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


class DrawsForNothing(Base):
    def forward(self, x):
        torch.rand(3), random.random(), np.random.rand()
        return super().forward(x)


class Hooked(Base):
    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(self.keep)
        self(torch.rand(2, 4))  # keeps a tensor with a gradient history

    def keep(self, module, inputs, output):
        self.cache["a"] = output


def normed(normalize):
    def make():
        model = Base()
        normalize(model.a)
        return model

    return make


class CountsInOutput(Base):
    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class WritesWeights(Base):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.mul_(0.9)
        return super().forward(x)


class Noise(Base):
    def forward(self, x):
        y = self.a(x)
        return self.c(y + torch.randn_like(y))


class RareDropout(Base):
    def forward(self, x):
        return self.c(F.dropout(self.a(x).relu(), 1e-4, training=True))


class NumPyNoise(Base):
    def forward(self, x):
        return super().forward(x) + float(np.random.rand())


class PythonBranch(Base):
    def forward(self, x):
        return self.c(self.a(x).relu() if random.random() < 0.5 else self.a(x))


class OwnGenerator(Base):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return super().forward(x) + torch.rand(2, generator=self.generator)


KEPT = [
    *(ForcedToTrain, StaysInTraining, FunctionalTraining, Counts, ReplacesBuffer, DrawsForNothing, Hooked),
    normed(nn.utils.spectral_norm),
    normed(nn.utils.weight_norm),
    normed(nn.utils.parametrizations.spectral_norm),
]
REFUSED = {
    **dict.fromkeys([CountsInOutput, WritesWeights, OwnGenerator], "gives another output when it is called again"),
    **dict.fromkeys([Noise, RareDropout, NumPyNoise, PythonBranch], "draws random numbers in eval mode"),
}


def snapshot(model):
    tensors = {
        name: (id(t), t.data_ptr(), t._version, t.requires_grad, t.grad, t.detach().clone())
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    attributes = {
        name: {k: (v, len(v)) if isinstance(v, list | dict) else v for k, v in vars(m).items()}
        for name, m in model.named_modules()
    }
    attributes = {
        name: {k: str(v) if isinstance(v, str | int) else (id(v[0]), v[1]) if isinstance(v, tuple) else id(v)}
        for name, values in attributes.items()
        for k, v in values.items()
    }
    own = model.generator.get_state() if hasattr(model, "generator") else torch.zeros(0)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), own.clone()
    return tensors, attributes, generators


def assert_as_before(before, after):
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    for name, (*identity, value) in before[0].items():
        assert after[0][name][:-1] == tuple(identity), name
        assert torch.equal(after[0][name][-1], value), name
    assert torch.equal(before[2][0], after[2][0]) and before[2][1] == after[2][1]
    assert (before[2][2] == after[2][2]).all() and torch.equal(before[2][3], after[2][3])


@pytest.mark.parametrize("make", [*KEPT, *REFUSED])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_and_the_generators_are_as_they_were(make, training):
    torch.manual_seed(0)
    model = make().train(training)
    model.c.eval()
    model.c.bias.requires_grad_(False)
    before = snapshot(model)
    if make in REFUSED:
        with pytest.raises(UserError, match=REFUSED[make]):
            trace(model, V)
        assert_as_before(before, snapshot(model))
        return
    traced = trace(model, V)
    halves = [traced.split(p) for p in traced.cut_points()]
    assert len(halves) >= 3
    assert_as_before(before, snapshot(model))
    for f1, f2 in halves:
        with torch.no_grad():
            y = f2(f1(V))
        assert_as_before(before, snapshot(model))  # nor do the halves write into its buffers
        parameters = {p.data_ptr(): p for p in model.parameters()}
        assert all(parameters.get(p.data_ptr()) is p for f in (f1, f2) for p in f.parameters())
    with torch.no_grad():
        assert torch.equal(y, model.eval()(V))


def test_the_same_weights_in_a_batch_of_one_are_refused_where_batch_norm_would_refuse():
    f1, f2 = split(ForcedToTrain(), V, "relu")
    with pytest.raises(UserError, match="batches of at least 2, not of 1"):
        f1(V[:1])
    assert f2(f1(V)).shape == (4, 2)
