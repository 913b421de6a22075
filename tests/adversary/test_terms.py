import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from torch import nn

from adversary.whitebox.terms import FeatureMatch, Pull, TemporalSmoothing, TotalVariation, agreement
from adversary.whitebox.variables import normalised


class _Head(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) ** 2, x[:, :, ::2, ::2].tanh()


def test_total_variation_equals_equation_7_on_a_ramp():
    x = torch.arange(5.0).repeat(4, 1)[None, None]  # M = 4, N = 5, one step of 1 between columns
    assert TotalVariation()(x, x).item() == pytest.approx(4 * 4 / (4 * 5))


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
    weight = agreement([z], 8)
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


@pytest.mark.parametrize("name", ["match", "tv", "smooth", "weighted", "pull"])
def test_gradients_against_finite_differences(name):
    generator = torch.Generator().manual_seed(1)
    shape = (3, 3, 4, 4)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    term = {
        "match": FeatureMatch(_Head(), _Head()(target)),
        "tv": TotalVariation(),
        "smooth": TemporalSmoothing(1.0),
        "weighted": TemporalSmoothing(1.0, torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)),
        "pull": Pull(target, 1.0),
    }[name]

    def value(flat):
        x = torch.from_numpy(flat).view(shape)
        return float(term(x, x).sum())

    def gradient(flat):
        x = torch.from_numpy(flat.copy()).view(shape).requires_grad_()
        return torch.autograd.grad(term(x, x).sum(), x)[0].flatten().numpy()

    start = torch.rand(shape, generator=generator, dtype=torch.float64).flatten().numpy()
    assert check_grad(value, gradient, start) < 1e-4


def test_normalised_noise_has_mean_zero_and_deviation_one_per_image():
    v = torch.randn(3, 8, 4, 4) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 3
    n = normalised(v).flatten(1)
    torch.testing.assert_close(n.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(n.std(1), torch.ones(3))
