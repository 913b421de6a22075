"""Cells that attack another network than their scenario's."""

import json

import pytest
import torch

from scenarios.run.rows import read_rows
from scenarios.run.run import RunOptions, run_scenario
from scenarios.run.spec import SCENARIOS, load_scenario, read_scenario
from splitsight.errors import UserError
from splitsight.summary import read_summary
from splitsight.targets import TARGETS, Normalize, Target
from splitsight.targets.resnet50_small import NarrowResNet50
from splitsight.tasks.classify import Classify

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def other(monkeypatch):
    """Registers a second target, of an input size of choice."""

    def register(size=64):
        def load(weights=None):
            torch.manual_seed(1)
            model = NarrowResNet50(3, 8)
            labels = ["one", "two", "three"]
            return Target("other", model, Normalize([0.5] * 3, [0.5] * 3), Classify(labels), size, {"L12": "layer2.0"})

        TARGETS.names()
        monkeypatch.setitem(TARGETS._items, "other", load)

    return register


def test_a_cell_may_attack_another_target(scenario, other, tmp_path):
    other()
    cells = [{"split": "L8", "method": "fake"}, {"split": "L12", "target": [None, "other"], "method": "fake"}]
    compare = [
        {
            "name": "other over first",
            "of": {"target": "other", "split": "L12"},
            "to": {"target": None, "split": "L8"},
        }
    ]
    out = run_scenario(RunOptions(scenario(cells=cells, compare=compare), out=tmp_path / "out", threads=1))
    rows = read_rows(out / "rows.parquet").to_pylist()
    by = {(row["cell"], row["index"]): row for row in rows}
    first, theirs, ours = by["c000", 0], by["c001", 0], by["c002", 0]
    assert first["target_digest"] == theirs["target_digest"] != ours["target_digest"]
    assert first["image"] == ours["image"] and ours["label"] == "fake of other"
    session = json.loads(ours["session"])
    assert session["target"] == "other" and session["features"][0]["shape"] == [64, 8, 8]
    summary = read_summary(out / "summary.json")
    assert summary.target == "resnet18, other"
    (compared,) = summary.scenario.comparisons
    assert (compared.split, compared.n) == ("L12 and L8", 4)
    page = (out / "index.html").read_text()
    assert "resnet18, other at L12" in page and "resnet18 at L8" in page
    weights = (out / "config.yaml").read_text()
    assert f"target:other: {ours['target_digest']}" in weights


def test_targets_of_one_scenario_have_one_input_size(scenario, other, tmp_path):
    other(32)
    path = scenario(cells=[{"split": "L8", "method": "fake"}, {"split": "L12", "target": "other", "method": "fake"}])
    with pytest.raises(UserError, match="'other' takes 32 pixels and 'resnet18' 64: give it a scenario of its own"):
        run_scenario(RunOptions(path, out=tmp_path / "out"))


PUBLISHED = {
    "table-1-resnet50": {("DMB", "L36"): (29.9, 0.88), ("DO", "L12"): (28.9, 0.85)},
    "table-1-vit": {("DMB", "L3"): (42.6, 0.98), ("DB", "L5"): (19.9, 0.75)},
    "table-1-clip": {("DMB", "output"): (13.2, 0.50)},
    "table-2-targets": {("DMB with text", "L48"): (14.9, 0.54), ("DMB without text", "L8"): (4.3, 0.02)},
    "table-3-resnet50": {("10 steps", "L36"): (None, 0.80)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_the_paper(name):
    scenario = load_scenario(read_scenario(name)[0], name=name)
    found = {(row.label, row.split): (row.figures.get("psnr_eq14"), row.figures["ssim"]) for row in scenario.paper}
    assert found.items() >= PUBLISHED[name].items()
    assert {row.split for row in scenario.paper} <= {cell.split for cell in scenario.cells}


def test_scenarios_name_points_that_their_targets_have():
    points = {"resnet50-small": ["L12", "L24", "L36", "L48"], "resnet18": ["L4", "L8", "L12", "L16"]}
    points |= {"yolo-small": points["resnet50-small"]} | dict.fromkeys(
        ("vit-small", "clip-small"), ("L3", "L4", "L5", "L8")
    )
    names = [n for n in SCENARIOS.names() if n.endswith(("-resnet50", "-vit", "-yolo", "-clip", "-targets"))]
    assert len(names) == 11
    for name in [*names, "relative-depth"]:
        for quick in (False, True):
            scenario = load_scenario(read_scenario(name)[0], name=name, quick=quick)
            for cell in scenario.cells:
                assert cell.split in [*points[cell.target or scenario.target], "output"]
