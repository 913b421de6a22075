"""``index.html`` of an evaluation: privacy against utility, one line a defence, grids; readable offline."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from scenarios.run import plots
from scenarios.run.spec import Scenario
from scenarios.style import STYLE
from splitsight.summary import DefenseSummary, Summary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["render"]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _best(one: DefenseSummary, *, told: bool) -> float | None:
    known = [a.ssim for a in one.attacks.values() if a.adaptive == told and a.ssim is not None]
    return max(known, default=None)


def _epsilon(one: DefenseSummary) -> str:
    return "–" if one.epsilon is None else f"{one.epsilon:.3g}" + (f", δ {one.delta:.0e}" if one.delta else "")


def _breakable(name: str) -> str:
    """A long name that a narrow column may break between its parts (zero-width spaces), and nowhere else."""
    return re.sub(r"(?<=[+:,=/])", "\u200b", name)


def _line(one: DefenseSummary, colour: str) -> dict[str, Any]:
    top, gain = one.strongest, one.adapting
    adapted = "–" if gain is None or gain.mean is None else f"{round(gain.mean, 2) + 0.0:+.2f}"  # never -0.00
    ssim = "–" if top is None else f"{top.ssim:.2f}"
    found = "–" if top is None else _share(top.most.get("matched_top1"))
    return {
        "defense": "none (reference)" if one.defense == UNDEFENDED else _breakable(one.defense),
        "dominated": one.dominated,
        "reference": one.defense == UNDEFENDED,
        "colour": colour,
        "brief": [_share(one.utility.accuracy), ssim, found, adapted],
        "cells": [
            _share(one.utility.accuracy),
            ssim,
            "–" if top is None else _number(top.psnr, 1),
            found,
            "–" if top is None else _share(top.most.get("recognised")),
            adapted,
            _number(None if one.attribute is None else one.attribute.value),
            _epsilon(one),
            f"{one.bytes_zstd / 1024:.1f} / {one.bytes / 1024:.1f}",
            f"{one.edge_ms:.1f}",
        ],
        "attack": "–" if top is None else top.attack,
    }


def _curve(found: Sequence[DefenseSummary], colours: Mapping[str, str]) -> str:
    """Utility over what the strongest attacker obtained: to the left and upwards is better."""
    import plotly.graph_objects as go

    figure = plots.new_figure(1)
    splits = list(dict.fromkeys(one.split for one in found))
    symbols = {split: symbol for split, symbol in zip(splits, plots.SYMBOLS * len(splits), strict=False)}
    for one in found:
        if one.strongest is None:
            continue
        name = "none" if one.defense == UNDEFENDED else one.defense
        colour = colours[one.defense]
        figure.add_trace(
            go.Scatter(
                x=[one.strongest.ssim],
                y=[100 * one.utility.accuracy],
                mode="markers",
                showlegend=False,
                hovertemplate=f"{name}, {one.split}<br>SSIM %{{x:.3f}} ({one.strongest.attack})<br>"
                f"{one.utility.name} %{{y:.0f}} %<extra></extra>",
                marker={
                    "size": 13,
                    "symbol": symbols[one.split] + ("-open" if one.dominated else ""),
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
            )
        )
    for split in splits:
        front = sorted(
            (one.strongest.ssim, 100 * one.utility.accuracy)
            for one in found
            if one.strongest is not None and one.split == split and not one.dominated
        )
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in front],
                y=[y for _, y in front],
                mode="lines",
                line={"color": "#9aa3af", "dash": "dot", "shape": "hv"},
                showlegend=False,
                hoverinfo="skip",
            )
        )
    figure.update_xaxes(title_text="SSIM of the strongest attacker", rangemode="tozero")
    figure.update_yaxes(title_text="utility, %", rangemode="tozero")
    if len(splits) > 1:
        for split in splits:
            marker = {"symbol": symbols[split], "color": "#5b6472", "size": 10}
            figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=split))
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(height=400, margin={"l": 56, "r": 12, "t": 12, "b": 48}, legend=legend)
    return plots.as_html(figure)


def _finding(found: Sequence[DefenseSummary]) -> str:
    """What the figures say, in a sentence or two."""
    parts = []
    for split in dict.fromkeys(one.split for one in found):
        here = [one for one in found if one.split == split and one.strongest is not None]
        plain = next((one for one in here if one.defense == UNDEFENDED), None)
        if plain is None or plain.strongest is None:
            continue
        kept = [one for one in here if one is not plain and one.utility.accuracy >= 0.9 * plain.utility.accuracy]
        text = (
            f"At {split} the strongest attacker reaches SSIM {plain.strongest.ssim:.2f} on undefended features, which "
            f"keep {_share(plain.utility.accuracy)} ({plain.utility.name})."
        )
        best = min(kept, key=lambda one: one.strongest.ssim if one.strongest else 1.0, default=None)
        if best is None or best.strongest is None:
            text += " No defence here keeps nine tenths of that."
        elif best.strongest.ssim > plain.strongest.ssim - 0.02:
            text += " No defence that keeps nine tenths of that takes anything from him."
        else:
            text += (
                f" Of the defences that keep nine tenths of that, {best.defense} takes most from him: SSIM "
                f"{best.strongest.ssim:.2f}, found first {_share(best.strongest.most.get('matched_top1'))}."
            )
        parts.append(text)
    return " ".join(parts)


def _details(one: DefenseSummary) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "threat": attack.threat,
            "told": "yes" if attack.adaptive else "no",
            "n": str(attack.n),
            "psnr": _number(attack.psnr, 1),
            "ssim": _number(attack.ssim, 3),
            "matched": _share(attack.matched_top1),
            "recognised": ", ".join(
                [_share(attack.recognised)]
                + [f"{_share(v)} ({k.partition(':')[2]})" for k, v in (attack.model_extra or {}).items()]
            ),
            "class": "strong" if one.strongest is not None and name == one.strongest.attack else "",
        }
        for name, attack in one.attacks.items()
    ]


def render(
    summary: Summary,
    scenario: Scenario,
    grids: Mapping[tuple[str, str], Path],
    config: Mapping[str, Any],
    *,
    complete: bool,
) -> str:
    """The page of a run.

    Args:
        summary: its figures, with the section ``defenses``.
        scenario: what was computed.
        grids: by split and defence.
        config: as in ``config.yaml``.
        complete: whether every row that was planned is there.

    Returns:
        HTML without any reference to another host.
    """
    from plotly.offline import get_plotlyjs

    found = summary.defenses or []
    run = config["run"]
    splits = list(dict.fromkeys(one.split for one in found))
    colours = plots.palette(one.defense for one in found)
    environment = Environment(
        loader=PackageLoader("scenarios.defend", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        style=STYLE,
        plotly=get_plotlyjs(),
        target=summary.target,
        splits=splits,
        quick=run["quick"],
        complete=complete,
        finding=_finding(found),
        curve=_curve(found, colours),
        tables=[
            {"split": split, "lines": [_line(one, colours[one.defense]) for one in found if one.split == split]}
            for split in splits
        ],
        utility=found[0].utility if found else None,
        gallery=scenario.data.gallery,
        defenses=[
            {
                "title": f"{one.defense} at {one.split}",
                "guarantees": one.guarantees,
                "attacks": _details(one),
                "left_out": one.left_out,
                "gain": _gain(one),
                "grid": _source(grids.get((one.split, one.defense))),
            }
            for one in found
        ],
        notes=run["notes"],
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        environment=json.dumps(summary.to_dict()["environment"], indent=2),
    )


def _gain(one: DefenseSummary) -> str:
    told, untold, gain = _best(one, told=True), _best(one, told=False), one.adapting
    if gain is None or gain.mean is None or told is None or untold is None:
        return ""
    ends = "" if gain.low is None or gain.low == gain.high else f" [{gain.low:+.3f}, {gain.high:+.3f}]"
    return (
        f"Being told of the defence gained the best attacker {gain.mean:+.3f} of SSIM{ends} on the same images. The "
        "attacker who was not told says nothing about its strength."
    )


def _source(path: Path | None) -> str:
    return "" if path is None else f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
