"""Figures from rows, against values worked out by hand; the estimate."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from scenarios.run import page, plots
from scenarios.run.figures import cell_summaries, comparisons, falls, score_sets
from scenarios.run.plan import Unit
from scenarios.run.progress import Estimate, duration
from scenarios.run.spec import load_scenario
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.metrics import METRICS, PSNR_CAP, mean_interval, proportion_interval
from splitsight.summary import Interval


def row(cell, index, psnr, rank=1, clip=None, **more):
    base = {"cell": f"c{cell:03d}", "index": index, "psnr": psnr, "psnr_eq14": None, "ssim": None, "lpips": None}
    base |= {
        "recognised": index % 2 == 0,
        "match_rank": rank,
        "gallery": 100,
        "clip": clip,
        "setting": "tuned",
        "window": 0,
    }
    return {**base, "seconds": 1.0, "iterations": 3, "model_evaluations": 4.0, **more}


@pytest.fixture
def scenario():
    cells = [{"split": "L8", "method": m, "setting": "tuned"} for m in ("do", "db", "dmb")]
    compare = [{"name": "db over do", "of": {"method": "db"}, "to": {"method": "do"}, "by_clip": True}]
    return load_scenario({"title": "", "about": "", "cells": cells, "compare": compare})


def test_means_and_parts(scenario):
    rows = [row(0, i, 10.0 + i, rank=i + 1) for i in range(6)]
    (cell,) = cell_summaries(scenario, rows, {"c000": {"s": 2.0}}, planned={"c000": 8}, features="evaluator")
    assert (cell.n, cell.planned, cell.scores) == (6, 8, {"s": 2.0})
    assert cell.psnr.model_dump() == mean_interval([10, 11, 12, 13, 14, 15]) and cell.ssim is None
    assert cell.recognised.model_dump() == proportion_interval([True, False] * 3)
    assert cell.interval("matched_top1").mean == pytest.approx(1 / 6)
    assert cell.interval("matched_top5").mean == pytest.approx(5 / 6)
    assert cell.match.gallery == 100 and cell.match.features == "evaluator"


def test_sets_of_many_images_are_compared_with_their_originals(scenario, tmp_path):
    class Means:
        name = "means"

        def features(self, images):
            return images.mean((2, 3))

    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
    rows = []
    for cell, count in ((0, 60), (1, 60), (2, 49)):
        for i in range(count):
            names = {"original": f"o{i}.png", "reconstruction": f"r{cell}-{i}.png", "image": str(i)}
            write_png(tmp_path / names["original"], originals[i])
            # the second cell darkens what the first gives back
            write_png(tmp_path / names["reconstruction"], originals[i] // (cell + 1))
            rows.append(row(cell, i, 10.0, **names))
    store = SimpleNamespace(folder=tmp_path)
    cells, of_originals = score_sets(scenario, store, rows, {}, [Means()])
    assert set(cells["c000"]) == {"frechet_means", "kernel_means"} and cells["c002"] == {} and of_originals == {}
    assert cells["c000"]["frechet_means"] == pytest.approx(0, abs=1e-5)
    means = [images.mean((1, 2)) / 255 for images in (originals, originals // 2)]
    covariances = [np.cov(m.T) for m in means]
    expected = ((means[0].mean(0) - means[1].mean(0)) ** 2).sum()
    expected += np.trace(sum(covariances) - 2 * np.real(sqrtm(covariances[0] @ covariances[1])))
    assert cells["c001"]["frechet_means"] == pytest.approx(expected, rel=1e-3)
    assert falls("frechet_means") and falls("kernel_means") and not falls("inception_score_means")


def test_losses_on_different_scales_have_panels_of_their_own():
    cells = [{"split": "L8", "method": m, "training": t} for t in (None, "paper") for m in ("net-do", "net-db")]
    rows = [row(i, 0, 10.0, curve=[100.0**i, 50.0**i]) for i in range(4)]
    found = cell_summaries(
        load_scenario({"title": "", "about": "", "cells": cells}), rows, {}, planned={}, features="evaluator"
    )
    assert [cell.options for cell in found] == [{}, {}, {"training": "paper"}, {"training": "paper"}]
    html = plots.curves(found, rows)
    assert '"text":"L8"' in html and '"text":"L8 trained paper"' in html and "part of the training" in html
    # in the order of the cells, with the axis of each
    assert re.findall(r'"xaxis":"(x\d?)","yaxis":"(y\d?)"', html) == [("x", "y")] * 2 + [("x2", "y2")] * 2


@pytest.mark.parametrize(("most", "kind"), [(4096, "log"), (1024, "linear")])
def test_what_grows_by_multiples_has_an_axis_of_multiples(most, kind):
    cells = [{"split": "L8", "method": "net-db", "queries": q} for q in (256, 512, most)]
    scenario = load_scenario({"title": "", "about": "", "cells": cells})
    rows = [row(i, 0, 10.0 + i) for i in range(3)]
    ((name, html),) = plots.sweeps(cell_summaries(scenario, rows, {}, planned={}, features="evaluator"))
    kinds = re.findall(r'"title":{"text":"queries"},"type":"(\w+)"', html)
    assert name == "queries" and kinds and set(kinds) == {kind}


def test_lines_can_be_told_apart():
    styles = plots._lines(f"method {i}" for i in range(18))
    assert len({(s["color"], s["dash"]) for s in styles.values()}) == 18


def test_one_observation_is_not_told_apart_from_nothing():
    one, three = (
        page._measured(Interval(**mean_interval(seen)), METRICS.get("psnr"), sign=True)
        for seen in ([2.0], [2.0, 2.1, 2.2])
    )
    assert (one.text, one.range, one.win) == ("+2.00", "", False)
    assert (three.text, three.win) == ("+2.10", True) and three.range.startswith("+1.85")


def test_differences_are_paired(scenario):
    rows = [row(0, i, 10.0 * i, clip="ab"[i % 2]) for i in range(4)]
    rows += [row(1, i, 10.0 * i + gain, rank=2, clip="ab"[i % 2]) for i, gain in ((0, 1.0), (1, 2.0), (3, 4.0))]
    whole, a, b = comparisons(scenario, rows)
    assert (whole.n, whole.clip, whole.split) == (3, None, "L8")
    # images differ by tens of dB, the gains by three; each clip counts once
    assert whole.differences["psnr"].model_dump() == mean_interval([1, 3])
    found = whole.differences["matched_top1"]
    assert found.mean == found.low == -1 and "ssim" not in whole.differences
    assert (a.clip, a.n, a.differences["psnr"].mean) == ("a", 1, 1.0)
    assert (b.clip, b.n, b.differences["psnr"].mean) == ("b", 2, 3.0)


def test_still_images_are_paired_one_by_one(scenario):
    rows = [row(0, i, 10.0 * i) for i in range(3)] + [row(1, i, 10.0 * i + g) for i, g in enumerate((1.0, 2.0, 4.0))]
    (whole,) = comparisons(scenario, rows)
    assert whole.differences["psnr"].model_dump() == mean_interval([1, 2, 4])


def test_frames_that_belong_together_count_once(scenario):
    one = {"planned": {}, "features": ""}
    clips = [row(0, i, float(i), rank=1 + i // 3, clip="aab"[i // 2], window=i // 2) for i in range(6)]
    (cell,) = cell_summaries(scenario, clips, {}, **one)
    assert cell.n == 6 and cell.psnr.model_dump() == mean_interval([1.5, 4.5], (0, PSNR_CAP))
    assert cell.match.top1.mean == pytest.approx((3 / 4 + 0) / 2)
    assert cell.match.top1.low >= 0 and cell.match.top1.high <= 1
    (cell,) = cell_summaries(scenario, clips[:4], {}, **one)
    assert cell.psnr.model_dump() == mean_interval([0.5, 2.5], (0, PSNR_CAP))


def test_a_comparison_must_select_one_cell(scenario):
    scenario.compare[0].of = {"setting": "tuned"}
    with pytest.raises(UserError, match="selects several cells with 'of' at L8: “do tuned”, “db tuned”"):
        comparisons(scenario, [row(0, 0, 1.0)])


def test_estimate():
    units = [Unit(f"c{c:03d}-{k:04d}", c, (2 * k, 2 * k + 1)) for c in (0, 1) for k in (0, 1, 2)]
    estimate = Estimate(units, workers=2)
    assert estimate.seconds_left is None
    estimate.add("c000-0000", 20.0)  # ten seconds an image: five units of two images by two workers
    assert estimate.seconds_left == 50.0
    estimate.add("c001-0000", 2.0)
    assert estimate.seconds_left == (2 * 20 + 2 * 2) / 2 and estimate.done == 2
    estimate.add("c001-0001", None)
    estimate.add("c001-0001", None)
    assert estimate.done == 3
    assert [duration(s) for s in (45, 700, 11100)] == ["45 s", "12 min", "3 h 05 min"]


def test_two_splits_that_are_named_are_compared_with_each_other():
    cells = [{"split": split, "target": target, "method": "do"} for target, split in ((None, "L4"), ("other", "L12"))]
    compare = [
        {
            "name": "a quarter of the way",
            "of": {"target": "other", "split": "L12"},
            "to": {"target": None, "split": "L4"},
        }
    ]
    scenario = load_scenario({"title": "", "cells": cells, "compare": compare})
    rows = [row(0, i, 10.0 * i) for i in range(3)] + [row(1, i, 10.0 * i + g) for i, g in enumerate((1.0, 2.0, 4.0))]
    (one,) = comparisons(scenario, rows)
    assert one.split == "L12 and L4" and one.differences["psnr"].model_dump() == mean_interval([1, 2, 4])
    assert [cell.name for cell in scenario.cells] == ["do", "do of other"]
    assert scenario.targets() == "resnet18, other" and scenario.targets("L12") == "other"
