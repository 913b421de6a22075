from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw

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


def test_a_line_is_made_smaller_before_it_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float]] = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, **more: (written.append((text, more["font"].size)), write(self, at, text, **more))[1],
    )
    titles = ["window", "window, 23.2 dB, 0.741, +316 ms", "a very long title that cannot fit into its panel at all"]
    panels([Panel(None, title) for title in titles], side=192)
    (short, large), (middle, less), (long, least) = [w for w in written if w[0] != "nothing yet"]
    assert (short, middle) == (titles[0], titles[1]) and large > less >= least
    assert long.endswith("…") and titles[2].startswith(long[:-1])


def test_spread() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 3) == [0, 50, 99]
    assert spread(5, 1) == [2]


def test_a_video_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"could not be encoded \(.*Invalid argument\)"):
        write_video(tmp_path / "x.mp4", iter([np.zeros((64, 64, 3), np.uint8)] * 50), -1)
    monkeypatch.setattr("splitsight.pictures._encoder", lambda *_: ["sh", "-c", "kill -9 $$"])
    with pytest.raises(UserError, match=r"could not be encoded \(signal 9\)"):
        write_video(tmp_path / "x.mp4", iter([np.zeros((64, 64, 3), np.uint8)] * 50), 2)
    monkeypatch.undo()

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((64, 64, 3), np.uint8)
        raise KeyError("a frame")

    with pytest.raises(KeyError):
        write_video(tmp_path / "x.mp4", broken(), 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "file" / "x.mp4", [np.zeros((64, 64, 3), np.uint8)], 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
