"""One declaration a metric: what is measured, how it is summarised and shown."""

from __future__ import annotations

import math

import pytest
import torch

from splitsight.errors import UserError
from splitsight.metrics import (
    METRICS,
    PSNR_CAP,
    Batch,
    Metric,
    image_metrics,
    image_quality,
    mean_interval,
    measure,
    metrics,
    metrics_named,
    proportion_interval,
)

NAMES = ["psnr", "psnr_eq14", "ssim", "grid_lines", "lpips", "recognised", "matched_top1", "matched_top5", "own_answer"]
ASKED = NAMES[5:8]


class Evaluator:
    """Features are mean colours; class 0 is dark, 1 is bright."""

    name = "colours"

    def features(self, images):
        return images.mean((2, 3))

    def recognised(self, reconstruction, labels, originals=None):
        return (reconstruction.mean((1, 2, 3)) > 0.5).long() == labels


@pytest.fixture
def batch():
    level = torch.tensor([0.2, 0.5, 1.9]).view(3, 1, 1, 1)
    original = (torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * level).clamp(0, 1)
    return Batch(reconstruction=(original + 0.05).clamp(0, 1), original=original)


@pytest.fixture
def brightness(monkeypatch):
    """A metric of another package."""
    metric = Metric(name="brightness", title="brightness", fn=lambda b: b.reconstruction.mean((1, 2, 3)), unit="lm")
    METRICS.names()
    monkeypatch.setitem(METRICS._items, "brightness", metric)
    return metric


def test_those_that_ship_in_the_order_of_their_columns():
    assert [m.name for m in metrics(["mbconv"])] == NAMES
    assert [m.name for m in metrics()] == [*NAMES[:5], "own_answer"]
    assert [m.heading for m in metrics(["x"])] == [
        *("PSNR, dB", "PSNR eq. 14", "SSIM", "grid lines, dB", "LPIPS"),
        *("recognised", "found first", "found in five", "own answer kept"),
    ]
    assert {m.name for m in metrics(["x"]) if m.better == "lower"} == {"grid_lines", "lpips"}


def test_several_evaluators_the_first_without_its_name():
    found = metrics(["a", "b"])
    assert [m.name for m in found if m.evaluator == "a"] == ASKED
    assert [(m.name, m.column, m.title) for m in found if m.evaluator == "b"] == [
        ("recognised:b", "recognised:b", "recognised (b)"),
        ("matched_top1:b", "match_rank:b", "found first (b)"),
        ("matched_top5:b", "match_rank:b", "found in five (b)"),
    ]
    assert [m.name for m in metrics_named(["psnr", "recognised:b"])] == [m.name for m in found]


def test_measuring(batch):
    found = measure(metrics(["colours"]), batch)
    assert set(found) >= {"psnr", "psnr_eq14", "ssim"} and not {"recognised", "match_rank"} & set(found)
    for name, values in image_quality(batch.reconstruction, batch.original).items():
        assert found[name] == values.tolist()
    whole = Batch(
        reconstruction=batch.reconstruction,
        original=batch.original,
        label=torch.tensor([0, 0, 1]),
        evaluator=Evaluator(),
        gallery=lambda i: None if i == 2 else Evaluator().features(batch.original.roll(-i, 0)),
    )
    found = measure(metrics(["colours"]), whole)
    assert found["recognised"] == [True, True, True] and found["match_rank"] == [1, 1, None]


def test_what_is_not_finite_is_unknown_and_every_image_has_a_value(batch):
    broken = Batch(
        reconstruction=batch.reconstruction.index_fill(0, torch.tensor([1]), math.nan), original=batch.original
    )
    values = measure(image_metrics(), broken)["psnr"]
    assert values[1] is None and None not in (values[0], values[2])
    absent = Metric(name="x", title="x", fn=lambda b: None)
    assert measure([absent], batch) == {"x": [None] * 3}
    short = Metric(name="x", title="x", fn=lambda b: [1.0])
    with pytest.raises(ValueError, match="'x' gave 1 values for 3 images"):
        measure([short], batch)


def test_intervals_by_kind_end_at_the_bounds():
    psnr, ssim, recognised, first = (METRICS.get(n) for n in ("psnr", "ssim", "recognised", "matched_top1"))
    assert psnr.interval([10, None, 12, 13]) == mean_interval([10, 12, 13])
    assert ssim.interval([0.2, 0.9])["high"] == 1 and ssim.interval([0.2, 0.9])["low"] == -1
    assert psnr.interval([1.5, 4.5]) == mean_interval([1.5, 4.5], (0, PSNR_CAP))
    assert recognised.interval([1.0, 0.0, 1.0, None]) == proportion_interval([True, False, True])
    assert recognised.interval([0.5, 1.0]) == mean_interval([0.5, 1.0], (0, 1))
    # a share differs by at most all of it
    assert recognised.interval([1.0, -1.0], difference=True) == {"mean": 0.0, "low": -1.0, "high": 1.0}
    assert ssim.interval([1.9, -1.0], difference=True)["low"] == -2
    assert [first.value(v) for v in (1, 2, None)] == [1.0, 0.0, None]
    assert METRICS.get("matched_top5").value(5) == 1.0 and recognised.value(False) == 0.0


def test_texts():
    psnr, recognised = METRICS.get("psnr"), METRICS.get("recognised")
    assert [psnr.text(12.344), psnr.text(1.0, sign=True), psnr.text(None)] == ["12.34", "+1.00", "–"]
    assert recognised.text(0.4567) == "45.7 %" and recognised.text(0.1, sign=True, unit=False) == "+10.0"
    assert recognised.texts(0.5, 0.25, 0.75) == ("50.0 %", "25.0, 75.0")
    assert psnr.texts(1.0, 1.0, 1.0) == ("1.00", "") and psnr.texts(None, None, None) == ("–", "")


def test_another_packages_metric_is_one_of_them(brightness, batch):
    assert [m.name for m in metrics(["a"])] == [*NAMES, "brightness"] and brightness.heading == "brightness, lm"
    assert measure(image_metrics(), batch)["brightness"] == pytest.approx(batch.reconstruction.mean((1, 2, 3)).tolist())


def test_an_entry_point_that_is_no_metric_is_a_sentence(monkeypatch, brightness):
    for wrong in (brightness, object()):
        monkeypatch.setitem(METRICS._items, "other", wrong)
        with pytest.raises(UserError, match=r"entry point 'other' of splitsight\.metrics is no Metric of that name"):
            metrics()
