from pathlib import Path

import numpy as np
import pytest

from splitsight.errors import UserError
from splitsight.pictures import Panel, grid, panels, spread, write_video


def test_panels_and_grid_have_even_sides() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    row = [Panel(image, "a very long title that cannot fit into its panel at all", "detail"), Panel(None, "none")]
    for side in (64, 99, 256):
        picture = panels(row, "header", side=side)
        assert picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0
    assert grid([row] * 3, "header").shape[1] > grid([row] * 2, "header").shape[1]
    with pytest.raises(ValueError, match="at least one"):
        grid([], "header")


def test_spread() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 3) == [0, 50, 99]
    assert spread(5, 1) == [2]


def test_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be encoded"):
        write_video(tmp_path / "no" / "x.mp4", iter([np.zeros((64, 64, 3), np.uint8)] * 50), 2)
