"""What can be taken away while the run goes on: a clip of the last seconds, the report so far.

Made one at a time, in a thread at low priority, from the files of the run alone. A report is made again where something
came since the last one, and then only what came is measured.
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.background import BackgroundTask

from scenarios.demo import report, run_info
from scenarios.join import TIERS, Join
from scenarios.priority import step_back
from splitsight.errors import UserError
from splitsight.pictures import panels, write_video

if TYPE_CHECKING:
    from scenarios.web.joined import JoinedPart, JoinedRun
    from scenarios.web.run import WebRun, _Part

__all__ = ["REPORTED", "Reports", "clip", "exports", "zipped"]

REPORTED = ("index.html", "demo.mp4", "grid.png", "summary.json", "rows.parquet")
"""What a report consists of."""
_LONGEST_S = 120.0


def clip(run: WebRun | JoinedRun, seconds: float, path: Path) -> None:
    """Original, preview and window of the last frames, as a video.

    Args:
        run: whose current part.
        seconds: of the stream.
        path: ``*.mp4``.

    Raises:
        UserError: there is nothing yet, or the disk is full.
    """
    from scenarios.report import panels_of

    if (part := run.part) is None:
        raise UserError("there is no frame yet: wait for the first one")
    join = part.join.again()
    info = run_info(part, part.children, complete=False)
    # the newest frames have no window yet
    rows = [row for row in join.rows() if row.answered and row.lag_ms]
    rows = rows[-max(1, round(seconds * part.options.fps)) :]
    header = f"{info.target} at {info.split}, {info.threat}, {info.solver}{info.defended}: from the features alone"
    if not write_video(path, (panels(panels_of(join, row, info), header) for row in rows), part.options.fps):
        raise UserError("there is no frame yet: wait for the first one")


class Reports:
    """Reports of a run's parts, each made again only where something came.

    Args:
        run: whose parts.
    """

    def __init__(self, run: WebRun | JoinedRun) -> None:
        self._run = run
        self._joins: dict[Path, Join] = {}
        self._made: dict[Path, tuple[object, ...]] = {}

    def of(self, part: _Part | JoinedPart) -> bool:
        """Write the report of a part as it is now; whether there is one."""
        join = self._joins.setdefault(part.out, part.join.again())
        join.poll()
        answered = sum(row.answered for row in join.rows())
        # the options name the attack and the prompt, which a page may change within a part
        state = part.options, answered, len(join.windows), *(sum(t in row.lag_ms for row in join.rows()) for t in TIERS)
        final = getattr(part, "reported", False) and (part.out / "index.html").is_file()
        if not answered or final or self._made.get(part.out) == state:
            return bool(answered)
        name = f" of {part.out.name}" if len(self._run.parts) > 1 else ""
        report(part, part.children, complete=False, join=join, progress=lambda word: self._say(f"{word}{name}"))
        self._made[part.out] = state
        return True

    def _say(self, words: str) -> None:
        self._run.exporting = f"The report is being made: {words}"


def zipped(run: WebRun | JoinedRun, reports: Reports, path: Path) -> None:
    """Write the report of each part as it is now, and put them into one archive.

    Args:
        run: whose parts.
        reports: of the same run.
        path: ``*.zip``.

    Raises:
        UserError: there is nothing yet, or the disk is full.
    """
    found = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in list(run.parts):
            if not reports.of(part):
                continue
            for name in REPORTED:
                if (file := part.out / name).is_file():
                    archive.write(file, str(Path(run.out.name) / file.relative_to(run.out)))
                    found += 1
    if not found:
        raise UserError("there is nothing to report yet: wait for the first frames")


def exports(app: FastAPI, run: WebRun | JoinedRun) -> None:
    """Add both to a server."""
    reports = Reports(run)
    worker = ThreadPoolExecutor(1, thread_name_prefix="export", initializer=step_back)

    @app.get("/export/clip.mp4")
    async def clip_of(seconds: float = 20.0) -> Response:
        if not 0 < seconds <= _LONGEST_S:
            return PlainTextResponse(f"give between 0 and {_LONGEST_S:g} seconds\n", status_code=422)
        return await _made(worker, run, lambda path: clip(run, seconds, path), ".mp4", "video/mp4")

    @app.get("/export/report.zip")
    async def report_of() -> Response:
        return await _made(worker, run, lambda path: zipped(run, reports, path), ".zip", "application/zip")


async def _made(
    worker: ThreadPoolExecutor, run: WebRun | JoinedRun, make: Callable[[Path], None], suffix: str, kind: str
) -> Response:
    def made(path: Path) -> None:
        run.exporting = "The clip is being made." if suffix == ".mp4" else "The report is being made."
        try:
            make(path)
        finally:
            run.exporting = ""

    with NamedTemporaryFile(prefix="splitsight-", suffix=suffix, delete=False) as file:
        path = Path(file.name)
    try:
        await asyncio.get_running_loop().run_in_executor(worker, made, path)
    except UserError as error:
        path.unlink(missing_ok=True)
        return PlainTextResponse(f"{error}\n", status_code=409)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    name = f"splitsight-{run.options.split}{suffix}"
    done = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type=kind, filename=name, background=done)
