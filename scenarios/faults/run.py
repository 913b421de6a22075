"""``splitsight bench faults``: all faults, one after another, each a line of a file that a later run goes on with."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scenarios.faults.cases import CASES
from scenarios.faults.stage import NotHere, Pace, Stage
from splitsight.errors import UserError, unknown_name

__all__ = ["ROWS", "read_rows", "run_faults"]

_OWN_FOLDER = re.compile(rf"{re.escape(tempfile.gettempdir())}/splitsight-faults-[^/]+/([\w-]+/)?")
ROWS = "faults.jsonl"
"""Name of the file, in the folder of a run."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a run, in the order of :data:`~scenarios.faults.cases.CASES`, each with its ``case``; none yet: empty.

    Raises:
        UserError: the file is another's.
    """
    if not path.exists():
        return []
    try:
        rows = {row["case"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold rows of faults: give another folder") from error
    return [rows[name] for name in CASES if name in rows]


def run_faults(
    *,
    out: Path,
    only: Sequence[str] = (),
    pace: Pace | None = None,
    target: str = "resnet18",
    split: str = "L8",
    video: str | None = None,
    models: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Bring faults about.

    Args:
        out: folder for :data:`ROWS`; faults that are in it are left out.
        only: names of faults; empty for all.
        pace: how long things take.
        target: network to serve.
        split: split point.
        video: that edges play; ``None`` for the default clip.
        models: options of ``splitsight adversary`` that name its models.
        progress: called with faults done and faults in all.

    Returns:
        All rows of the folder.

    Raises:
        UserError: no such fault, or a process does not start. A fault that cannot be brought about on this machine is a
            row that says so in ``note``.
    """
    for name in only:
        if name not in CASES:
            raise unknown_name("fault", name, list(CASES))
    file = out / ROWS
    done = {row["case"] for row in read_rows(file)}
    names = [name for name in CASES if name not in done and (not only or name in only)]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="splitsight-faults-") as folder:
        stage = Stage(Path(folder), pace or Pace(), target=target, split=split, video=video, models=models)
        with stage:
            for number, name in enumerate(names):
                if progress is not None:
                    progress(number, len(names))
                try:
                    row = CASES[name](stage).to_dict()
                except NotHere as error:
                    row = {"fault": name, "note": f"not measured: {error}"}
                line = json.dumps({"case": name, **row}, ensure_ascii=False)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(_OWN_FOLDER.sub("…/", line) + "\n")
    return read_rows(file)
