"""Against closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage import metrics as reference

from splitsight.metrics import (
    PSNR_CAP,
    PSNR_EQ14_CAP,
    image_quality,
    matched,
    mean_interval,
    percentile,
    pixels,
    psnr_eq14,
)


def images(n, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 3, 8, 8, generator=g)
    return torch.nn.functional.interpolate(low, size=(size, size), mode="bilinear")


def test_constant_difference_has_closed_forms():
    x = torch.full((2, 3, 16, 16), 0.5)
    y = x.clone()
    y[0] += 0.1
    y[1] += 25.5 / 255 / 2
    q = image_quality(x, y)
    assert q["psnr"][0].item() == pytest.approx(20.0, abs=1e-4)
    assert q["psnr_eq14"][0].item() == pytest.approx(10 * math.log(255 / 25.5), abs=1e-4)
    assert q["psnr_eq14"][1].item() == pytest.approx(10 * math.log(255 / 12.75), abs=1e-4)
    assert all(v.shape == (2,) and v.dtype == torch.float64 for v in q.values())


def test_against_scikit_image():
    y = images(3)
    x = (y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    q = image_quality(x, y)
    for i in range(3):
        a, b = (t[i].permute(1, 2, 0).numpy().astype(np.float64) for t in (y, x))
        assert q["psnr"][i].item() == pytest.approx(reference.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)
        # scikit-image mirrors borders differently, so it is given them and only the image itself is averaged
        padded = [np.pad(t, ((5, 5), (5, 5), (0, 0)), mode="reflect") for t in (a, b)]
        _, full = reference.structural_similarity(
            *padded,
            channel_axis=2,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert q["ssim"][i].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_equation_14_on_the_255_scale_and_per_image():
    x, y = (
        torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(s))
        for s in (0, 1)
    )
    expected = [10 * math.log(255 / (a.double() - b.double()).abs().mean().item()) for a, b in zip(x, y, strict=True)]
    assert psnr_eq14(x, y).tolist() == pytest.approx(expected, rel=1e-6)
    assert psnr_eq14(x[1:2], y[1:2]).item() == pytest.approx(expected[1], rel=1e-6)


def test_uint8_and_float_agree():
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    y = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    a, b = image_quality(x, y), image_quality(x.float() / 255, y.float() / 255)
    assert all(torch.allclose(a[k], b[k]) for k in a)


def test_identical_images_are_capped_and_one_grey_level_is_below_the_cap():
    x = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    q = image_quality(x, x)
    assert (
        q["psnr"].item() == PSNR_CAP and q["psnr_eq14"].item() == PSNR_EQ14_CAP and q["ssim"].item() == pytest.approx(1)
    )
    y = x.clone()
    y[0, 0, 0, 0] += 1
    q = image_quality(x, y)
    assert q["psnr"].item() < PSNR_CAP and q["psnr_eq14"].item() < PSNR_EQ14_CAP


def test_out_of_range_is_clamped_nan_stays_visible_and_shapes_must_agree():
    y = images(1)
    assert image_quality(y * 0 + 7, y)["psnr"] == image_quality(y * 0 + 1, y)["psnr"]
    x = y.clone()
    x[0, 0, 0, 0] = float("nan")
    assert all(v.isnan().all() for v in image_quality(x, y).values())
    with pytest.raises(ValueError, match="same shape"):
        image_quality(images(2), images(1))
    assert image_quality(y[:0], y[:0])["psnr"].shape == (0,)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60))
def test_interval_against_scipy(values):
    got = mean_interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert got["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert got["high"] - got["mean"] == pytest.approx(half, rel=1e-5, abs=1e-9)
    assert got["mean"] - got["low"] == pytest.approx(half, rel=1e-5, abs=1e-9)


def test_interval_known_quantiles_and_corners():
    assert mean_interval([0, 2])["high"] == pytest.approx(1 + 12.7062047, rel=1e-5)  # t(1) = 12.706, sem = 1
    n = 10001
    values = [(-1) ** i for i in range(n)]
    assert mean_interval(values)["high"] - mean_interval(values)["mean"] == pytest.approx(1.9602 / 100, rel=1e-3)
    assert mean_interval([3.5]) == {"mean": 3.5, "low": 3.5, "high": 3.5}
    assert mean_interval([]) == {"mean": None, "low": None, "high": None} == mean_interval([float("nan")])
    assert mean_interval([1, float("nan"), 3, float("inf")]) == mean_interval([1, 3])
    assert percentile([3, 1, 2], 50) == 2 and percentile([], 50) is None


def test_an_interval_ends_where_the_values_end():
    whole, cut = mean_interval([0.2, 0.9]), mean_interval([0.2, 0.9], (-1, 1))
    assert whole["low"] < -1 and whole["high"] > 1
    assert cut == {"mean": whole["mean"], "low": -1, "high": 1}
    assert mean_interval([0.5, 0.51], (-1, 1)) == mean_interval([0.5, 0.51])


def test_retrieval_finds_noisy_copies():
    gallery = images(100, seed=3)
    noisy = gallery[10:20] + 0.05 * torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    match = matched(noisy, gallery, list(range(10, 20)))
    assert match.top1 == 1.0 and match.gallery == 100 and match.ranks.tolist() == [1] * 10


def test_retrieval_ranks_by_definition():
    gallery = torch.eye(4).view(4, 1, 2, 2)
    query = torch.tensor([[0.5, 1.0, 0.2, 0.1]]).view(1, 1, 2, 2)
    ranks = [int(matched(query, gallery, [i], lambda x: (x,)).ranks) for i in range(4)]
    assert ranks == [2, 1, 3, 4]
    assert matched(query, gallery, [0]).top(4) == 1.0


def test_retrieval_counts_ties_and_nan_against_the_reconstruction():
    gallery = torch.cat([images(1), images(1), images(1, seed=5)])
    assert matched(gallery[:1], gallery, [0]).ranks.item() == 2
    nan = torch.full_like(gallery[:1], float("nan"))
    match = matched(nan, gallery, [0])
    assert match.ranks.item() == 3 and match.top1 == 0
    noise = matched(torch.rand(200, 3, 32, 32), images(50, seed=9), [i % 50 for i in range(200)], pixels)
    assert noise.top1 < 0.1
    with pytest.raises(ValueError, match="outside the gallery"):
        matched(gallery[:1], gallery, [3])
    with pytest.raises(ValueError, match="as many indices"):
        matched(gallery[:1], gallery, [0, 1])
