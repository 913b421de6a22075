"""Figures of a prior: against closed forms, and the command as a user runs it."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from typer.testing import CliRunner

from scenarios.cli import app
from scenarios.prior_quality import LEVELS, Distances, bench_prior, denoising_errors
from splitsight.errors import UserError


class Means:
    """An evaluator whose features are the means of the colours."""

    name = "means"

    def features(self, images):
        return images.mean((2, 3))


@pytest.fixture
def means(monkeypatch):
    monkeypatch.setattr("scenarios.prior_quality.evaluators.load", lambda name: Means())


def test_the_frechet_distance_is_that_of_two_normal_laws():
    x, y = torch.rand(40, 3, 2, 2), torch.rand(50, 3, 2, 2) * 0.5
    found = Distances(Means(), x).of(y)
    a, b = (images.mean((2, 3)).double().numpy() for images in (x, y))
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert found["frechet"] == pytest.approx(expected, rel=1e-4)
    near = Distances(Means(), x).of(torch.rand(50, 3, 2, 2))
    assert near["kernel"] < found["kernel"] and near["frechet"] < found["frechet"]
    assert Distances(Means(), x).of(y) == found


def test_a_denoiser_that_says_nothing_leaves_the_noise(flow_prior, monkeypatch):
    monkeypatch.setattr(flow_prior, "_predict", lambda x, timestep, text: torch.zeros_like(x))
    images = torch.rand(6, 3, 16, 16)
    found = denoising_errors(flow_prior, images, [""] * 6)
    u = flow_prior.encode(images)
    eps = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    assert [*found] == [*LEVELS]
    for t, error in found.items():
        # (1 − t) u + t ε, and u was meant
        assert error == pytest.approx(float(t**2 * (eps - u).square().mean()), rel=1e-4)


def test_the_command_measures_priors_side_by_side(flow_prior, means, pictures, tmp_path):
    flow_prior.save(tmp_path / "first")
    flow_prior.save(tmp_path / "second")
    words = ["bench", "prior", str(tmp_path / "first"), str(tmp_path / "second"), "--images", str(pictures)]
    done = CliRunner().invoke(
        app, [*words, "--out", str(tmp_path / "out"), "--steps", "1,2", "--count", "6", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "summary.json").read_text())
    first, second = result["priors"]
    assert first["samples"].keys() == {"1", "2"} and first["samples"] == second["samples"]
    assert first["denoising"] == second["denoising"] and first["digest"] == second["digest"]
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {
        f"samples-{name}-{steps}.png" for name in ("first", "second") for steps in (1, 2)
    }


def test_too_few_images_are_refused(flow_prior, means, pictures, tmp_path):
    flow_prior.save(tmp_path / "prior")
    with pytest.raises(UserError, match="where 2000 are needed: lower --count"):
        bench_prior(priors=[str(tmp_path / "prior")], images=pictures, out=tmp_path, count=1000)
