"""The table of the targets follows from what was measured, and what was measured is still so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from scenarios.targets_page import MEASURED, PAGE, measure, with_table
from splitsight.targets import TARGETS, Target, load
from splitsight.tasks.classify import Classify

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads(MEASURED.read_text(encoding="utf-8"))


def test_page_is_up_to_date():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert text == with_table(text), "run `python -m scenarios.targets_page`"


def test_two_halves_are_the_whole():
    assert len(ROWS) > 30
    for row in ROWS:
        assert row["largest"] > 0.01, f"{row['target']} answers nothing: no check"
        assert row["difference"] <= 1e-5 * row["largest"], row


@pytest.mark.parametrize("name", ["resnet18", "resnet50-small"])
def test_what_crosses_is_what_was_measured(name):
    target = load(name)
    own = {row["split"]: row for row in ROWS if row["target"] == name}
    assert list(own) == [*target.points(), "output"]
    for point, row in own.items():
        specs = target.cut(point).specs
        assert row["features"] == [spec.show for spec in specs] and row["bytes"] == sum(spec.bytes for spec in specs)


def test_a_cut_that_is_none_is_seen():
    class Wrong(Target):
        def halves(self, point):
            return nn.Sequential(self.model[0]), nn.Sequential(nn.ReLU(), self.model[1])

    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), nn.Identity(), Classify(list("abc")), 4, {"a": "0"}
    assert [row["difference"] for row in measure(Target("right", *parts), "random")] == [0.0, 0.0]
    assert [row["difference"] > 0.01 for row in measure(Wrong("wrong", *parts), "random")] == [True, True]


def test_every_target_is_on_the_page():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in TARGETS.names())
