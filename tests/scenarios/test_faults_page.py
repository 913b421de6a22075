"""The page of faults follows from its rows."""

import json
from pathlib import Path

from scenarios.faults.cases import CASES
from scenarios.faults.page import PAGE, fault_lines, fuzz_lines, page, soak_lines
from scenarios.faults.run import read_rows
from scenarios.results_page import RESULTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `python -m scenarios.faults.page`"


def test_the_rows_hold_every_fault_and_none_lost_an_answer():
    rows = read_rows(RESULTS / "bench-faults.jsonl")
    assert [row["case"] for row in rows] == list(CASES)
    assert all(row.get("acknowledged_lost", 0) == 0 for row in rows)


def test_a_million_were_refused():
    blocks = [json.loads(line) for line in (RESULTS / "bench-fuzz.jsonl").read_text().splitlines()]
    assert sum(n for block in blocks for name, n in block["statuses"].items() if name != "OK") >= 1_000_000
    assert {block["service"] for block in blocks} == {"inference", "codec", "oracle", "tap", "operator", "grpc"}


def test_lines_are_what_rows_say():
    row = {
        "fault": "f", "frames": 9, "answered": 8, "acknowledged_lost": 0, "unanswered": 1, "resent": 2,
        "recover_s": 0.25, "code": None, "said": "a|b", "note": "n",
    }  # fmt: skip
    lines = list(fault_lines([row, {"fault": "g", "note": "not measured: x"}]))
    assert lines[2:] == ["| f | 9 | 0, 1 | 2 | 0.2 s | runs on | a\\|b | n |", "| g | | | | | | | not measured: x |"]
    blocks = [{"service": "tap", "statuses": {"OK": 400, "ABORTED": 600}, "rss_mib": [n]} for n in (5, 6, 7)]
    assert list(fuzz_lines(blocks))[2:] == [
        "| tap | 3,000 | 1,800 | ABORTED 1,800 | 6, 7 |",
        "| all | 3,000 | 1,800 | | |",
    ]
    minute = {"answers": 10, "p50_ms": 1, "p99_ms": 2, "server_mib": 3, "clients_mib": 4}
    result = {"sessions": 2, "rate_hz": 5.0, "answers": 1200, "errors": 0, "growth_mib": 0.5, "minutes": [minute] * 9}
    said = list(soak_lines(result))
    assert said[0].startswith("9 minutes, 2 sessions, 5 frames a second: 1,200 answers, 0 errors; memory")
    assert [line.split("|")[1].strip() for line in said[4:]] == ["1", "3", "5", "7", "9"]
