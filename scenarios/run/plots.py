"""The plots of a scenario's page, by plotly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.run.figures import falls, measured
from splitsight.defenses import parse_defense
from splitsight.metrics import METRICS, Metric
from splitsight.summary import CellSummary, Interval

if TYPE_CHECKING:
    from scenarios.benchmark import Curve

__all__ = ["SYMBOLS", "as_html", "curves", "new_figure", "palette", "plane", "quality", "sweeps", "time"]

_COLOURS = (
    "#c2410c",
    "#0f766e",
    "#1d4ed8",
    "#a16207",
    "#7e22ce",
    "#be123c",
    "#4d7c0f",
    "#0e7490",
    "#57534e",
    "#db2777",
    "#15803d",
    "#4338ca",
)
_DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")


def palette(names: Iterable[str]) -> dict[str, str]:
    """A colour a name."""
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(dict.fromkeys(names))}


def _lines(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A line's style by name; dashes come before colours that are hard to tell apart."""
    few = len(_COLOURS) // 2
    different = list(dict.fromkeys(names))
    return {
        name: {"color": _COLOURS[i % few], "dash": _DASHES[i // few % len(_DASHES)]} for i, name in enumerate(different)
    }


def new_figure(columns: int, rows: int = 1, **options: Any) -> Any:
    """An empty figure of so many panels, in the pages' style."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=rows, cols=columns, **options)
    figure.update_layout(
        height=60 + 380 * rows,
        margin={"l": 60, "r": 16, "t": 40, "b": 56},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": "#16191f"},
        legend={"font": {"size": 11}},
    )
    return figure


def as_html(figure: Any) -> str:
    """A part of a page that loads plotly itself."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


def _bars(intervals: Sequence[Interval | None]) -> dict[str, Any]:
    up = [None if i is None or i.high is None or i.mean is None else i.high - i.mean for i in intervals]
    down = [None if i is None or i.low is None or i.mean is None else i.mean - i.low for i in intervals]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 2}


def _mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _legend(figure: Any, colours: Mapping[str, str], symbols: Mapping[str, str]) -> None:
    """Colours are methods, symbols are splits; one entry each."""
    import plotly.graph_objects as go

    if len(symbols) > 1:
        for name, symbol in symbols.items():
            marker = {"symbol": symbol, "color": "#5b6472", "size": 9}
            figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name), row=1, col=1)
    for name, colour in colours.items():
        marker = {"color": colour, "size": 9}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name), row=1, col=1)


def _plotted(cells: Sequence[CellSummary]) -> list[Metric]:
    return [metric for metric in measured(cells) if metric.plotted]


def _panels(count: int, spacing: float) -> Any:
    """Panels beside each other, closer where there are many."""
    return new_figure(count, horizontal_spacing=min(spacing, 0.4 / max(1, count - 1)))


def _name_axis(figure: Any, metric: Metric, column: int) -> None:
    """Upwards is always better."""
    turned = {} if metric.better == "higher" else {"autorange": "reversed"}
    figure.update_yaxes(title_text=metric.heading, row=1, col=column, **turned)


def _scatter(
    cells: Sequence[CellSummary],
    x: Mapping[str, tuple[float | None, Interval | None]],
    ys: Sequence[Metric],
    scores: Sequence[str] = (),
) -> Any:
    """One panel a metric, and one a score of sets; x by cell identifier."""
    import plotly.graph_objects as go

    panels: list[Metric | str] = [*ys, *scores]
    figure = _panels(len(panels), 0.09)
    colours = palette(cell.label for cell in cells)
    splits = dict.fromkeys(cell.split for cell in cells)
    symbols = {split: SYMBOLS[i % len(SYMBOLS)] for i, split in enumerate(splits)}
    for column, panel in enumerate(panels, 1):
        for cell in cells:
            at, spread = x[cell.cell]
            interval = None if isinstance(panel, str) else cell.interval(panel.name)
            y = cell.scores.get(panel) if isinstance(panel, str) else _mean(interval)
            if at is None or y is None:
                continue
            figure.add_trace(
                go.Scatter(
                    x=[at],
                    y=[y],
                    error_x=_bars([spread]) if spread is not None else None,
                    error_y=_bars([interval]) if interval is not None else None,
                    mode="markers",
                    marker={"color": colours[cell.label], "symbol": symbols[cell.split], "size": 9},
                    name=f"{cell.label} at {cell.split}",
                    showlegend=False,
                ),
                row=1,
                col=column,
            )
        if isinstance(panel, str):
            turned = {"autorange": "reversed"} if falls(panel) else {}
            figure.update_yaxes(title_text=panel.replace("_", " "), row=1, col=column, **turned)
        else:
            _name_axis(figure, panel, column)
    _legend(figure, colours, symbols)
    return figure


def plane(cells: Sequence[CellSummary]) -> str | None:
    """Distortion against perception; ``None`` where nothing perceptual was measured.

    To the right is closer to the original on average, upwards is more recognisable, or more like a natural image:
    a method cannot in general have both (Blau and Michaeli, 2018).
    """
    scores = list(dict.fromkeys(name for cell in cells for name in cell.scores))
    perceptual = [metric for metric in _plotted(cells) if metric.side == "perception"]
    if not cells or not [*perceptual, *scores]:
        return None
    figure = _scatter(cells, {cell.cell: (_mean(cell.psnr), cell.psnr) for cell in cells}, perceptual, scores)
    figure.update_xaxes(title_text=METRICS.get("psnr").heading)
    return as_html(figure)


def time(cells: Sequence[CellSummary]) -> str | None:
    """Quality against seconds an image; ``None`` where no time, or no quality, was measured."""
    timed = [cell for cell in cells if cell.seconds_per_image]
    if not timed:
        return None
    shown = _plotted(timed)
    if not shown:
        return None
    figure = _scatter(timed, {cell.cell: (cell.seconds_per_image, None) for cell in timed}, shown)
    figure.update_xaxes(title_text="seconds an image", type="log")
    return as_html(figure)


def sweeps(cells: Sequence[CellSummary]) -> list[tuple[str, str]]:
    """Metrics over each number that varies between otherwise equal cells: (its name, plot)."""
    import plotly.graph_objects as go

    lines: dict[str, dict[tuple[str, str], list[tuple[float, CellSummary]]]] = defaultdict(lambda: defaultdict(list))
    strengths = {cell.cell: _strength(cell.defense) for cell in cells}
    # where there is no defence, each one's strength is nothing
    none = {key: 0.0 for strength in strengths.values() for key in strength}
    for cell in cells:
        numbers: dict[str, Any] = {**none, **strengths[cell.cell], **cell.options}
        for key, at in numbers.items():
            if isinstance(at, bool) or not isinstance(at, int | float):
                continue
            rest = {k: v for k, v in numbers.items() if k != key}
            same = f"{cell.method} {cell.setting} {cell.prompt}" + "".join(f" {k} {v}" for k, v in rest.items() if v)
            lines[key][(cell.split, same.strip())].append((float(at), cell))
    plots = []
    for key, groups in lines.items():
        varied = {name: sorted(p, key=lambda q: q[0]) for name, p in groups.items() if len({a for a, _ in p}) > 2}
        if not varied:
            continue
        members = [cell for points in varied.values() for _, cell in points]
        shown = _plotted(members)
        if not shown:
            continue
        figure = _panels(len(shown), 0.07)
        lines_of = _lines(f"{same} at {split}" for split, same in varied)
        for column, metric in enumerate(shown, 1):
            for (split, same), points in varied.items():
                intervals = [cell.interval(metric.name) for _, cell in points]
                figure.add_trace(
                    go.Scatter(
                        x=[at for at, _ in points],
                        y=[_mean(i) for i in intervals],
                        error_y=_bars(intervals),
                        mode="lines+markers",
                        line=lines_of[f"{same} at {split}"],
                        name=f"{same} at {split}",
                        legendgroup=f"{same} at {split}",
                        showlegend=column == 1,
                    ),
                    row=1,
                    col=column,
                )
            _name_axis(figure, metric, column)
        places = [at for points in varied.values() for at, _ in points]
        # a range of more than tenfold is one of multiples
        wide = min(places) > 0 and max(places) > 10 * min(places)
        figure.update_xaxes(title_text=key, type="log" if wide else "linear")
        plots.append((key, as_html(figure)))
    return plots


def _strength(defense: str) -> dict[str, float]:
    """The numbers among a defence's parameters that are not at their defaults."""
    given = [(part.name, key, v) for part in parse_defense(defense).parts for key, v in part.parameters if v]
    return {f"{name} {key}": float(v) for name, key, v in given if isinstance(v, int | float)}


def curves(cells: Sequence[CellSummary], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss over the steps, mean over images, one panel a split; ``None`` where no curve was kept.

    Networks have the loss of their training, at each hundredth of it. Settings of the training, which differ in what
    they lower, have panels of their own.
    """
    import plotly.graph_objects as go

    kept: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        if row["curve"]:
            kept[row["cell"]].append(row["curve"])
    shown = [cell for cell in cells if cell.cell in kept]
    if not shown:
        return None
    panel_of = {cell.cell: " ".join([cell.split, *_training(cell)]) for cell in shown}
    panels = list(dict.fromkeys(panel_of.values()))
    figure = new_figure(len(panels), subplot_titles=panels, horizontal_spacing=0.07)
    lines = _lines(cell.label for cell in shown)
    named = set()
    for cell in shown:
        mean = _mean_curve(kept[cell.cell])
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(mean) + 1)),
                y=mean,
                mode="lines",
                line={**lines[cell.label], "width": 1.5},
                name=cell.label,
                legendgroup=cell.label,
                showlegend=cell.label not in named,
            ),
            row=1,
            col=panels.index(panel_of[cell.cell]) + 1,
        )
        named.add(cell.label)
    figure.update_yaxes(type="log")
    figure.update_yaxes(title_text="loss", row=1, col=1)
    trained = all(cell.method.startswith("net-") for cell in shown)
    figure.update_xaxes(title_text="part of the training, %" if trained else "step")
    return as_html(figure)


def _training(cell: CellSummary) -> list[str]:
    """Words for a setting of the training that is not the default one."""
    return [f"trained {cell.options['training']}"] if "training" in cell.options else []


def _mean_curve(found: Sequence[Sequence[float]]) -> list[float | None]:
    """Mean at each step over the images that got that far."""
    longest = max(len(curve) for curve in found)
    table = np.full((len(found), longest), math.nan)
    for row, curve in zip(table, found, strict=True):
        row[: len(curve)] = curve
    counts = np.isfinite(table).sum(0)
    sums = np.where(np.isfinite(table), table, 0).sum(0)
    return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]


def quality(found: Mapping[str, Mapping[str, Curve]], reference: Mapping[str, float | None]) -> str:
    """PSNR and SSIM while attacks run, against time and against evaluations.

    Args:
        found: curves by method, then by axis (``seconds``, ``model_evaluations``).
        reference: measures that are to be reached, each a dotted line; may be empty.
    """
    import plotly.graph_objects as go

    axes = {"seconds": "seconds an image", "model_evaluations": "model evaluations an image"}
    measures = ("psnr", "ssim")
    figure = new_figure(len(axes), len(measures), horizontal_spacing=0.09, vertical_spacing=0.1)
    lines = _lines(found)
    for column, (axis, title) in enumerate(axes.items(), 1):
        for row, measure in enumerate(measures, 1):
            for name, by_axis in found.items():
                own = by_axis[axis]
                figure.add_trace(
                    go.Scatter(
                        # an answer that needed no evaluation has no place on a logarithmic axis but its left end
                        x=np.maximum(own.x, 1.0) if axis == "model_evaluations" else own.x,
                        y=getattr(own, measure),
                        mode="lines",
                        line={**lines[name], "width": 1.8, "shape": "hv"},
                        name=name,
                        legendgroup=name,
                        showlegend=row == column == 1,
                    ),
                    row=row,
                    col=column,
                )
            if reference.get(measure) is not None:
                figure.add_hline(y=reference[measure], line={"dash": "dot", "color": "#5b6472"}, row=row, col=column)
            figure.update_xaxes(type="log", title_text=title, row=row, col=column)
            figure.update_yaxes(title_text=METRICS.get(measure).heading, row=row, col=column)
    return as_html(figure)
