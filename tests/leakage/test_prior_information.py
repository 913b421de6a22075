"""Limits of the prior's Fisher information, where it is known in closed form or by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitsight.leakage import prior_information, smoothed

N, SIZE = 400, 16


def white(deviation, count=N):
    return 0.5 + deviation * torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def rings():
    f = torch.fft.fftfreq(SIZE, 1 / SIZE)
    return torch.hypot(f[:, None], f).round()


def power():
    """A falling spectrum, the same in all directions."""
    return 0.5 / (1 + rings()) ** 2


def coloured(count=N):
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return torch.fft.ifft2(torch.fft.fft2(noise) * power().sqrt()).real


def test_white_gaussian():
    found = prior_information(white(0.2), 0.1)
    assert found.low == pytest.approx(1 / (0.2**2 + 0.1**2), rel=0.02)
    assert found.high == pytest.approx(100)


def test_gaussian_with_a_spectrum():
    found = prior_information(coloured(), 0.1)
    assert found.low == pytest.approx(float((1 / (power() + 0.01)).mean()), rel=0.03)


def test_correlated_channels_count():
    grey = white(0.2)[:, :1].expand(-1, 3, -1, -1)
    expected = (2 / 0.1**2 + 1 / (3 * 0.2**2 + 0.1**2)) / 3
    assert prior_information(grey, 0.1).low == pytest.approx(expected, rel=0.02)


def test_the_best_denoiser_says_the_same_for_a_gaussian():
    def wiener(y):
        p = power()
        return torch.fft.ifft2(torch.fft.fft2(y) * (p / (p + 0.01))).real

    expected = float((1 / (power() + 0.01)).mean())
    mse = float((wiener(smoothed(coloured(), 0.1)) - coloured()).square().mean())
    assert (1 - mse / 0.01) / 0.01 == pytest.approx(expected, rel=0.02)
    assert prior_information(coloured(), 0.1, wiener).low == pytest.approx(expected, rel=0.03)


def two_values(count=200):
    """0 or 1 for each number: all but Gaussian."""
    return torch.randint(0, 2, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()


def information_of_two_values(tau):
    y = np.linspace(-8 * tau, 1 + 8 * tau, 200_001)
    bells = [0.5 * np.exp(-((y - c) ** 2) / (2 * tau**2)) / (tau * np.sqrt(2 * np.pi)) for c in (0, 1)]
    p = sum(bells)
    slope = sum(-(y - c) / tau**2 * bell for c, bell in zip((0, 1), bells, strict=True))
    return float(np.trapezoid(slope**2 / p, y))


@pytest.mark.parametrize("tau", [0.1, 0.4, 1.0])
def test_the_truth_lies_between_the_limits_where_the_prior_is_not_gaussian(tau):
    def posterior_mean(y):
        return torch.sigmoid((y - 0.5) / tau**2)

    truth, gaussian = information_of_two_values(tau), prior_information(two_values(), tau)
    assert gaussian.low < truth < gaussian.high
    sharper = prior_information(two_values(), tau, posterior_mean)
    assert gaussian.low < sharper.low
    assert sharper.low == pytest.approx(truth, rel=0.02)
    assert prior_information(two_values(), tau, torch.zeros_like) == gaussian  # a bad denoiser changes nothing


def test_few_images_are_enough():
    found = [prior_information(coloured(count), 0.1).low for count in (8, 400)]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_the_noise_is_of_the_seed():
    images = white(0.2, 3)
    assert torch.equal(smoothed(images, 0.1, 5), smoothed(images, 0.1, 5))
    assert torch.equal(smoothed(images, 0.1, 5)[1:], smoothed(images[1:], 0.1, 6))
    assert float((smoothed(white(0.2), 0.1) - white(0.2)).std()) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(("count", "tau"), [(1, 0.1), (2, 0.0), (2, -1.0), (2, float("nan")), (2, float("inf"))])
def test_arguments_out_of_range(count, tau):
    with pytest.raises(ValueError, match="at least 2 images and a positive number"):
        prior_information(white(0.2, count), tau)
