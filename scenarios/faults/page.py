"""``docs/faults.md``, made from committed rows: ``python -m scenarios.faults.page``.

``scenarios/results/bench-faults.jsonl`` is what ``splitsight bench faults`` wrote, ``bench-fuzz.jsonl`` the blocks of
``tests/fuzz/run.py``, ``bench-soak.json`` the result of ``splitsight bench serve --soak``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scenarios.faults.run import read_rows
from scenarios.results_page import RESULTS
from splitsight.files import write_text

__all__ = ["PAGE", "fault_lines", "fuzz_lines", "page", "soak_lines"]

PAGE = Path("docs/faults.md")
"""From the root of the repository."""

_HEAD = """# What happens when something breaks

<!-- Made by `python -m scenarios.faults.page` from scenarios/results/bench-*: run it, do not edit this. -->

An answer that an edge was given is in its report, whatever breaks: the server keeps nothing of a session that it
would miss after a restart, the edge keeps every frame until its answer has come, and numbers say which frame is due.

## Faults

Real processes on one machine, `splitsight bench faults --out FOLDER`: an edge streams, the fault comes, and in the
end the edge's report is counted. *Lost* are answers that were given and are not in the report, then frames that ended
without an answer. *Back after* are seconds from the end of the fault, or its beginning where it does not end, to the
next answer, or to the next frame that the adversary recorded. Times are of one run on two cores with nothing else
to do.
"""
_FUZZ = """## Malformed messages

`python tests/fuzz/run.py --out FOLDER` changes valid messages in structure and in bytes and sends them to the services
and to the codec, most of them in one process, some over connections to real servers. Each ends in a status
that [the page on untrusted networks](untrusted-network.md#statuses) lists, with one sentence; nothing is left of a
stream that was refused. What was found is kept in `tests/fuzz/test_fuzz.py`. `python tests/fuzz/codec.py` runs the
codec under atheris (`pip install -e '.[fuzz]'`).
"""
_SOAK = """## A long run

`splitsight bench serve --soak MINUTES`: paced sessions, each replaced by another after 200 frames.
"""


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "nothing"


def fault_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table of faults, in Markdown."""
    yield "| fault | frames | lost: answers, frames | sent again | back after | exit code | what the user reads | |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        if "frames" not in row:
            yield f"| {row['fault']} | | | | | | | {_cell(row['note'])} |"
            continue
        code = "runs on" if row["code"] is None else str(row["code"])
        lost = f"{row['acknowledged_lost']}, {row['unanswered']}"
        yield (
            f"| {row['fault']} | {row['frames']} | {lost} | {row['resent']} | {_seconds(row['recover_s'])} | {code} | "
            f"{_cell(row['said'])} | {row['note']} |"
        )


def fuzz_lines(blocks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each service: messages, refusals by status, memory early and at the end."""
    yield "| sent to | messages | refused | by status | MiB after 10,000, at the end |"
    yield "| --- | --- | --- | --- | --- |"
    sent = refused = 0
    for service in dict.fromkeys(block["service"] for block in blocks):
        own = [block for block in blocks if block["service"] == service]
        total = sum((Counter(block["statuses"]) for block in own), Counter())
        count, fine = sum(total.values()), total.pop("OK", 0)
        sent, refused = sent + count, refused + count - fine
        statuses = ", ".join(f"{name} {n:,}" for name, n in total.most_common())
        early, late = (" + ".join(map(str, own[at]["rss_mib"])) for at in (min(1, len(own) - 1), -1))
        name = "real servers over gRPC" if service == "grpc" else service
        yield f"| {name} | {count:,} | {count - fine:,} | {statuses} | {early}, {late} |"
    yield f"| all | {sent:,} | {refused:,} | | |"


def soak_lines(result: dict[str, Any]) -> Iterator[str]:
    """What a soak says, in one sentence and a table of five minutes."""
    minutes = result["minutes"]
    yield (
        f"{len(minutes)} minutes, {result['sessions']} sessions, {result['rate_hz']:g} frames a second: "
        f"{result['answers']:,} answers, {result['errors']} errors; memory in the last third of the minutes is "
        f"{result['growth_mib']:+.1f} MiB of that in the middle third."
    )
    yield ""
    yield "| minute | answers | p50, ms | p99, ms | server, MiB | clients, MiB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    last = len(minutes) - 1
    for i in dict.fromkeys(round(part * last / 4) for part in range(5)):
        m = minutes[i]
        yield (
            f"| {i + 1} | {m['answers']} | {m['p50_ms']:.1f} | {m['p99_ms']:.1f} | {m['server_mib']:.0f} | "
            f"{m['clients_mib']:.0f} |"
        )


def page() -> str:
    """The page, in Markdown."""
    blocks = [json.loads(line) for line in (RESULTS / "bench-fuzz.jsonl").read_text().splitlines()]
    lines = [
        _HEAD,
        *fault_lines(read_rows(RESULTS / "bench-faults.jsonl")),
        "",
        _FUZZ,
        *fuzz_lines(blocks),
        "",
        _SOAK,
        *soak_lines(json.loads((RESULTS / "bench-soak.json").read_text())),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
