"""Noise on features: estimated from what a rectifier cannot make, removed where frames agree."""

import pytest
import torch
from torch import nn

from adversary.whitebox.noise import deviations, shrunk
from splitsight.features import FeatureSpec


class _Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 64, 3, stride=4, padding=1)

    def forward(self, images):
        raw = self.conv(images - 0.5)
        return torch.relu(raw), raw


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_noise_is_found_where_nothing_can_be_negative_and_only_there(sigma):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    head = _Rectified()
    clean = [z.detach() for z in head(images)]
    assert deviations(clean, head, lambda: images) == [0, 0]
    noisy = [z + sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(2)) for z in clean]
    rectified, other = deviations(noisy, head, lambda: images)
    assert rectified == pytest.approx(sigma, rel=0.2) and other == 0
    assert deviations(noisy, None, lambda: images) == [0, 0]


def test_frames_that_differ_by_noise_alone_become_their_mean():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(1, 128, 8, 8, generator=generator).expand(4, -1, -1, -1).clone()
    truth[3, :, :4] = torch.randn(128, 4, 8, generator=generator)  # half of the last frame moved
    noisy = truth + 0.5 * torch.randn(truth.shape, generator=generator)
    (got,), (left,) = shrunk([noisy], [FeatureSpec("z", (128, 8, 8))], [0.5])
    before, after = ((z - truth).square().mean(1) for z in (noisy, got))
    # a mean of four has a quarter of the variance; what moved is not blurred into what did not
    assert after[:3, 4:].mean() < 0.35 * before[:3, 4:].mean()
    assert after[3, :4].mean() < before[3, :4].mean()
    assert left == pytest.approx(float(after.mean().sqrt()), rel=0.2)


def test_without_noise_nothing_changes_and_a_feature_without_a_grid_counts_as_a_whole():
    z = torch.randn(4, 16, 4, 4, generator=torch.Generator().manual_seed(4))
    spec = FeatureSpec("z", (16, 4, 4))
    assert shrunk([z], [spec], [0.0])[0][0] is z
    (alone,), left = shrunk([z[:1]], [spec], [1.0])
    assert alone.equal(z[:1]) and left == [1.0]
    flat = torch.randn(1, 4096, generator=torch.Generator().manual_seed(5)).expand(3, -1)
    noisy = flat + torch.randn(3, 4096, generator=torch.Generator().manual_seed(6))
    (got,), _ = shrunk([noisy], [FeatureSpec("z", (4096,))], [1.0])
    assert (got - flat).square().mean() < 0.45 * (noisy - flat).square().mean()


def test_noise_that_differs_between_entries_is_taken_entry_by_entry():
    """Channels with more noise make up for it; one number for all, or a tensor that says the same, are the same."""
    spec = FeatureSpec("z", (6, 4, 4))
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(4, 6, 4, 4, generator=generator)
    (one,), (left,) = shrunk([z], [spec], [0.5])
    (same,), (again,) = shrunk([z], [spec], [torch.full((1, 6, 1, 1), 0.5)])
    torch.testing.assert_close(one, same)
    assert torch.as_tensor(again).mean().item() == pytest.approx(left)
    sigma = torch.zeros(1, 6, 4, 4)
    sigma[:, :, 0] = 2.0
    (moved,), _ = shrunk([z], [spec], [sigma])
    torch.testing.assert_close(moved[:, :, 1:], z[:, :, 1:])
    assert not torch.allclose(moved[:, :, 0], z[:, :, 0])
    assert shrunk([z], [spec], [torch.zeros(1, 6, 1, 1)])[0][0] is z
