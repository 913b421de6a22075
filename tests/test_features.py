"""Layouts: channels, grids, scales, and the ways to look at them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitsight.features import FeatureSpec


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "grid", "scales"),
    [
        ((64, 16, 16), "map", 64, (16, 16), 64),
        ((56, 56, 96), "map", 96, (56, 56), 96),  # channels last, as in Swin
        ((16, 8, 24), "map", 16, (8, 24), 16),  # an image that is not square
        ((2048, 7, 7), "map", 2048, (7, 7), 2048),
        ((2048, 1, 1), "map", 2048, (1, 1), 1),
        ((197, 768), "tokens", 768, (14, 14), 768),  # with a class token
        ((49, 96), "tokens", 96, (7, 7), 96),
        ((11, 8), "tokens", 8, None, 8),
        ((512,), "vector", 512, None, 1),
        ((3, 4, 5, 6), "vector", 360, None, 1),
    ],
)
def test_what_a_shape_means(shape, layout, channels, grid, scales):
    spec = FeatureSpec("z0", shape)
    assert (spec.layout, spec.channels, spec.grid) == (layout, channels, grid)
    assert spec.positions * spec.channels == spec.numel and spec.bytes == 4 * spec.numel
    assert (1 if spec.scale_axis is None else shape[spec.scale_axis]) == scales


def test_a_class_token_stands_beside_the_square():
    assert FeatureSpec("z", (197, 8)).class_token and not FeatureSpec("z", (196, 8)).class_token
    z = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
    assert FeatureSpec("z", (5, 2)).as_map(z)[0, 0].tolist() == [[1, 2], [3, 4]]


def test_a_layout_may_be_said_and_must_be_possible():
    assert FeatureSpec("z", (49, 96), "vector").channels == 49 * 96
    for shape, layout in (((4, 4), "map"), ((4, 4, 4), "tokens"), ((4,), "cube")):
        with pytest.raises(ValueError, match=layout):
            FeatureSpec("z", shape, layout)


@given(st.lists(st.integers(1, 6), max_size=4), st.integers(1, 3))
def test_looking_at_a_tensor_loses_nothing(shape, batch):
    spec = FeatureSpec("z", tuple(shape))
    z = torch.randn(batch, *shape)
    assert torch.equal(spec.from_channels_last(spec.channels_last(z)), z)
    rows = spec.rows(z)
    assert rows.shape == (batch * spec.positions, spec.channels)
    assert torch.equal(rows.flatten().sort().values, z.flatten().sort().values)
    scaled = z * spec.per_channel(torch.arange(1.0, spec.channels + 1))
    torch.testing.assert_close(spec.rows(scaled), rows * torch.arange(1.0, spec.channels + 1))


@pytest.mark.parametrize("shape", [(8, 4, 4), (4, 4, 8), (17, 8), (16, 8), (8,)])
def test_as_a_map(shape):
    spec = FeatureSpec("z", shape)
    found = spec.as_map(torch.randn(2, *shape))
    assert found.shape == (2, spec.channels, *(spec.grid or (1, 1)))
