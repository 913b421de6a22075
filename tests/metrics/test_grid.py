"""Lines at the stride's frequencies in the spectrum of an error."""

from __future__ import annotations

import pytest
import torch

from splitsight.features import FeatureSpec, stride_of
from splitsight.metrics import Batch, measure, metrics_named
from splitsight.metrics.grid import can_be_measured, grid_lines

SIZE = 64


def _noise(count: int) -> torch.Tensor:
    return 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _grid(stride: int) -> torch.Tensor:
    """A line every ``stride`` pixels, across and down."""
    lines = torch.zeros(1, 3, SIZE, SIZE)
    lines[..., ::stride, :] = 0.1
    lines[..., ::stride] = 0.1
    return lines


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_noise_has_no_grid_and_lines_have_one(stride: int) -> None:
    originals = torch.full((200, 3, SIZE, SIZE), 0.5)
    plain = grid_lines(originals + _noise(200), originals, stride)
    assert abs(plain.mean()) < 4 * plain.std() / 200**0.5 + 0.2  # the mean of logarithms lies a little below 0
    lined = grid_lines(originals + _noise(200) + _grid(stride), originals, stride)
    assert (lined - plain).min() > 1.5


def test_lines_of_another_stride_do_not_count() -> None:
    originals = torch.full((1, 3, SIZE, SIZE), 0.5)
    error = _noise(1)
    # every fourth pixel: lines at the multiples of 16, of which those of stride 8 are every second one
    assert grid_lines(originals + error + _grid(4), originals, 4) > 10
    # moved by a constant or brighter to one side: no line
    ramp = originals + torch.linspace(0, 0.3, SIZE)
    assert grid_lines(ramp + error, originals, 8).abs() < 1.5


def test_what_cannot_be_measured() -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    assert grid_lines(images, images, 8).isnan().all()
    assert [stride for stride in (1, 2, 4, 8, 16, 32, 12) if can_be_measured((SIZE, SIZE), stride)] == [2, 4, 8, 16]
    with pytest.raises(ValueError, match="lines 32 pixels apart cannot be told"):
        grid_lines(images, images, 32)
    with pytest.raises(ValueError, match="must be one shape"):
        grid_lines(images, images[..., :32], 8)


def test_the_metric_asks_for_the_stride_of_the_features() -> None:
    wanted = [metric for metric in metrics_named(["grid_lines"]) if metric.name == "grid_lines"]
    images, originals = torch.rand(2, 3, SIZE, SIZE), torch.rand(2, 3, SIZE, SIZE)
    assert measure(wanted, Batch(reconstruction=images, original=originals)) == {}
    deep = measure(wanted, Batch(reconstruction=images, original=originals, stride=32))
    assert deep == {"grid_lines": [None, None]}
    found = measure(wanted, Batch(reconstruction=images, original=originals, stride=8))
    assert found["grid_lines"] == pytest.approx(grid_lines(images, originals, 8).tolist())


@pytest.mark.parametrize(
    ("shapes", "stride"),
    [
        ([(128, 8, 8)], 8),
        ([(64, 16, 16), (128, 8, 8)], 8),
        ([(65, 96)], 8),
        ([(200,)], None),
        ([(16, 7, 7)], None),
        ([(8, 4, 8)], None),
    ],
)
def test_stride(shapes: list[tuple[int, ...]], stride: int | None) -> None:
    assert stride_of([FeatureSpec(f"t{i}", shape) for i, shape in enumerate(shapes)], SIZE) == stride
