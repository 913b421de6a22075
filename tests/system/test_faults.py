"""Faults of real processes, links, clocks and disks: what is lost, what is said, and that all goes on."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from scenarios.faults.cases import CASES, OWN
from scenarios.faults.run import read_rows, run_faults
from scenarios.faults.stage import NotHere, Pace, Stage
from splitsight.errors import UserError

PACE = Pace(fps=10.0, before=8, outage=1.5, after=12, answer_timeout=2.0)


@pytest.fixture(scope="module")
def stage(tmp_path_factory, models):
    with Stage(tmp_path_factory.mktemp("faults"), PACE, models=models) as made:
        assert made.server
        yield made


@pytest.fixture(scope="module")
def own(stage):
    """Cases that leave the others alone, side by side: each start of an edge takes seconds."""

    def run(name):
        try:
            return CASES[name](stage)
        except Exception as error:  # told by the test of its case
            return error

    with ThreadPoolExecutor(len(OWN)) as threads:
        return dict(zip(OWN, threads.map(run, OWN), strict=True))


@pytest.fixture
def row(request, own):
    found = own[request.param]
    if isinstance(found, NotHere):
        pytest.skip(str(found))
    if isinstance(found, Exception):
        raise found
    assert found.acknowledged_lost == 0
    return found


def _nothing_lost(row):
    assert (row.unanswered, row.code, row.acknowledged_lost) == (0, 0, 0)
    assert row.answered == row.frames > PACE.before


@pytest.mark.parametrize("row", ["link-cut", "half-open", "damaged-tls"], indirect=True)
def test_a_broken_connection_is_taken_up_again(row):
    _nothing_lost(row)
    assert "the connection is lost (" in row.said and "the session goes on" in row.said
    assert row.recover_s < 20


@pytest.mark.parametrize("row", ["link-slow", "clock"], indirect=True)
def test_what_only_delays_goes_unnoticed(row):
    _nothing_lost(row)
    assert row.note != "round trips jump"


@pytest.mark.parametrize("row", ["damaged-clear"], indirect=True)
def test_damage_without_tls_ends_with_a_sentence_or_goes_unnoticed(row):
    # which bits are hit is chance: numbers of a frame, or what describes them
    assert row.code in (0, 2) and (row.code == 0 or row.said)


@pytest.mark.parametrize("row", ["sequence"], indirect=True)
def test_sequence_numbers_out_of_turn_are_refused_and_cost_nothing(row):
    assert row.said == (
        "INVALID_ARGUMENT: frame 1 came where 2 was due: sequence numbers grow by one / "
        "INVALID_ARGUMENT: frame 4 came where 3 was due: sequence numbers grow by one"
    )
    assert (row.answered, row.unanswered) == (6, 0)


@pytest.mark.parametrize("row", ["disk-edge"], indirect=True)
def test_a_full_disk_ends_the_edge_with_a_sentence(row):
    assert row.code == 1 and row.answered > 3
    assert "is full: free some space; what was written so far is readable" in row.said


def test_a_server_that_is_killed_or_short_of_memory_or_hangs_loses_nothing(stage):
    with stage.gate():  # the cases before have ended
        pass
    _nothing_lost(CASES["memory"](stage))
    killed = CASES["server-killed"](stage)
    _nothing_lost(killed)
    assert killed.resent > 0
    assert "the connection is lost" in killed.said and "the session goes on" in killed.said


@pytest.mark.parametrize("name", ["adversary-hung", "adversary-killed"])
def test_an_adversary_that_hangs_or_is_killed_is_nobody_elses_concern(stage, name):
    row = CASES[name](stage)
    _nothing_lost(row)
    assert row.recover_s < 20 and "missing" in row.note


def test_an_adversary_without_room_ends_with_a_sentence_and_what_it_has_reads(stage):
    try:
        full = CASES["disk-adversary"](stage)
    except NotHere as error:
        pytest.skip(str(error))
    assert full.code == 1 and "is full" in full.said and full.answered == full.frames
    assert "its recording reads: 0 frames" not in full.note


def test_a_run_goes_on_where_it_ended_and_names_are_checked(tmp_path):
    with pytest.raises(UserError, match="unknown fault 'none': choose one of"):
        run_faults(out=tmp_path, only=["none"])
    lines = [json.dumps({"case": name, "fault": name, "note": "n"}) for name in reversed(CASES)]
    (tmp_path / "faults.jsonl").write_text("\n".join(lines) + "\n")
    assert [row["case"] for row in run_faults(out=tmp_path)] == list(CASES)
    (tmp_path / "faults.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="does not hold rows"):
        read_rows(tmp_path / "faults.jsonl")
