"""The plots of a split report, by plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.splits.figures import Figures, Verdict
from splitsight.metrics import METRICS
from splitsight.summary import Interval

__all__ = ["depth", "plane", "plotted"]

_PARTS = {"edge": "#0f766e", "network": "#a8a29e", "cloud": "#1d4ed8"}
_COLOURS = ("#c2410c", "#7e22ce", "#be123c", "#a16207", "#0e7490", "#57534e")
_INK, _SOFT = "#16191f", "#5b6472"


def _html(figure: Any, height: int) -> str:
    figure.update_layout(
        height=height,
        margin={"l": 52, "r": 46, "t": 12, "b": 96},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": _INK, "size": 12},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
        hovermode="closest",
    )
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})


def plotted(figures: Sequence[Figures]) -> list[str]:
    """The measures of leakage by attack that plots and tables show, the one that says most first."""
    from scenarios.splits.figures import HEADLINES

    known = {name for f in figures for metrics in f.attacks.values() for name in metrics}
    return [name for name in HEADLINES if name in known]


def _bars(intervals: Sequence[Interval | None], scale: float) -> dict[str, Any]:
    def gap(i: Interval | None, end: str) -> float | None:
        edge = None if i is None else getattr(i, end)
        return None if i is None or i.mean is None or edge is None else scale * abs(edge - i.mean)

    up, down = ([gap(i, end) for i in intervals] for end in ("high", "low"))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def depth(figures: Sequence[Figures], verdict: Verdict) -> str:
    """Latency as stacked bars, and what each attack obtains as lines, over the points from shallow to deep."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(specs=[[{"secondary_y": True}]])
    names = [f.point.name for f in figures]
    for part, colour in _PARTS.items():
        values = [getattr(verdict.latency[n], f"{part}_ms") if n in verdict.latency else None for n in names]
        bar = go.Bar(x=names, y=values, name=part, marker={"color": colour}, opacity=0.75)
        figure.add_trace(bar, secondary_y=False)
    measure = verdict.measure
    if measure is not None:
        metric = METRICS.get(measure)
        scale = 100.0 if metric.kind == "share" else 1.0
        for i, attack in enumerate(dict.fromkeys(a for f in figures for a in f.attacks)):
            found = [f.attacks.get(attack, {}).get(measure) for f in figures]
            line = go.Scatter(
                x=names,
                y=[None if x is None or x.mean is None else scale * x.mean for x in found],
                error_y=_bars(found, scale),
                name=f"{metric.title}, {attack}",
                mode="lines+markers",
                line={"color": _COLOURS[i % len(_COLOURS)], "width": 2},
                marker={"size": 7},
                connectgaps=True,
            )
            figure.add_trace(line, secondary_y=True)
        unit = "%" if scale == 100 else metric.unit
        ends: dict[str, Any] = {"rangemode": "tozero"}
        if scale == 100:
            ends = {"range": [0, 108], "tickmode": "array", "tickvals": [0, 25, 50, 75, 100]}
        figure.update_yaxes(title_text=f"{metric.title}{f', {unit}' if unit else ''}", secondary_y=True, **ends)
        figure.update_yaxes(showgrid=False, secondary_y=True)
    figure.update_yaxes(title_text="ms a frame", rangemode="tozero", secondary_y=False)
    figure.update_xaxes(
        type="category", tickangle=-60 if len(names) > 8 else 0, tickfont={"size": 10 if len(names) > 8 else 12}
    )
    figure.update_layout(barmode="stack")
    return _html(figure, 420)


def plane(figures: Sequence[Figures], verdict: Verdict) -> str | None:
    """Latency against leakage, the front joined, the chosen point marked; ``None`` where no leakage is known."""
    import plotly.graph_objects as go

    measure = verdict.measure
    if measure is None:
        return None
    metric = METRICS.get(measure)
    scale = 100.0 if metric.kind == "share" else 1.0
    known = [f for f in figures if f.point.name in verdict.leakage and f.point.name in verdict.latency]
    chosen = verdict.choice.split if verdict.choice else ""
    figure = go.Figure()
    groups: Mapping[str, tuple[list[Figures], dict[str, Any]]] = {
        "other points": ([f for f in known if f.point.name not in verdict.front], {"color": "#a8a29e", "size": 9}),
        "on the front": ([f for f in known if f.point.name in verdict.front], {"color": "#1d4ed8", "size": 10}),
        "recommended": (
            [f for f in known if f.point.name == chosen],
            {"color": "#c2410c", "size": 16, "symbol": "star"},
        ),
    }
    for label, (some, marker) in groups.items():
        some = sorted(some, key=lambda f: verdict.latency[f.point.name].total_ms)
        useful = ["–" if f.utility.mean is None else f"{f.utility.mean:.1%}" for f in some]
        figure.add_trace(
            go.Scatter(
                x=[verdict.latency[f.point.name].total_ms for f in some],
                y=[scale * verdict.leakage[f.point.name] for f in some],
                name=label,
                mode="markers+lines+text" if label == "on the front" else "markers",
                line={"dash": "dot", "width": 1},
                marker=marker,
                text=[f.point.name for f in some],
                textposition="top center",
                textfont={"size": 11, "color": _SOFT},
                customdata=useful,
                hovertemplate="%{text}: %{x:.1f} ms, %{y:.2f}, utility %{customdata}<extra></extra>",
            )
        )
    unit = "%" if scale == 100 else metric.unit
    figure.update_xaxes(title_text=f"ms a frame over {verdict.profile.name}")
    ends: dict[str, Any] = {"range": [-4, 112]} if scale == 100 else {"rangemode": "tozero"}
    figure.update_yaxes(title_text=f"{metric.title} by the strongest{f', {unit}' if unit else ''}", **ends)
    return _html(figure, 420)
