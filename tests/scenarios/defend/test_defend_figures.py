"""One line a defence."""

import pytest

from scenarios.defend.figures import _adapting, attack_name, dominated, summaries
from scenarios.run.spec import Scenario
from splitsight.summary import DefenseSummary

CELLS = [
    {"method": "preview", "defense": "identity", "count": 4},
    {"method": "preview", "defense": "topk:keep=0.5", "adaptive": False, "count": 4},
    {"method": "preview", "defense": "topk:keep=0.5", "count": 4},
    {"method": "do", "defense": "topk:keep=0.5", "count": 2},
    {"method": "net-do", "defense": "topk:keep=0.5", "static": 4, "optional": True},
]
SCENARIO = Scenario.model_validate({"title": "t", "cells": CELLS})
MEASURE = {
    "split": "L8",
    "config": {},
    "utility": {"name": "accuracy", "n": 10, "accuracy": 0.5, "accuracy_undefended": 0.6},
    "attribute": None,
    "epsilon": None,
    "delta": None,
    "guarantees": [],
    "bytes": 8.0,
    "bytes_zstd": 4.0,
    "edge_ms": 1.0,
    "fresh": True,
}


def _rows(cell, ssims):
    return [
        {
            "cell": f"c{cell:03d}",
            "index": i,
            "psnr": 10 + s,
            "ssim": s,
            "recognised": s > 0.5,
            "match_rank": 1 + (s < 0.5),
        }
        for i, s in enumerate(ssims)
    ]


ROWS = _rows(0, [0.8] * 4) + _rows(1, [0.3, 0.4, 0.9, 0.9]) + _rows(2, [0.5, 0.6, 0.1, 0.1]) + _rows(3, [0.55, 0.45])


@pytest.fixture
def found():
    measures = [{**MEASURE, "defense": d} for d in ("identity", "topk:keep=0.5")]
    return summaries(SCENARIO, ROWS, measures, {"c004": "there is no network"})


def test_attacks_are_named_by_what_sets_them_apart():
    names = [attack_name(cell) for cell in SCENARIO.cells]
    assert names == ["preview", "preview, not told", "preview", "do", "net-do, 4 still frames"]


def test_the_strongest_is_found_on_the_images_that_all_attacks_have(found):
    # over all four images the attacker who was not told is ahead, over the two of them all he is not
    one = found[1]
    assert one.attacks["preview, not told"].ssim == pytest.approx(0.625) and one.attacks["preview"].n == 4
    assert one.strongest.attack == "preview" and one.strongest.n == 2
    assert one.strongest.ssim == pytest.approx(0.55) and one.strongest.matched_top1 == 1


def test_originals_found_and_recognised_are_those_of_whichever_attack_has_most():
    rows = [dict(row) for row in ROWS]
    for row in rows:
        if row["cell"] == "c003":  # farther from the originals, and yet it tells which they are
            row |= {"ssim": row["ssim"] - 0.3, "recognised:other": row["index"] == 0, "recognised": True}
        if row["cell"] == "c002":
            row |= {"match_rank": 2, "recognised": False, "recognised:other": False}
    one = summaries(SCENARIO, rows, [{**MEASURE, "defense": "topk:keep=0.5"}], {"c004": "there is no network"})[0]
    assert one.strongest.attack == "preview" and one.strongest.matched_top1 == 0 == one.strongest.recognised
    assert one.strongest.most == {"matched_top1": 0.5, "recognised": 1.0, "recognised:other": 0.5}


def test_what_adapting_gained_is_paired(found):
    assert found[1].adapting.mean == pytest.approx(0.2) and found[0].adapting is None
    assert found[1].adapting.low == pytest.approx(0.2) == found[1].adapting.high


def test_what_could_not_run_is_said(found):
    assert found[1].left_out == {"net-do, 4 still frames": "there is no network"}


def test_an_attack_that_gave_no_image_counts_for_nothing():
    rows = [*ROWS, *({**row, "psnr": None, "ssim": None} for row in _rows(4, [0.5] * 4))]
    measures = [{**MEASURE, "defense": d} for d in ("identity", "topk:keep=0.5")]
    one = summaries(SCENARIO, rows, measures, {})[1]
    assert one.strongest.attack == "preview" and "net-do, 4 still frames" not in one.attacks
    assert "no image" in one.left_out["net-do, 4 still frames"]


def _summary(name, accuracy, ssim):
    utility = {**MEASURE["utility"], "accuracy": accuracy}
    whole = {k: v for k, v in MEASURE.items() if k not in ("fresh", "utility")}
    strongest = {"attack": "do", "ssim": ssim, "n": 2}
    return DefenseSummary.model_validate({**whole, "defense": name, "utility": utility, "strongest": strongest})


def test_dominated_is_worse_in_one_and_better_in_none():
    a, b, c, d = (_summary(*x) for x in (("a", 0.6, 0.8), ("b", 0.6, 0.5), ("c", 0.5, 0.5), ("d", 0.4, 0.2)))
    every = [a, b, c, d]
    assert [dominated(one, every) for one in every] == [True, False, True, False]
    twin = _summary("e", 0.6, 0.5)
    assert not dominated(b, [*every, twin]) and not dominated(twin, [*every, twin])


def test_an_attack_without_an_image_has_no_part_in_what_adapting_helped():
    told = {"a": [{"index": 0, "ssim": 0.5}, {"index": 1, "ssim": None}], "b": [{"index": 0, "ssim": None}]}
    untold = {"a": [{"index": 0, "ssim": 0.2}, {"index": 1, "ssim": 0.4}]}
    found = _adapting(told, untold, {0, 1})
    assert found is not None and found.mean == pytest.approx(0.3)
    assert _adapting({"b": told["b"]}, untold, {0, 1}) is None
