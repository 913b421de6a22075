"""The page's curves over time, one small chart each; only what is new on the board is sent."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from scenarios.web.state import Board

__all__ = ["Plots"]

TITLES = {
    "quality": "Likeness to the original (PSNR, dB)",
    "lag": "How far the adversary is behind (s)",
    "rtt": "Round trip of a frame (ms)",
    "bytes": "What leaves the device (KiB a frame)",
    "epsilon": "Privacy spent (ε of the stream)",
    "accuracy": "Answers as without the split (%)",
    "tap": "What the tap hands out (KiB a second)",
    "cpu": "Cost: processor time (% of a core)",
}
_COLOURS = ["#3b82d6", "#d97a1c", "#3f9c5f"]
_EVERY = 4  # updates of the page


class Plots:
    """Charts of one tab.

    Args:
        board: whose curves.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._charts: dict[str, tuple[ui.echart, ui.label]] = {}
        self._sent: dict[str, tuple[Any, ...]] = {}
        self._turn = 0
        with ui.element("div").classes("plots"):
            for name, title in TITLES.items():
                with ui.element("section"):
                    ui.html(f"<h3>{title}</h3>", sanitize=False)
                    chart = ui.echart(_options(name)).classes("plot").props('role="img"')
                    chart.props["aria-label"] = title
                    self._charts[name] = chart, ui.label("nothing yet").classes("soft")

    def update(self) -> None:
        """Send the curves that have grown, now and then."""
        self._turn += 1
        if self._turn % _EVERY != 1:
            return
        for name, (chart, label) in self._charts.items():
            curves = self._board.curves(name)
            last = tuple((curve, points[-1]) for curve, points in curves.items())
            if not curves or self._sent.get(name) == last:
                continue
            self._sent[name] = last
            series = [
                {"name": curve, "type": "line", "showSymbol": len(points) < 3, "data": points, "animation": False}
                for curve, points in curves.items()
            ]
            chart.run_chart_method("setOption", {"series": series})
            words = " · ".join(f"{curve}: {points[-1][1]:.4g}" for curve, points in curves.items())
            if label.text != words:
                label.set_text(words)


def _options(name: str) -> dict[str, Any]:
    # from zero, so that a curve looks as high as it is; decibels have no zero that means anything
    ends = {"scale": True} if name == "quality" else {"min": 0, **({"max": 100} if name == "accuracy" else {})}
    grey = "#7b8794"
    return {
        "animation": False,
        "color": _COLOURS,
        "grid": {"left": 44, "right": 10, "top": 10, "bottom": 24},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "axisLabel": {"color": grey, "formatter": "{value} s", "hideOverlap": True, "showMaxLabel": False},
            "splitLine": {"show": False},
        },
        "yAxis": {"type": "value", "splitNumber": 3, "axisLabel": {"color": grey}, **ends},
        "series": [],
    }
