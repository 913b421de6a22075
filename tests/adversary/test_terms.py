import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from torch import nn

from adversary.whitebox.terms import (
    BatchNormStatistics,
    FeatureMatch,
    Negentropy,
    Proximal,
    TemporalSmoothing,
    TotalVariation,
    agreement,
)
from adversary.whitebox.variables import normalised
from splitsight.errors import UserError
from splitsight.features import FeatureSpec


class _Head(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) ** 2, x[:, :, ::2, ::2].tanh()


def _normed(dtype=torch.float32):
    """A small F1 with two batch norms whose running statistics are not the default ones."""
    torch.manual_seed(3)
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    for norm in (head[1], head[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)

    class _Tuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.passes = head, 0

        def forward(self, x):
            self.passes += 1
            return (self.body(x),)

    return _Tuple().to(dtype).eval().requires_grad_(False)


def test_total_variation_equals_equation_7_on_a_ramp():
    x = torch.arange(5.0).repeat(4, 1)[None, None]  # M = 4, N = 5, one step of 1 between columns
    assert TotalVariation()(x, x).item() == pytest.approx(4 * 4 / (4 * 5))


@given(st.integers(2, 9), st.integers(2, 9), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_total_variation_of_a_plane(rows, columns, down, right):
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    x = (down * i + right * j).expand(1, 3, -1, -1)
    expected = 3 * (down**2 * (rows - 1) * columns + right**2 * rows * (columns - 1)) / (rows * columns)
    assert TotalVariation()(x, x).item() == pytest.approx(expected)


@given(st.floats(1, 2), st.floats(0.01, 1e4), st.floats(-1e3, 1e3), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_negentropy_equals_its_closed_form_on_a_two_point_noise(alpha, scale, shift, pairs):
    # half −1 and half +1: normalised by the sample deviation to ± √((n − 1)/n), whatever its scale and mean
    v = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(pairs) * scale + shift
    n = 2 * pairs
    y = alpha * np.sqrt((n - 1) / n)
    expected = -np.log(np.cosh(y) ** 2) / alpha**2
    found = Negentropy(alpha=alpha)(v.view(1, 1, 1, n), torch.empty(0))
    assert found.shape == (1,) and found.item() == pytest.approx(expected, rel=1e-6)


def test_negentropy_of_normal_noise_is_the_expectation_under_a_normal_distribution():
    from scipy.integrate import quad
    from scipy.stats import norm

    v = torch.randn(2, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    for alpha in (1.0, 1.5, 2.0):
        expected = -quad(lambda y, a=alpha: norm.pdf(y) * np.log(np.cosh(a * y) ** 2) / a**2, -12, 12)[0]
        torch.testing.assert_close(Negentropy(alpha=alpha)(v, v), torch.full((2,), expected), atol=5e-3, rtol=0)


def test_negentropy_and_its_gradient_stay_finite_for_an_outlier_that_cosh_overflows_at():
    v = torch.zeros(1, 1, 1, 40_000)
    v[..., 0] = 1.0  # normalised: 200, and cosh(200) is infinite in float32
    v = (v + 1e-4 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = Negentropy(alpha=2.0)(v, v)
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("alpha", [0.99, 2.01, float("nan")])
def test_negentropy_refuses_an_alpha_outside_equation_9(alpha):
    with pytest.raises(UserError, match="takes 1 to 2"):
        Negentropy(alpha=alpha)


def test_batch_norm_statistics_against_a_loop_over_layers():
    head = _normed()
    x = torch.rand(2, 3, 6, 6)
    expected = []
    for image in x:
        h, layers = image[None], []
        for module in head.body:
            if isinstance(module, nn.BatchNorm2d):
                mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), unbiased=False)
                s2 = module.running_var + module.eps
                layers.append(((mean - module.running_mean) ** 2 / s2 + (variance / s2 - 1) ** 2).mean())
            h = module(h)
        expected.append(torch.stack(layers).mean())
    torch.testing.assert_close(BatchNormStatistics(head)(x, x), torch.stack(expected))


def test_batch_norm_statistics_use_the_pass_that_the_feature_loss_made_and_leave_no_hook():
    head = _normed()
    x = torch.rand(1, 3, 6, 6)
    statistics = BatchNormStatistics(head)
    match = FeatureMatch(statistics.head, head(x))
    before = head.passes
    alone = BatchNormStatistics(head)(x, x)
    assert head.passes == before + 1
    match(x, x)
    torch.testing.assert_close(statistics(x, x), alone)
    assert head.passes == before + 2
    assert not any(m._forward_pre_hooks for m in head.modules())
    with pytest.raises(UserError, match="no batch norm"):
        BatchNormStatistics(_Head())


def test_total_variation_is_per_frame():
    flat, noisy = torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 3, 8, 8)
    loss = TotalVariation()(torch.cat([flat, noisy]), torch.cat([flat, noisy]))
    assert loss[0] == 0 and loss[1] > 0


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_temporal_smoothing_equals_equation_10(frames, seed):
    v = torch.randn(frames, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = np.sum((v.numpy() - v.numpy().mean(0)) ** 2)
    assert TemporalSmoothing(5.0)(v, v).sum().item() == pytest.approx(expected)


def test_temporal_smoothing_keeps_windows_apart():
    a, b = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    assert TemporalSmoothing(1.0, windows=2)(torch.cat([a, b]), a).sum() == 0


def test_agreement_lifts_the_pull_only_where_features_moved():
    z = torch.ones(4, 16, 8, 8)
    z[3, :, :4] = -2
    weight = agreement([z], [FeatureSpec("z", (16, 8, 8))], 8)
    assert weight.shape == (4, 1, 8, 8)
    assert weight[3, 0, 0].max() < 0.01 and weight[:3].min() > 0.99 and weight[3, 0, -1].min() > 0.99
    u = torch.randn(4, 2, 8, 8)
    pulled = TemporalSmoothing(1.0, weight)
    moved = u.clone()
    moved[3, :, :2] += 10  # a change where the scene changed costs next to nothing
    assert pulled(moved, u).sum() < pulled(u, u).sum() * 1.2


def test_feature_match_sums_all_tensors_and_can_be_relative():
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    head = _Head()
    z = head(y)
    expected = sum(((a - b) ** 2).flatten(1).sum(1) for a, b in zip(head(x), z, strict=True))
    torch.testing.assert_close(FeatureMatch(head, z)(x, x), expected)
    energy = sum((b**2).flatten(1).sum(1) for b in z)
    torch.testing.assert_close(FeatureMatch(head, z, relative=True)(x, x), expected / energy)
    assert FeatureMatch(head, z)(y, y).abs().max() == 0


@pytest.mark.parametrize(
    "name", ["match", "relative", "tv", "smooth", "windows", "weighted", "pull", "negentropy", "statistics"]
)
def test_gradients_against_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    shape = (4, 3, 4, 4)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    term = {
        "match": FeatureMatch(_Head(), _Head()(target)),
        "relative": FeatureMatch(_Head(), _Head()(target), relative=True),
        "windows": TemporalSmoothing(1.0, windows=2),
        "negentropy": Negentropy(alpha=1.5),
        "statistics": BatchNormStatistics(_normed(torch.float64)),
        "tv": TotalVariation(),
        "smooth": TemporalSmoothing(1.0),
        "weighted": TemporalSmoothing(1.0, torch.rand(4, 1, 4, 4, generator=generator, dtype=torch.float64)),
        "pull": Proximal(target, 1.0),
    }[name]

    def value(flat):
        x = torch.from_numpy(flat).view(shape)
        return float(term(x, x).sum())

    def gradient(flat):
        x = torch.from_numpy(flat.copy()).view(shape).requires_grad_()
        return torch.autograd.grad(term(x, x).sum(), x)[0].flatten().numpy()

    start = torch.rand(shape, generator=generator, dtype=torch.float64).flatten().numpy()
    assert check_grad(value, gradient, start) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_noise_has_mean_zero_and_variance_one_per_image(dtype):
    scales = torch.tensor([1.0, 5.0, 0.1], dtype=dtype).view(3, 1, 1, 1)
    n = normalised(torch.randn(3, 8, 16, 16, dtype=dtype) * scales + 3 * scales).flatten(1).double()
    torch.testing.assert_close(n.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(n.var(1), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
