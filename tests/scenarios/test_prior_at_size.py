"""A prior on larger images: seams against constructed errors, the command as a user runs it."""

import json
import math

import cv2
import pytest
import torch
from typer.testing import CliRunner

from adversary.priors.pixels import MEASURED
from scenarios.cli import app
from scenarios.prior_at_size import WAYS, seams
from scenarios.prior_quality import LEVELS


def _run(*words):
    return CliRunner().invoke(app, ["bench", "denoising", *map(str, words), "--device", "cpu"])


def test_white_errors_have_no_seams_and_tiles_of_their_own_brightness_do():
    white = torch.randn(4, 3, 60, 80, generator=torch.Generator().manual_seed(0))
    assert abs(seams(white, 20)) < 0.2
    # each tile is off by a number of its own of the same variance: a step is then twice that, and 2 elsewhere
    tiles = torch.randn(4, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    shifted = white + tiles.repeat_interleave(20, -2).repeat_interleave(20, -1)
    assert seams(shifted, 20) == pytest.approx(10 * math.log10(2), abs=0.8)
    with pytest.raises(ValueError, match="no border"):
        seams(white, 60)


def test_the_command_compares_ways_on_the_same_noise(flow_prior, pictures, tmp_path):
    flow_prior.save(tmp_path / "prior")
    size = 2 * flow_prior.image_size
    words = (tmp_path / "prior", "--images", pictures, "--out", tmp_path / "out", "--size", size, "--count", 2)
    done = _run(*words)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [*result["latents"]] == [f"{t:g}" for t in LEVELS] and [*result["pixels"]] == [f"{s:g}" for s in MEASURED]
    for ways in result["latents"].values():
        assert [*ways] == ["shrunk", *WAYS]
    assert cv2.imread(str(tmp_path / "out" / f"denoising-{size}.png")) is not None
    assert _run(*words).exit_code == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == result


def test_a_silent_denoiser_is_the_same_in_every_way(flow_prior, pictures, tmp_path, monkeypatch):
    flow_prior.pixel_denoiser = None
    monkeypatch.setattr("scenarios.prior_at_size.load_prior", lambda name: flow_prior)
    monkeypatch.setattr(flow_prior, "_predicted", lambda x, timestep, text: torch.zeros_like(x))
    words = ("tiny", "--images", pictures, "--out", tmp_path / "out", "--size", 32, "--count", 1, "--json")
    result = json.loads(_run(*words).stdout)
    assert result["pixels"] is None
    for ways in result["latents"].values():
        first, *others = (ways[way] for way in WAYS)
        assert all(other == pytest.approx(first) for other in others)


@pytest.mark.parametrize(
    ("size", "count", "said"), [(16, 1, "larger multiple"), (33, 1, "larger multiple"), (32, 13, "lower --count")]
)
def test_what_cannot_be_measured_is_said(flow_prior, pictures, tmp_path, size, count, said):
    flow_prior.save(tmp_path / "prior")
    words = (tmp_path / "prior", "--images", pictures, "--out", tmp_path / "out", "--size", size, "--count", count)
    done = _run(*words)
    assert done.exit_code != 0 and said in " ".join(done.output.split())
