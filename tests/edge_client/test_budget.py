"""What a stream has spent: counted before it leaves, once, across connections and sessions; and where it stops."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fake_cloud import FakeCloud, description

from edge_client.budget import SPENT, Spending
from edge_client.client import EdgeOptions, run_edge
from splitsight import targets
from splitsight.accounting import Accountant, Mechanism, gaussian_multiplier
from splitsight.data import write_png
from splitsight.errors import UserError

EIGHT = Mechanism("gaussian", gaussian_multiplier(8, 1e-5))
DEFENSE = "clip:norm=20+gaussian:epsilon=8"


def _epsilon(frames: int) -> float:
    return Accountant(1e-5).spent(EIGHT, frames).epsilon


def test_a_budget_is_warned_of_once_and_ends_with_the_frame_that_fits():
    said: list[str] = []
    spending = Spending(EIGHT, DEFENSE, budget=_epsilon(10) + 0.1, warn=said.append)
    while not spending.spent:
        spending.send()
    assert spending.frames == 10 and spending.epsilon == pytest.approx(_epsilon(10))
    first = next(n for n in range(1, 11) if _epsilon(n) >= 0.8 * (_epsilon(10) + 0.1))
    assert len(said) == 1 and f"ε = {_epsilon(first):.4g} of the budget" in said[0] and f"{10 - first} more" in said[0]
    error = spending.stopped(9)
    assert (
        error.code == SPENT == 3 and "over 10 frames" in str(error) and "10 were sent now and 9 answered" in str(error)
    )
    summary = spending.summary()
    assert summary == {
        "frame": pytest.approx(8),
        "stream": pytest.approx(_epsilon(10)),
        "delta": 1e-5,
        "frames": 10,
        "budget": pytest.approx(_epsilon(10) + 0.1),
    }


def test_a_ledger_carries_on_and_is_written_before_a_frame_leaves(tmp_path):
    ledger = tmp_path / "spent.json"
    first = Spending(EIGHT, DEFENSE, ledger=ledger)
    for n in range(3):
        first.send()
        assert json.loads(ledger.read_text())["spent"][-1]["frames"] == n + 1
    with pytest.raises(UserError, match="another edge is counting in"):
        Spending(EIGHT, DEFENSE, ledger=ledger)
    first.close()
    weaker = Mechanism("gaussian", 2.0)
    second = Spending(weaker, "clip:norm=1+gaussian:sigma=4", ledger=ledger)
    assert second.epsilon == pytest.approx(_epsilon(3))
    second.send()
    second.close()
    third = Spending(EIGHT, DEFENSE, ledger=ledger)
    assert third.epsilon == pytest.approx(Accountant(1e-5).spent(EIGHT, 3).spent(weaker).epsilon)
    third.close()
    with pytest.raises(UserError, match=r"the budget ε = 10 is spent: ε = .* of 4 frames so far"):
        Spending(EIGHT, DEFENSE, budget=10, ledger=ledger)
    # what was refused holds nothing
    Spending(EIGHT, DEFENSE, ledger=ledger).close()


def test_nothing_is_counted_where_nothing_is_guaranteed():
    spending = Spending(None, "identity")
    spending.send()
    assert spending.epsilon is None and not spending.spent and set(spending.summary().values()) == {None}


@pytest.mark.parametrize(
    ("mechanism", "given", "words"),
    [
        (None, {"budget": 5.0}, "the defence noise guarantees nothing, so that no ε can be counted"),
        (None, {"ledger": Path("x.json")}, "guarantees nothing"),
        (EIGHT, {"budget": 0.0}, "--epsilon-budget must be more than 0"),
        (EIGHT, {"budget": float("nan")}, "--epsilon-budget must be more than 0 and finite"),
        (EIGHT, {"budget": 7.9}, "the budget ε = 7.9 is spent: nothing so far, and another frame costs ε = 8"),
    ],
)
def test_what_cannot_be_is_one_sentence(mechanism, given, words):
    with pytest.raises(UserError, match=words) as error:
        Spending(mechanism, "noise", **given)
    assert "\n" not in str(error.value) and error.value.code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no json", "is no ledger of ε"),
        ('{"format": "other", "delta": 1e-5, "spent": []}', "is no ledger of ε"),
        ('{"format": "splitsight.epsilon/1", "delta": 1e-5, "spent": [{"law": "cauchy"}]}', "is no ledger of ε"),
        (
            '{"format": "splitsight.epsilon/1", "delta": 1e-6, "spent": []}',
            "counts at δ = 1e-06, this defence at 1e-05",
        ),
    ],
)
def test_a_ledger_that_cannot_be_read_is_not_begun_anew(tmp_path, content, words):
    path = tmp_path / "ledger.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        Spending(EIGHT, DEFENSE, ledger=path)
    assert path.read_text() == content


# ------------------------------------------------------------------ an edge


@pytest.fixture(scope="module")
def target():
    return targets.load("resnet18")


@pytest.fixture
def clip(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    for i in range(12):
        write_png(tmp_path / "clip" / f"{i:03d}.png", rng.integers(0, 255, (64, 64, 3), np.uint8))
    return str(tmp_path / "clip")


def _run(server, clip, tmp_path, **options):
    events: list[tuple[str, dict]] = []
    given = EdgeOptions(
        server.address, clip, fps=4, pace=False, defense=DEFENSE, report=tmp_path / "edge.jsonl", **options
    )
    try:
        return run_edge(given, lambda *event: events.append(event)), events
    except UserError as error:
        return error, events


@pytest.mark.parametrize("breaks", [None, 3])
def test_an_edge_stops_at_its_budget_and_loses_nothing(target, clip, tmp_path, breaks):
    """Also over a connection that breaks: frames that are sent again are the same bytes and cost nothing more."""
    server = FakeCloud(description(target, "L8"), break_after=breaks, delay_s=0.01)
    try:
        error, events = _run(server, clip, tmp_path, epsilon_budget=_epsilon(8) + 0.1)
    finally:
        server.stop()
    assert isinstance(error, UserError) and error.code == 3 and "8 were sent now and 8 answered" in str(error)
    rows = [json.loads(line) for line in (tmp_path / "edge.jsonl").read_text().splitlines()]
    assert [row["sequence"] for row in rows] == list(range(8))
    assert [row["epsilon"] for row in rows] == pytest.approx([_epsilon(n) for n in range(1, 9)], abs=1e-5)
    summary = json.loads((tmp_path / "edge.summary.json").read_text())
    assert summary["epsilon"]["frames"] == 8 and summary["answered"] == 8 and summary["lost"] == 0
    assert [name for name, _ in events].count("budget") == 1
    by_sequence: dict[int, set[bytes]] = {}
    for frame in server.frames:
        by_sequence.setdefault(frame.sequence, set()).add(frame.SerializeToString())
    assert sorted(by_sequence) == list(range(8)) and all(len(sent) == 1 for sent in by_sequence.values())
    assert (summary["resent"] > 0) == (breaks is not None)


def test_a_stream_that_fits_its_budget_ends_well(target, clip, tmp_path):
    server = FakeCloud(description(target, "L8"))
    try:
        report, _ = _run(server, clip, tmp_path, seconds=2.0, epsilon_budget=_epsilon(8))
    finally:
        server.stop()
    assert report.exit_code == 0 and report.answered == 8
    assert report.epsilon["stream"] == pytest.approx(_epsilon(8)) and report.epsilon["frame"] == pytest.approx(8)


def test_a_spent_budget_sends_nothing(target, clip, tmp_path):
    server = FakeCloud(description(target, "L8"))
    try:
        error, _ = _run(server, clip, tmp_path, epsilon_budget=4)
    finally:
        server.stop()
    assert isinstance(error, UserError) and error.code == 2 and "is spent: nothing so far" in str(error)
    assert server.frames == [] and server.opens == []
