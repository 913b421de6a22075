"""What a run leaves: ``rows.parquet``, ``summary.json``, ``demo.mp4``, ``grid.png`` and ``index.html``.

Every file is written from the run's folder alone, so a report can be made of whatever an interrupted run
has left behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scenarios.evaluation import asked_beside, named
from scenarios.join import TIERS, FrameRow, Join
from scenarios.page import render_page
from splitsight.data import to_tensor, write_png
from splitsight.evaluators import Evaluator
from splitsight.files import write_parquet, write_text
from splitsight.metrics import Batch, image_metrics, mean_interval, percentile, proportion_interval
from splitsight.metrics import measure as images_measured
from splitsight.metrics.gallery import Gallery
from splitsight.network import NetworkProfile
from splitsight.pictures import Panel, grid, panels, spread, write_video
from splitsight.pipeline import resized
from splitsight.summary import environment, write_summary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["RunInfo", "measure", "panels_of", "serving", "summarise", "write_report", "write_rows"]

_GRID_FRAMES = 6
_OF_METHODS = ("seconds_per_image", "iterations", "model_evaluations")
"""What of a method the live tier of the same name does not say in the summary, too."""


@dataclass(frozen=True)
class RunInfo:
    """What a report says about the run itself.

    Attributes:
        target: name of the split network.
        split: name of the split point.
        video: what was played.
        solver: of the window tier.
        threat: ``white-box`` or ``black-box``.
        fps: frames a second that were asked for.
        frames: K, frames of a window.
        stride: seconds between the frames of a window.
        seed: of the adversary's draws.
        prior: name or folder of the generative prior.
        complete: whether the run went to its end.
        seconds: wall-clock seconds of streaming.
        peak_rss_mb: per process, 10⁶ bytes.
        previews: whether single frames were shown at once.
        weights: digests by role.
        session: what the edge did, as :meth:`splitsight.wire.sessions.SessionDescription.to_dict` says it.
        accounting: what its defence costs and guarantees.
        network: that was emulated between edge and server; ``None`` for a connection as it is.
        options: resolved options, for the page.
        undefended: the same frames played without the defence.
        command: that made the run, as it can be typed again.
        classes: that the network knows; 0 where its answers are no classes, or that is not known.
        points: split points of the target, from the first to the last.
        warning: what was said before the start, of a machine that is too slow for the attack.
    """

    target: str
    split: str
    video: str
    solver: str
    fps: float
    threat: str = "white-box"
    frames: int = 4
    stride: float = 0.5
    seed: int = 0
    prior: str = "small"
    complete: bool = True
    seconds: float = 0.0
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    previews: bool = True
    weights: dict[str, str] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    accounting: dict[str, Any] = field(default_factory=dict)
    network: NetworkProfile | None = None
    options: dict[str, Any] = field(default_factory=dict)
    undefended: Join | None = None
    command: str = ""
    classes: int = 0
    points: Sequence[str] = ()
    warning: str = ""

    @property
    def title(self) -> str:
        """What was attacked by whom: target, split, defence, threat model and solver, for headings."""
        return f"{self.target} at {self.split}{self.defended} · {self.threat} · {self.solver}"

    @property
    def defended(self) -> str:
        """``, `` and the defence with its parameters, for a heading; empty where nothing is done."""
        defense = self.session.get("defense", UNDEFENDED)
        return "" if defense == UNDEFENDED else f", {defense}"


def measure(
    join: Join, gallery: Gallery | None = None, *, evaluators: Sequence[Evaluator] = (), batch: int = 64
) -> None:
    """Measure every tier of every frame whose truth is known, and that was not measured before.

    Args:
        join: its rows are filled.
        gallery: fill the ranks of the true frames among its images, too.
        evaluators: what they say is filled in, too.
        batch: frames at once.
    """
    for tier in TIERS:
        pairs = []
        for row in join.rows():
            if tier in row.lag_ms and tier not in row.judged:
                truth, image = join.image("truth", row.sequence), join.image(tier, row.sequence)
                if truth is not None and image is not None:
                    pairs.append((row, image, truth))
        if not pairs:
            continue
        rows = [row for row, *_ in pairs]
        images, truths = (to_tensor(np.stack([pair[i] for pair in pairs])) for i in (1, 2))
        images = resized(images, truths.shape[-1])
        for at in range(0, len(rows), batch):
            part = slice(at, at + batch)
            found = images_measured(image_metrics(), Batch(reconstruction=images[part], original=truths[part]))
            for name, values in found.items():
                for row, value in zip(rows[part], values, strict=True):
                    row.measured.setdefault(name, {})[tier] = value
        # frames of one clip are too alike to be found among each other
        lineup = None if gallery is None else gallery.against(truths)
        for name, values in asked_beside(evaluators, images, truths, lineup=lineup).items():
            for row, value in zip(rows, values, strict=True):
                row.measured.setdefault(name, {})[tier] = value
        if gallery is not None:
            for row, rank in zip(rows, gallery.against(truths).ranks(images), strict=True):
                row.rank[tier] = rank
        for row in rows:
            row.judged.add(tier)


def write_rows(
    path: Path,
    rows: Sequence[FrameRow],
    session: Mapping[str, Any] | None = None,
    undefended: Join | None = None,
    evaluators: Sequence[Evaluator] = (),
) -> None:
    """One row a frame; see :class:`scenarios.join.FrameRow` for the units. Appears complete or not at all.

    Args:
        path: of the Parquet file.
        rows: frames in order.
        session: what the edge did; stands in every row as JSON.
        undefended: the same frames without the defence; adds their answers and figures as ``undefended_…``.
        evaluators: whose answers are there.
    """
    floats, columns = pa.float64(), {}
    columns["sequence"] = pa.array([r.sequence for r in rows], pa.int64())
    columns["capture_time_us"] = pa.array([r.capture_time_us for r in rows], pa.int64())
    columns["answered"] = pa.array([r.answered for r in rows], pa.bool_())
    columns["says"] = pa.array([r.says or None for r in rows], pa.string())
    columns["answer"] = pa.array([json.dumps(r.answer) if r.answer else None for r in rows], pa.string())
    columns["prediction"] = pa.array([r.prediction or None for r in rows], pa.string())
    columns["probability"] = pa.array([_known(r.probability) for r in rows], floats)
    label = pa.struct([("index", pa.int64()), ("name", pa.string()), ("probability", pa.float64())])
    columns["top"] = pa.array([r.top for r in rows], pa.list_(label))
    columns["rtt_ms"] = pa.array([_known(r.rtt_ms) for r in rows], floats)
    columns["bytes"] = pa.array([r.bytes for r in rows], pa.int64())
    columns["epsilon"] = pa.array([_known(r.epsilon) for r in rows], floats)
    if undefended is not None:
        plain = [undefended.frames.get(r.sequence, FrameRow(r.sequence)) for r in rows]
        columns["undefended_says"] = pa.array([r.says or None for r in plain], pa.string())
        columns["undefended_prediction"] = pa.array([r.prediction or None for r in plain], pa.string())
        for tier in TIERS:
            for metric in image_metrics():
                seen = [_known(r.measured.get(metric.name, {}).get(tier)) for r in plain]
                columns[f"undefended_{tier}_{metric.name}"] = pa.array(seen, floats)
    for tier in TIERS:
        for name in dict.fromkeys(metric.column for metric in [*image_metrics(), *named(evaluators)]):
            seen = [_number(r.measured.get(name, {}).get(tier)) for r in rows]
            columns[f"{tier}_{name}"] = pa.array(seen, floats)
        columns[f"{tier}_lag_ms"] = pa.array([_known(r.lag_ms.get(tier)) for r in rows], floats)
        columns[f"{tier}_rank"] = pa.array([r.rank.get(tier) for r in rows], pa.int64())
        columns[f"{tier}_skipped"] = pa.array([tier in r.skipped for r in rows], pa.bool_())
    columns["window"] = pa.array([r.window if r.window >= 0 else None for r in rows], pa.int64())
    columns["on_time"] = pa.array([r.on_time if r.window >= 0 else None for r in rows], pa.bool_())
    columns["defense"] = pa.array([(session or {}).get("defense")] * len(rows), pa.string())
    columns["session"] = pa.array([json.dumps(session) if session else None] * len(rows), pa.string())
    columns["best_tier"] = pa.array([r.best_tier() for r in rows], pa.string())
    write_parquet(path, pa.table(columns))


def _number(value: Any) -> float | None:
    return None if value is None else _known(float(value))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def serving(join: Join) -> dict[str, Any]:
    """The summary's ``serving``: frames, lost, fps, p50_ms, p99_ms."""
    rows = [r for r in join.rows() if r.answered]
    times = [r.capture_time_us for r in rows if r.capture_time_us is not None]
    span = (max(times) - min(times)) / 1e6 if len(times) > 1 else 0.0
    rtt = [r.rtt_ms for r in rows]
    return {
        "frames": len(rows),
        "lost": max(0, join.captured() - len(rows)),
        "fps": round((len(times) - 1) / span, 3) if span > 0 else None,
        "p50_ms": percentile(rtt, 50),
        "p99_ms": percentile(rtt, 99),
    }


def summarise(
    join: Join,
    info: RunInfo,
    environment: dict[str, Any],
    gallery: Gallery | None = None,
    evaluators: Sequence[Evaluator] = (),
) -> dict[str, Any]:
    """``summary.json`` of a live run, schema ``splitsight.summary/1``; with a gallery it has ``match`` sections."""
    methods: dict[str, Any] = {}
    for tier in TIERS:
        rows = [r for r in join.rows() if tier in r.psnr]
        if not rows:
            continue
        windows = [join.windows[n] for n in sorted({r.window for r in rows if r.window >= 0}) if n in join.windows]
        if tier == "window":
            images = sum(len(w["sequences"]) for w in windows)
            seconds = _total(windows, "seconds") / images if images else None
            iterations = _mean_of([float(w.get("iterations", math.nan)) for w in windows])
            # one image's share, as `splitsight attack` counts them
            evaluations = _mean_of([w.get("model_evaluations", math.nan) / len(w["sequences"]) for w in windows])
        else:
            seconds, iterations, evaluations = _mean_of([r.lag_ms[tier] / 1e3 for r in rows]), 0.0, 0.0
        methods[tier] = {
            "n": len(rows),
            **{
                m.name: m.interval(m.value(r.measured.get(m.column, {}).get(tier)) for r in rows)
                for m in [*image_metrics(), *named(evaluators)]
            },
            "seconds_per_image": seconds,
            "iterations": iterations,
            "model_evaluations": evaluations,
            **({} if gallery is None else {"match": gallery.summary([r.rank[tier] for r in rows])}),
        }
    lags = [float(w["lag_ms"]) for w in join.windows.values()]
    return {
        "schema": "splitsight.summary/1",
        "target": info.target,
        "split": info.split,
        "methods": methods,
        "serving": serving(join),
        "live": {
            "windows": len(join.windows) + join.skipped_windows,
            "windows_on_time": sum(bool(w.get("on_time")) for w in join.windows.values()),
            "lag_ms": {"p50": percentile(lags, 50), "p99": percentile(lags, 99)},
            "frames_skipped": join.skipped(),
            "tiers": {
                tier: {
                    **{name: figure for name, figure in methods[tier].items() if name not in _OF_METHODS},
                    "lag_ms": {
                        f"p{q}": percentile([r.lag_ms[tier] for r in join.rows() if tier in r.lag_ms], q)
                        for q in (50, 99)
                    },
                }
                for tier in methods
            },
            **_epsilon(join.edge),
            **({} if info.undefended is None else {"undefended": _undefended(join, info.undefended)}),
        },
        "environment": {
            **environment,
            **({"session": info.session, "defense": info.accounting} if info.session else {}),
            "run": {
                "complete": info.complete,
                "video": info.video,
                "threat": info.threat,
                "solver": info.solver,
                "prior": info.prior,
                "frames": info.frames,
                "stride_s": info.stride,
                "fps": info.fps,
                "seed": info.seed,
                "seconds": round(info.seconds, 2),
                "peak_rss_mb": info.peak_rss_mb,
                "network": None if info.network is None else info.network.to_dict(),
                "command": info.command,
                "classes": info.classes,
                "warning": info.warning,
            },
        },
    }


def _epsilon(edge: Path) -> dict[str, Any]:
    """``epsilon``, as the edge left it; nothing where it left none, or nothing is guaranteed."""
    try:
        found = json.loads(edge.with_suffix(".summary.json").read_text(encoding="utf-8")).get("epsilon") or {}
    except (OSError, ValueError):
        return {}
    return {"epsilon": found} if found.get("frame") is not None else {}


def _undefended(join: Join, plain: Join) -> dict[str, Any]:
    agrees = join.agreement(plain)
    # frames that only one of the runs had say nothing about the defence
    rows = [r for r in plain.rows() if r.answered and r.sequence in join.frames and join.row(r.sequence).answered]
    tiers = {
        tier: {
            "n": len(seen),
            **{m.name: m.interval(r.measured.get(m.name, {}).get(tier) for r in seen) for m in image_metrics()},
        }
        for tier in TIERS
        if (seen := [r for r in rows if tier in r.psnr])
    }
    return {
        "frames": len(rows),
        "agreement": proportion_interval(agrees) if agrees else None,
        "tiers": tiers,
    }


def _mean_of(values: Sequence[float]) -> float | None:
    return mean_interval(values)["mean"]


def _total(windows: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(float(w.get(name, w["lag_ms"] / 1e3)) for w in windows))


def _figures(row: FrameRow, tier: str, gallery: int = 0) -> str:
    """What a person asks first: recognised, found; then decibels."""
    parts = []
    seen = [values[tier] for name, values in row.measured.items() if name.startswith("recognised") and tier in values]
    if seen and seen[0] is not None:
        parts.append("recognised" if seen[0] else "not recognised")
    place = next((v[tier] for k, v in row.measured.items() if k.startswith("match_rank:") and tier in v), None)
    if (place := row.rank.get(tier) if place is None else place) is not None:
        parts.append("found first" if place == 1 else f"place {int(place):,}")
    if tier in row.psnr:
        parts.append(f"{row.psnr[tier]:.1f} dB")
    return " · ".join(parts)


def _lag(row: FrameRow, tier: str) -> str:
    if tier not in row.lag_ms:
        return ""
    lag = row.lag_ms[tier]
    return f", +{lag:.0f} ms" if lag < 1000 else f", +{lag / 1e3:.1f} s"


def panels_of(join: Join, row: FrameRow, info: RunInfo) -> list[Panel]:
    """Original, preview and window of one frame; a tier that is missing shows the best one there is and says so.

    A run without any previews has no panel for them.
    """
    known = f" (of {info.classes} classes)" if info.classes else ""
    cloud = f"cloud: {row.says}{known}" if row.says else "no answer from the cloud"
    preview, window = join.image("preview", row.sequence), join.image("window", row.sequence)
    figures = _figures(row, "preview")
    if window is not None:
        late = "" if row.on_time else " (late)"
        # a window without time for one step is what it starts from
        name = "window" if row.stepped or info.threat != "white-box" else "window, no step"
        last = Panel(window, f"{name}{_lag(row, 'window')}{late}", _figures(row, "window"))
    elif preview is not None:
        last = Panel(preview, "no window: preview shown", figures)
    else:
        last = Panel(None, "no window")
    shown = [Panel(join.image("truth", row.sequence), "original, never sent", cloud)]
    if info.undefended is not None:
        shown.append(_undefended_panel(info.undefended, row.sequence))
    if not info.previews:
        return [*shown, last]
    return [
        *shown,
        Panel(preview, f"preview{_lag(row, 'preview')}" if preview is not None else "no preview", figures),
        last,
    ]


def _undefended_panel(plain: Join, sequence: int) -> Panel:
    """The best reconstruction of the same frame without the defence, and what the cloud answered to it."""
    row = plain.frames.get(sequence, FrameRow(sequence))
    tier = row.best_tier()
    if tier is None:
        return Panel(None, "undefended")
    psnr = f"{row.psnr[tier]:.1f} dB · " if tier in row.psnr else ""
    return Panel(plain.image(tier, sequence), f"undefended, {tier}", f"{psnr}cloud: {row.says or 'no answer'}")


def _moments(join: Join, rows: Sequence[FrameRow], info: RunInfo) -> list[str]:
    """When each frame was captured, in words."""
    first = next((r.capture_time_us for r in rows if r.capture_time_us is not None), 0)
    said = []
    for row in rows:
        at = f", {(row.capture_time_us - first) / 1e6:.1f} s" if row.capture_time_us is not None else ""
        # the pictures' font has no Greek
        spent = "" if math.isnan(row.epsilon) else f", epsilon {row.epsilon:,.4g} so far"
        said.append(f"frame {row.sequence}{at}{spent}")
    return said


def write_report(
    out: Path,
    join: Join,
    info: RunInfo,
    *,
    gallery: Gallery | None = None,
    evaluators: Sequence[Evaluator] = (),
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write all five files into ``out``.

    Args:
        out: the run's folder.
        join: of that folder, polled to the end.
        info: about the run.
        gallery: images among which the true frames are to be found.
        evaluators: classifiers that look at the reconstructions.
        progress: called with a word for each step.

    Returns:
        The summary.

    Raises:
        UserError: the video cannot be encoded, the disk is full, or the folder cannot be written to.
    """
    say = progress or (lambda word: None)
    rows = join.rows()
    say("measuring")
    measure(join, gallery, evaluators=evaluators)
    if info.undefended is not None:
        measure(info.undefended)
    write_rows(out / "rows.parquet", rows, info.session, info.undefended, evaluators)
    weights = info.weights | {f"evaluator:{judge.name}": judge.digest for judge in evaluators}
    summary = summarise(join, info, environment(weights), gallery, evaluators)
    write_summary(out / "summary.json", summary)
    shown = [r for r in rows if join.image("truth", r.sequence) is not None]
    when, chosen = [], []
    if shown:
        say("encoding demo.mp4")
        when = _moments(join, shown, info)
        video = (
            panels(panels_of(join, row, info), f"{info.title} · {at}") for row, at in zip(shown, when, strict=True)
        )
        write_video(out / "demo.mp4", video, info.fps)
        best = [r for r in shown if "window" in r.lag_ms] or shown
        chosen = [panels_of(join, best[i], info) for i in spread(len(best), _GRID_FRAMES)]
        write_png(out / "grid.png", grid(chosen, f"{info.title} · reconstructed from the features alone"))
    say("writing index.html")
    frames = [(at, panels_of(join, row, info)) for at, row in zip(when, shown, strict=True)]
    page = render_page(out, rows, summary, info.options, frames, chosen, info.points)
    write_text(out / "index.html", page)
    return summary
