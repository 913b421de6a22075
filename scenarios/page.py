"""``index.html`` of a live run: one self-contained page (pictures, figures, plots, words), readable offline."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from scenarios.explained import diagram, glossary, try_next, who_knew
from scenarios.headline import headline
from scenarios.join import TIERS, FrameRow, left_out
from scenarios.style import DARK, NARROW, STYLE
from splitsight.metrics import METRICS, Metric, metrics_named
from splitsight.pictures import Panel
from splitsight.summary import MATCHED
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["framed", "inlined", "matching", "methods_table", "picture", "render_page"]

_INLINE_LIMIT = 24 * 2**20
_COLOURS = {"preview": "#7c879a", "window": "#d9480f", "rtt": "#0d9488"}
_FRAMES = 600
"""Frames that a page carries at most; of a longer run they are spread evenly."""
_SIDE = 256


def framed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels as a page takes them: ``title``, ``detail`` and ``image``, a data URI or ``None``."""
    return [{"title": p.title, "detail": p.detail, "image": picture(p.image)} for p in panels]


def picture(image: np.ndarray | None) -> str | None:
    """``(h, w, 3)`` uint8 RGB as a data URI, JPEG without thinned colours; ``None`` for none."""
    if image is None:
        return None
    if max(image.shape[:2]) > _SIDE:
        image = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    how = [cv2.IMWRITE_JPEG_QUALITY, 94, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), how)
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _number(value: float | None, digits: int = 1, unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}"


def _interval(value: Mapping[str, float] | None, metric: Metric) -> str:
    mean, span = metric.texts(*(value.get(key) for key in ("mean", "low", "high"))) if value else ("–", "")
    return f"{mean} <small>[{span}]</small>" if span else mean


def inlined(path: Path) -> str:
    """A data URI where the file is of a size that a page can carry, else its name beside the page."""
    if path.stat().st_size > _INLINE_LIMIT:
        return path.name
    kind = {".mp4": "video/mp4", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _plots(rows: Sequence[FrameRow]) -> str:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    timed = [r for r in rows if r.capture_time_us is not None]
    if not timed:
        return "<p>No frame was answered.</p>"
    start = timed[0].capture_time_us or 0
    seconds = [((r.capture_time_us or 0) - start) / 1e6 for r in timed]
    titles = ("PSNR, dB", "lag", "round trip, ms")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=titles)

    def add(row: int, name: str, values: Sequence[float | None], colour: str, **more: Any) -> None:
        style = {"line": {"color": colour, "width": 2}, "marker": {"size": 5}, "mode": "lines+markers"}
        figure.add_trace(go.Scatter(x=seconds, y=values, name=name, **style, **more), row=row, col=1)

    for tier in [tier for tier in TIERS if any(tier in r.lag_ms for r in timed)]:
        add(1, tier, [_finite(r.psnr.get(tier)) for r in timed], _COLOURS[tier], legendgroup=tier)
        lag, more = [_finite(r.lag_ms.get(tier)) for r in timed], {"legendgroup": tier, "showlegend": False}
        add(2, f"{tier}, lag in ms", lag, _COLOURS[tier], **more)
    add(
        3,
        "round trip",
        [_finite(r.rtt_ms) for r in timed],
        _COLOURS["rtt"],
        text=[r.says for r in timed],
        showlegend=False,
    )
    # decades only, in words: between them a logarithmic axis would put bare digits
    decades = {10: "10 ms", 100: "0.1 s", 1_000: "1 s", 10_000: "10 s", 100_000: "100 s", 1_000_000: "1,000 s"}
    ticks = {"tickvals": list(decades), "ticktext": list(decades.values())}
    lags = [v for r in timed for v in r.lag_ms.values() if 0 < v < math.inf] or [1.0]
    low, high = (f(math.log10(end)) for f, end in ((math.floor, min(lags)), (math.ceil, max(lags))))
    figure.update_yaxes(type="log", range=[low, max(high, low + 1)], **ticks, row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title_text="capture time, s", row=3, col=1)
    figure.update_layout(
        height=640,
        margin={"l": 52, "r": 8, "t": 56, "b": 44},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.09, "x": 0},
        font={"family": "system-ui, sans-serif"},
        hovermode="x unified",
    )
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False, "responsive": True})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def methods_table(summary: Mapping[str, Any]) -> str:
    """The figures of each method of a summary, a column a method; what a person asks first, pixels after it."""
    methods: Mapping[str, Mapping[str, Any]] = summary["methods"]
    names = {name for method in methods.values() for name in method}
    measured = [metric for metric in metrics_named(names) if metric.name in names]
    measured.sort(key=lambda metric: metric.side == "distortion")  # stable
    matches = [m["match"] for m in methods.values() if m.get("match")]
    lines: list[tuple[str, list[str]]] = []
    for metric in measured:
        lines.append((metric.heading, [_interval(m.get(metric.name), metric) for m in methods.values()]))
    asked = sum(metric.side != "distortion" for metric in measured)
    for place, (name, key) in enumerate(MATCHED.items() if matches else ()):
        metric, space = METRICS.get(name), matches[0]["features"]
        found = [_interval((m.get("match") or {}).get(key), metric) for m in methods.values()]
        lines.insert(asked + place, (f"{metric.heading} ({space})", found))
    for title, key, digits in (
        ("seconds an image", "seconds_per_image", 3),
        ("iterations", "iterations", 0),
        ("model evaluations", "model_evaluations", 0),
    ):
        lines.append((title, [_number(m[key], digits) for m in methods.values()]))
    head = "".join(f"<th scope='col'>{escape(name)}, {m['n']} images</th>" for name, m in methods.items())
    body = "".join(
        f"<tr><th scope='row'>{escape(title)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in lines
    )
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"


def matching(summary: Mapping[str, Any]) -> str:
    """What the figures of :func:`methods_table` on finding an original mean; nothing where there are none."""
    match = next((m["match"] for m in summary["methods"].values() if m.get("match")), None)
    if match is None:
        return ""
    return (
        f" Found: the part of the images whose reconstruction is more similar to its own original than to "
        f"{match['gallery'] - 1:,} other images, compared in what stands in brackets; guessing finds "
        f"{1 / match['gallery']:.2%}."
    )


def _frames(rows: Sequence[FrameRow]) -> str:
    head = "".join(
        f"<th scope='col'>{h}</th>"
        for h in ("frame", "answer", "round trip, ms", "bytes", "preview, dB", "window, dB", "lag, ms", "on time")
    )
    lines = []
    for r in rows:
        said = escape(r.says) or "–"
        lines.append(
            f'<tr><td>{r.sequence}</td><td class="t">{said}</td><td>{_number(r.rtt_ms)}</td>'
            f"<td>{r.bytes:,}</td><td>{_number(r.psnr.get('preview'))}</td><td>{_number(r.psnr.get('window'))}</td>"
            f"<td>{_number(r.lag_ms.get('window'), 0)}</td>"
            f"<td>{'–' if r.window < 0 else 'yes' if r.on_time else 'no'}</td></tr>"
        )
    return (
        f'<details><summary>All {len(rows)} frames</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="All frames"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        "</details>"
    )


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    served, live = summary["serving"], summary["live"]
    trip = f"median round trip of {served['frames']} answered frames, {served['lost']} lost"
    tiles = [(_number(served["p50_ms"], 1, "ms"), trip)]
    if live["windows"]:
        lag = live["lag_ms"]["p50"]
        shown = "–" if lag is None else f"{lag / 1e3:.1f} s"
        tiles.append((shown, f"median lag of a window; {live['windows_on_time']} of {live['windows']} on time"))
    return tiles


def _undefended(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a defence cost and hid: the privacy that was spent, and the comparison with none where it was made."""
    live, tiles = summary["live"], []
    if agreement := (live.get("undefended") or {}).get("agreement"):
        tiles.append((f"{agreement['mean']:.0%}", "of the answers are the same as without the defence"))
    for tier, m in (live.get("undefended") or {}).get("tiers", {}).items():
        if tier in summary["methods"]:
            mine = summary["methods"][tier]["psnr"]["mean"]
            both = f"{_number(mine)} against {_number(m['psnr']['mean'], 1, 'dB')}"
            tiles.append((both, f"PSNR of the {tier} with the defence and without it"))
    if spent := live.get("epsilon"):
        tiles.append((f"{spent['frame']:.4g}", f"ε of a frame, δ = {spent['delta']:g}"))
        limit = "" if spent["budget"] is None else f", of a budget of {spent['budget']:g}"
        tiles.append((f"{spent['stream']:,.4g}", f"ε of the stream of {spent['frames']} frames{limit}"))
    return tiles


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """Defence and its guarantee, the emulated network, and windows without time, as HTML."""
    environment, live = summary["environment"], summary["live"]
    name = environment.get("session", {}).get("defense", UNDEFENDED)
    notes = []
    if name != UNDEFENDED:
        said = environment.get("defense", {}).get("guarantees") or ["nothing is proven of what the features still tell"]
        notes.append(f"Defence: <b>{escape(name)}</b>. {escape('; '.join(said)).capitalize()}.")
    if live.get("undefended"):
        proven = (
            " So whoever read both runs learnt what the defence would have hidden: its guarantee is for a stream that "
            "is sent with it alone."
            if live.get("epsilon")
            else ""
        )
        notes.append(
            "For comparison the same frames were played without the defence before, with the same "
            f"adversary: “undefended” is the best reconstruction from those features.{proven}"
        )
    run = environment.get("run", {})
    if network := run.get("network"):
        notes.append(
            f"The connection between edge and server was shaped like the network <b>{escape(network['name'])}</b>: "
            f"{escape(network['figures'])}. Round trips include it."
        )
    if warning := run.get("warning"):
        notes.append(f"{escape(warning)}.")
    if left := left_out(live.get("frames_skipped", {})):
        notes.append(
            f"The machine was too slow for all frames, so the adversary stayed with the newest ones and left {left}; "
            "the recording has all of them."
        )
    return notes


def _idle(rows: Sequence[FrameRow], threat: str) -> list[str]:
    """A sentence on windows without a step; a black-box network takes none."""
    idle = {r.window for r in rows if r.window >= 0 and threat == "white-box" and not r.stepped}
    if not idle:
        return []
    which = "One window" if len(idle) == 1 else f"{len(idle)} windows"
    return [
        f"{which} had no time for a single step and show what they started from, the previews: the machine was busy."
    ]


def render_page(
    out: Path,
    rows: Sequence[FrameRow],
    summary: Mapping[str, Any],
    options: Mapping[str, Any],
    frames: Sequence[tuple[str, Sequence[Panel]]] = (),
    shown: Sequence[Sequence[Panel]] = (),
    points: Sequence[str] = (),
) -> str:
    """The page of a run.

    Args:
        out: the run's folder; ``demo.mp4``, ``grid.png`` and others are linked where they exist.
        rows: frames in order.
        summary: as in ``summary.json``.
        options: resolved options of the run.
        frames: when, and the pictures side by side, of each frame to be played.
        shown: pictures side by side, for the frames that stand still.
        points: split points of the target, for what to try next.

    Returns:
        HTML without any reference to another host.
    """
    run = summary["environment"].get("run", {})
    defense = summary["environment"].get("session", {}).get("defense", UNDEFENDED)
    step = max(1, -(-len(frames) // _FRAMES))
    played = [{"when": when, "panels": framed(row)} for when, row in frames[::step]]
    setup = [f"{summary['target']} at {summary['split']}", run.get("threat"), run.get("solver")]
    files = (
        ("demo.mp4", "the video"),
        ("grid.png", "six frames as one picture"),
        ("summary.json", "the figures"),
        ("rows.parquet", "one row a frame"),
    )
    # what the run was called with, where that is known; "video" of the run names the default clip, too
    known = {
        **run,
        "video": None,
        "split": summary["split"],
        "target": summary["target"],
        "defense": defense,
        **options,
    }
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.j2")
    return template.render(
        style=STYLE + DARK + NARROW,
        target=summary["target"],
        split=summary["split"],
        complete=run.get("complete", True),
        setup=" · ".join(str(part) for part in [*setup, defense if defense != UNDEFENDED else None] if part),
        head=headline(summary, TIERS),
        frames=played,
        # "</script>" cannot be in it: JSON in a page has its "<" escaped
        data=json.dumps(played).replace("<", "\\u003c"),
        fps=run.get("fps") or 2,
        tiles=_tiles(summary),
        undefended=_undefended(summary),
        diagram=diagram(summary["target"], summary["split"], defense),
        knew=who_knew(run.get("threat", "")),
        classes=run.get("classes"),
        notes=_notes(summary) + _idle(rows, run.get("threat", "")),
        shown=[{"panels": framed(row)} for row in shown],
        next=try_next(known, points),
        command=run.get("command") or "",
        files=[(name, what) for name, what in files if (out / name).is_file()],
        plots=_plots(rows),
        figures=methods_table(summary),
        matching=matching(summary),
        table=_frames(rows),
        glossary=glossary(),
        options=json.dumps(dict(options), indent=2, default=str),
        environment=json.dumps(summary["environment"], indent=2, default=str),
    )
