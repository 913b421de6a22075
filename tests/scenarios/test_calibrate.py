"""``splitsight calibrate``: a defence that knows what it has to, printed as it is used."""

from __future__ import annotations

import pytest

from scenarios.calibrate import calibrate
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tiny_target):
    monkeypatch.setattr("scenarios.calibrate.targets.load", lambda name, weights: tiny_target)


@pytest.mark.parametrize("given", ["dfil:target=10", "clip:norm=1+fsinfo:target=-1", "pac:budget=20"])
def test_what_is_printed_can_be_used(given, tiny_target, pictures, tmp_path):
    chain = calibrate(given, pictures, split="S1", limit=4, out=tmp_path / "out.safetensors")
    assert str(chain) != given
    pipeline = EdgePipeline(tiny_target, "S1", str(chain))
    assert pipeline.description().defense == str(chain)
    assert all(
        float(abs(d).max() if hasattr(d, "max") else d) > 0 for d in pipeline.deviations(pipeline.cut.head(_images()))
    )


def _images():
    import torch

    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_file_has_a_place_of_its_own(tiny_target, pictures):
    chain = calibrate("pac:budget=20", pictures, split="S1")
    other = calibrate("pac:budget=20", pictures, split="S2")
    assert str(chain) != str(other)
    with pytest.raises(UserError, match="trained for split point S1, not S2"):
        EdgePipeline(tiny_target, "S2", str(chain))


@pytest.mark.parametrize(
    ("given", "limit", "words"),
    [
        ("clip:norm=20", 2, "has nothing to measure: use it as it is"),
        ("pac:budget=20", 1, "at least two images"),
        ("pac:budget=0", 2, "budget: input should be greater than 0"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(pictures, given, limit, words):
    with pytest.raises(UserError, match=words) as error:
        calibrate(given, pictures, split="S1", limit=limit)
    assert "\n" not in str(error.value)
