"""Differential privacy of a network's features, in figures."""

import pytest

from scenarios.defend.privacy import privacy


def test_theory_and_what_is_drawn_and_shown_agree(tiny_target, pictures, tmp_path):
    options = {"target": tiny_target, "split": "S1", "images": pictures, "out": tmp_path, "limit": 6}
    rows = privacy(**options, epsilons=(1, 4), draws=40_000)
    assert [(row["law"], row["epsilon"]) for row in rows] == [(n, e) for n in ("gaussian", "laplace") for e in (1, 4)]
    for row in rows:
        assert row["frame_epsilon"] == pytest.approx(row["epsilon"], abs=1e-6)
        assert row["measured"] == pytest.approx(row["expected"], rel=0.05) and row["p"] > 1e-3
        assert 0 < row["shown_worst"] < row["epsilon"] < row["shown_wrong"]
        assert row["shown_real"] < row["epsilon"]
    assert rows[0]["closed_form"] == pytest.approx(rows[0]["stream_epsilon"], abs=1e-6)
    assert rows[2]["epsilon"] < rows[2]["stream_epsilon"] < 1000 and rows[2]["delta"] == 0
    assert privacy(**options, epsilons=(1, 4), draws=40_000) == rows
