"""What ``splitsight bench attack`` shows of its measurement: a table, a sentence, and ``curves.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scenarios.benchmark import curve
from scenarios.run.figures import measured
from scenarios.run.plots import quality
from scenarios.style import STYLE
from splitsight.files import write_text
from splitsight.metrics import Metric
from splitsight.summary import Interval, Reached, SpeedSummary, Summary

__all__ = ["head", "sentences", "table", "write_page"]


def _measured(interval: Interval | None, metric: Metric) -> str:
    if interval is None:
        return "–"
    mean, span = metric.texts(interval.mean, interval.low, interval.high)
    return f"{mean} [{span}]" if span else mean


def _shown(summary: Summary) -> list[Metric]:
    """Few enough columns for a terminal: variants of a metric are left out."""
    return [metric for metric in measured(summary.methods.values()) if metric.plotted]


def head(summary: Summary) -> list[str]:
    """Headings of :func:`table`."""
    return ["method", "images", *(m.heading for m in _shown(summary)), "s an image", "iterations", "evaluations"]


def table(summary: Summary) -> list[list[str]]:
    """One row a method, under :func:`head`: where each ended."""
    shown = _shown(summary)
    cut = summary.speed.cut if summary.speed else {}
    return [
        [
            name,
            str(found.n),
            *(_measured(found.interval(metric.name), metric) for metric in shown),
            f"{found.seconds_per_image:.1f}",
            f"{found.iterations:.0f}" + (f" of {cut[name][1]} (cut)" if name in cut else ""),
            f"{found.model_evaluations:.0f}",
        ]
        for name, found in summary.methods.items()
    ]


def _part(part: float | None) -> str:
    if part is None:
        return "–"
    return "1/" + f"{1 / part:,.1f}".removesuffix(".0") if part > 0 else "0"


def _when(speed: SpeedSummary, found: Reached, what: str) -> str:
    if found.seconds is None:
        return f"{speed.subject} never had {speed.reference}'s final {what}."
    words = (
        f"{speed.subject} first had {speed.reference}'s final {what} after {found.seconds:.2f} s and "
        f"{found.model_evaluations:.0f} evaluations an image: {_part(found.part_of_seconds)} of its whole time, "
        f"{_part(found.part_of_evaluations)} of its evaluations"
    )
    if found.model_evaluations == 0:
        words += ", with what it starts from"
    if found.reference_first_seconds:
        words += f" ({_part(found.seconds / found.reference_first_seconds)} of the time until it had that itself)"
    return words + "."


def sentences(speed: SpeedSummary) -> list[str]:
    """What was found, one statement each."""
    said = [
        _when(speed, speed.reached_psnr, f"PSNR of {speed.psnr:.2f} dB"),
        _when(speed, speed.reached_ssim, f"SSIM of {speed.ssim:.3f}"),
        _when(speed, speed.reached, "PSNR and SSIM at once"),
    ]
    goal = f"within {_part(speed.goal)} of its time and evaluations"
    if speed.met is None:
        short = ", ".join(f"{name} ({done} of {of})" for name, (done, of) in speed.cut.items())
        said.append(f"Iterations were cut: {short}. Whether it is {goal} takes whole runs; nothing is extrapolated.")
    else:
        said.append(f"It is {'' if speed.met else 'not '}{goal}.")
    if speed.sittings > 1:
        said.append(f"Measured in {speed.sittings} sittings: it was stopped and gone on with.")
    return said


def write_page(file: Path, summary: Summary, rows: Sequence[Mapping[str, Any]]) -> None:
    """``curves.html``: the plot and the figures on one page, readable offline.

    Args:
        file: where.
        summary: of the measurement.
        rows: of its ``curves.parquet``.
    """
    from plotly.offline import get_plotlyjs

    speed = summary.speed
    found = {
        name: {axis: curve(rows, name, axis) for axis in ("seconds", "model_evaluations")} for name in summary.methods
    }
    goals = {} if speed is None else {"psnr": speed.psnr, "ssim": speed.ssim}
    headings = "".join(f"<th>{escape(title)}</th>" for title in head(summary))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table(summary))
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in (sentences(speed) if speed else []))
    dotted = f" Dotted: where {escape(speed.reference)} ended." if speed else ""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitsight: quality against effort</title><style>{STYLE}main{{max-width:1280px}}</style>
<script>{get_plotlyjs()}</script></head><body><main>
<h1>Quality against effort, {escape(summary.target)} at {escape(summary.split)}</h1>
<p class="lead">Mean over images of the best answer so far. Times are the attacks' own, an image; an evaluation is one
pass of an image through F1 or of a latent through the denoiser, with its gradient where there is one.{dotted}</p>
{said}
<div class="card">{quality(found, goals)}</div>
<h2>Where each ended</h2>
<div class="card scroll"><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>
<p class="lead">Means with 95 % intervals over images.</p>
</main></body></html>
"""
    write_text(file, text)
