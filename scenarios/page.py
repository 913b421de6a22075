"""``index.html`` of a live run: one self-contained page (video, grid, plots, tables), readable offline."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scenarios.join import TIERS, FrameRow
from splitsight.metrics import METRICS, Metric, metrics_named
from splitsight.summary import MATCHED
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["STYLE", "inlined", "matching", "methods_table", "render_page"]

_INLINE_LIMIT = 24 * 2**20
_COLOURS = {"preview": "#8a94a6", "window": "#c2410c", "rtt": "#0f766e"}

_KNOWN = {
    "white-box": " and the model’s weights",
    "black-box": " and a network that had learnt from an oracle’s answers, neither the model nor its weights",
}
"""What an adversary had besides the features, by threat model."""

STYLE = """
:root{--ink:#16191f;--soft:#5b6472;--line:#e3e6eb;--paper:#fff;--tint:#f6f7f9;--mark:#c2410c}
*{box-sizing:border-box}body{margin:0;background:var(--tint);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 72px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:19px;margin:44px 0 12px}p.lead{color:var(--soft);max-width:68ch;margin:0 0 24px}
.card+p.lead{margin-top:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:12px;margin:0 0 28px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
figure{margin:0;background:#11141a;border-radius:8px;overflow:hidden}
video,img{display:block;width:100%;height:auto}.card{background:var(--paper);border:1px solid var(--line);
border-radius:8px;padding:12px}.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.t{text-align:left}th{color:var(--soft);font-weight:600}
tbody tr:last-child td{border-bottom:0}td small{color:var(--soft)}details summary{cursor:pointer;color:var(--soft);
margin:8px 0}pre{white-space:pre-wrap;word-break:break-word;font-size:13px;margin:0}
.warn{border-left:4px solid var(--mark);background:#fff7ed;padding:10px 14px;border-radius:4px;margin:0 0 20px}
"""


def _number(value: float | None, digits: int = 1, unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}{' ' + unit if unit else ''}"


def _interval(value: Mapping[str, float] | None, metric: Metric) -> str:
    mean, span = metric.texts(*(value.get(key) for key in ("mean", "low", "high"))) if value else ("–", "")
    return f"{mean} <small>[{span}]</small>" if span else mean


def _tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


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
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.42, 0.29, 0.29])
    for tier in [tier for tier in TIERS if any(tier in r.lag_ms for r in timed)]:
        style = {"line": {"color": _COLOURS[tier], "width": 2}, "marker": {"size": 5}, "mode": "lines+markers"}
        figure.add_trace(
            go.Scatter(x=seconds, y=[_finite(r.psnr.get(tier)) for r in timed], name=tier, legendgroup=tier, **style),
            row=1,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=seconds,
                y=[_finite(r.lag_ms.get(tier)) for r in timed],
                name=f"{tier}, lag",
                legendgroup=tier,
                showlegend=False,
                **style,
            ),
            row=2,
            col=1,
        )
    figure.add_trace(
        go.Scatter(
            x=seconds,
            y=[_finite(r.rtt_ms) for r in timed],
            name="round trip",
            mode="lines+markers",
            line={"color": _COLOURS["rtt"], "width": 2},
            marker={"size": 5},
            text=[r.says for r in timed],
        ),
        row=3,
        col=1,
    )
    figure.update_yaxes(title_text="PSNR, dB", row=1, col=1)
    figure.update_yaxes(title_text="lag, ms", type="log", row=2, col=1)
    figure.update_yaxes(title_text="round trip, ms", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title_text="capture time, s", row=3, col=1)
    figure.update_layout(
        height=620,
        margin={"l": 70, "r": 16, "t": 36, "b": 48},
        template="plotly_white",
        legend={"orientation": "h", "y": 1.06, "x": 0},
        font={"family": "system-ui, sans-serif", "color": "#16191f"},
        hovermode="x unified",
    )
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def methods_table(summary: Mapping[str, Any], title: str = "tier") -> str:
    """The figures of each method of a summary, a row a method; ``title`` heads their names."""
    lines = []
    names = {name for method in summary["methods"].values() for name in method}
    measured = [metric for metric in metrics_named(names) if metric.name in names]
    matches = [m["match"] for m in summary["methods"].values() if m.get("match")]
    for name, m in summary["methods"].items():
        cells = [
            escape(name),
            str(m["n"]),
            *(_interval(m.get(metric.name), metric) for metric in measured),
            _number(m["seconds_per_image"], 3),
            _number(m["iterations"], 0),
            _number(m["model_evaluations"], 0),
        ]
        if matches:
            cells += [_interval((m.get("match") or {}).get(key), METRICS.get(name)) for name, key in MATCHED.items()]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{h}</th>"
        for h in (
            *(title, "images", *(metric.heading for metric in measured)),
            *("s an image", "iterations", "model evaluations"),
            *(METRICS.get(name).heading for name in MATCHED if matches),
        )
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def matching(summary: Mapping[str, Any]) -> str:
    """What the columns of :func:`methods_table` on finding an original mean; nothing where there are none."""
    match = next((m["match"] for m in summary["methods"].values() if m.get("match")), None)
    if match is None:
        return ""
    return (
        f" Found: the part of the images whose reconstruction is more similar to its own original than to "
        f"{match['gallery'] - 1:,} other images, compared in {escape(match['features'])}; guessing finds "
        f"{1 / match['gallery']:.2%}."
    )


def _frames(rows: Sequence[FrameRow]) -> str:
    head = "".join(
        f"<th>{h}</th>"
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
        f'<details><summary>All {len(rows)} frames</summary><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    served, live = summary["serving"], summary["live"]
    tiles = [
        _tile(f"{served['frames']}", f"frames answered, {served['lost']} lost"),
        _tile(_number(served["fps"], 2), "frames a second"),
        _tile(_number(served["p50_ms"], 1, "ms"), f"median round trip, p99 {_number(served['p99_ms'], 1, 'ms')}"),
    ]
    for tier, m in summary["methods"].items():
        tiles.append(_tile(_number(m["psnr"]["mean"], 1, "dB"), f"PSNR of the {tier}"))
        if plain := (live.get("undefended") or {}).get("tiers", {}).get(tier):
            tiles.append(_tile(_number(plain["psnr"]["mean"], 1, "dB"), f"PSNR of the {tier} without the defence"))
    if agreement := (live.get("undefended") or {}).get("agreement"):
        tiles.append(_tile(f"{agreement['mean']:.0%}", "of the answers are the same as without the defence"))
    if spent := live.get("epsilon"):
        tiles.append(_tile(f"{spent['frame']:.4g}", f"ε of a frame, δ = {spent['delta']:g}"))
        limit = "" if spent["budget"] is None else f", of a budget of {spent['budget']:g}"
        tiles.append(_tile(f"{spent['stream']:,.4g}", f"ε of the stream of {spent['frames']} frames{limit}"))
    tiles.append(_tile(f"{live['windows_on_time']} / {live['windows']}", "windows on time"))
    tiles.append(_tile(_number(live["lag_ms"]["p50"], 0, "ms"), "median lag of a window"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _defence(summary: Mapping[str, Any]) -> list[str]:
    """What was done to the features, and what that guarantees; nothing where nothing was done."""
    environment, live = summary["environment"], summary["live"]
    name = environment.get("session", {}).get("defense", UNDEFENDED)
    if name == UNDEFENDED:
        return []
    said = environment.get("defense", {}).get("guarantees") or ["nothing is proven of what the features still tell"]
    parts = [f"<p class='lead'>Defence: <b>{escape(name)}</b>. {escape('; '.join(said)).capitalize()}.</p>"]
    if live.get("undefended"):
        proven = (
            " So whoever read both runs learnt what the defence would have hidden: its guarantee is for a stream that "
            "is sent with it alone."
            if live.get("epsilon")
            else ""
        )
        parts.append(
            "<p class='lead'>For comparison the same frames were played without the defence before, with the same "
            f"adversary: “undefended” is the best reconstruction from those features.{proven}</p>"
        )
    return parts


def render_page(out: Path, rows: Sequence[FrameRow], summary: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        out: the run's folder; ``demo.mp4`` and ``grid.png`` are taken in where they exist.
        rows: frames in order.
        summary: as in ``summary.json``.
        options: resolved options of the run.

    Returns:
        HTML without any reference to another host.
    """
    run = summary["environment"].get("run", {})
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>splitsight demo: {escape(summary['target'])} at {escape(summary['split'])}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        "<h1>What the cloud saw</h1>",
        f"<p class='lead'>An edge device ran {escape(summary['target'])} up to {escape(summary['split'])} and sent "
        "only the features to a cloud server, which ran the rest and answered. A reader at the "
        f"server’s tap had those features{_KNOWN.get(run.get('threat', ''), '')}, never the frames, and reconstructed "
        "them while the stream ran.</p>",
    ]
    parts += _defence(summary)
    if not run.get("complete", True):
        parts.append("<p class='warn'>This run was cut short; the page shows what was recorded until then.</p>")
    if network := run.get("network"):
        parts.append(
            f"<p class='lead'>The connection between edge and server was shaped like the network "
            f"<b>{escape(network['name'])}</b>: {escape(network['figures'])}. Round trips include it.</p>"
        )
    parts.append(_tiles(summary))
    if (out / "demo.mp4").is_file():
        source = inlined(out / "demo.mp4")
        parts.append(f"<figure><video controls autoplay muted loop playsinline src='{source}'></video></figure>")
    if (out / "grid.png").is_file():
        alt = "Columns are frames; rows are the original and its reconstructions by tier"
        parts.append(
            f"<h2>Frames side by side</h2><figure><img alt='{alt}' src='{inlined(out / 'grid.png')}'></figure>"
        )
    parts += [
        "<h2>Quality, lag and latency over time</h2>",
        f"<div class='card'>{_plots(rows)}</div>",
        "<h2>Tiers</h2><div class='card'>",
        methods_table(summary),
        "</div><p class='lead'>Means over frames with 95 % intervals. The lag of a preview counts from when the "
        "adversary had read the frame from the tap, that of a window from its last frame, until the image is a file; "
        "a window is on time when it is done before the next one is complete."
        f"{matching(summary)}</p>",
        "<div class='card'>",
        _frames(rows),
        "</div><h2>Run and environment</h2><div class='card'><details><summary>Options</summary><pre>",
        escape(json.dumps(dict(options), indent=2, default=str)),
        "</pre></details><details><summary>Environment</summary><pre>",
        escape(json.dumps(summary["environment"], indent=2, default=str)),
        "</pre></details></div></main></body></html>",
    ]
    return "\n".join(parts)
