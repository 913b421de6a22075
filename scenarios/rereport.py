"""``splitsight report``: page, video and figures of a run whose parts were started by hand, or of one that is there.

The adversary's folder says what was attacked and how (its recording and ``live.jsonl``). The originals and the answers
are the edge's: ``--truth`` and ``--report`` of ``splitsight edge``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.headline import default_evaluators, default_gallery
from scenarios.join import Join, Lines
from splitsight.errors import UserError
from splitsight.recording import Recording

if TYPE_CHECKING:
    from splitsight.evaluators import Evaluator
    from splitsight.metrics.gallery import Gallery
    from splitsight.targets import Target

__all__ = ["ReportOptions", "beholders", "frame_rate", "report_run", "told"]


@dataclass(frozen=True)
class ReportOptions:
    """What to report.

    Attributes:
        folder: of the adversary, or of a demonstration.
        truth: folder of the edge's originals; by default ``truth`` in the folder.
        edge: file of the edge's answers; by default ``edge.jsonl`` in the folder, or beside the originals.
        gallery: distractors; by default the package's.
        gallery_size: images that an original is found among, itself included.
        gallery_features: where they are compared.
        evaluators: independent classifiers; by default the package's.
        weights: of the target, where the session did not run the default ones.
        command: that the page names, where the run itself does not say.
    """

    folder: Path
    truth: Path | None = None
    edge: Path | None = None
    gallery: Path | None = None
    gallery_size: int = 1000
    gallery_features: str = "pixels"
    evaluators: Sequence[str] = ()
    weights: Path | None = None
    command: str = ""


def told(folder: Path) -> dict[str, Any]:
    """What the adversary said of itself; of a demonstration, what its summary says."""
    setup = next((event for event in Lines(folder / "live.jsonl").new() if event.get("event") == "setup"), {})
    try:
        run = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["environment"]["run"]
    except (OSError, ValueError, KeyError, TypeError):
        run = {}
    return {"attack": run.get("solver", ""), **run, **setup}


def frame_rate(join: Join) -> tuple[float, float]:
    """Frames a second of a stream, as its capture times have it (2 where they tell nothing), and its seconds."""
    timed = [(r.sequence, r.capture_time_us / 1e6) for r in join.rows() if r.capture_time_us is not None]
    # frames that were never answered count too
    count, span = (b - a for a, b in zip(timed[0], timed[-1], strict=True)) if timed else (0, 0.0)
    return (round(count / span, 2) if span else 2.0), span


def beholders(options: ReportOptions, target: Target, seed: int) -> tuple[Gallery, list[Evaluator]]:
    """The gallery among which originals are looked for, and the classifiers that look at reconstructions.

    Raises:
        UserError: there is no such file or classifier.
    """
    from scenarios.evaluation import load_evaluators
    from splitsight.metrics.gallery import Gallery

    gallery = Gallery.draw(
        options.gallery or default_gallery(),
        target,
        size=options.gallery_size,
        features=options.gallery_features,
        seed=seed,
        spare=True,
    )
    names = default_evaluators(options.evaluators, target.name)
    return gallery, load_evaluators(names, target.synonyms, target.digest, target.name)


def report_run(options: ReportOptions, progress: Callable[[str], None] | None = None) -> Path:
    """Write the report into the folder.

    Args:
        options: what to report.
        progress: called with a word for each step.

    Returns:
        ``index.html``.

    Raises:
        UserError: no run there, or the originals are missing.
    """
    folder = options.folder
    if not (folder / "recording").is_dir():
        raise UserError(f"{folder} holds no run: give the folder that `splitsight adversary --out` or `demo` wrote")
    session = Recording.open(folder / "recording").session
    truth = options.truth or folder / "truth"
    if not any(truth.glob("*.png")):
        raise UserError(
            f"{truth} holds no originals (000000.png …): give the folder that the edge's --truth wrote, with --truth"
        )
    edge = options.edge or next((f for f in (folder / "edge.jsonl", truth.parent / "edge.jsonl") if f.is_file()), None)
    if edge is None or not edge.is_file():
        raise UserError(
            f"no answers of the edge in {edge or folder / 'edge.jsonl'}: give the file that its --report wrote, with "
            "--edge-report"
        )
    from scenarios.report import RunInfo, write_report
    from splitsight import targets

    about, said = session.about, told(folder)
    target = targets.load(about.target, options.weights)
    join = Join(folder, truth=truth, edge=edge)
    join.poll()
    fps, span = frame_rate(join)
    info = RunInfo(
        target=about.target,
        split=about.split,
        video=str(said.get("video", "")),
        solver=str(said.get("attack", "")),
        threat=str(said.get("threat", "")),
        fps=float(said.get("fps") or fps),
        frames=int(said.get("frames", 4)),
        stride=float(said.get("stride_s", 0.5)),
        seed=int(said.get("seed", 0)),
        prior=str(said.get("prior", "")),
        complete=bool(said.get("complete", True)),
        seconds=span,
        previews=bool(said.get("preview", True)),
        weights=dict(said.get("weights", {})),
        session=about.to_dict(),
        command=str(said.get("command") or options.command),
        classes=len(target.labels),
        points=list(target.aliases),
        warning=str(said.get("warning", "")),
    )
    gallery, judges = beholders(options, target, info.seed)
    write_report(folder, join, info, gallery=gallery, evaluators=judges, progress=progress)
    return folder / "index.html"
