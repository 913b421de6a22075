"""What a scene that stands still gives away: reconstruction against the number of frames, for noise drawn each frame.

The mean of T frames of a static scene has noise σ/√T on each number, so that the features' error should fall as
``σ/√T``; σ is what the attacker is told, from one frame. What the picture gains from that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversary.attacks import ATTACKS
from adversary.defended import told
from adversary.priors.prior import EMBEDDED
from scenarios.ledger import Ledger
from scenarios.run import plots
from scenarios.stills import Stills
from scenarios.style import STYLE
from scenarios.workbench import Workbench
from splitsight.defenses import parse_defense
from splitsight.errors import UserError
from splitsight.files import write_json, write_text
from splitsight.metrics import mean_interval

__all__ = ["LEVELS", "averaging"]

LEVELS = ("noise:ratio=0.5", "noise:ratio=1", "noise:ratio=2")
"""Noise as a part of the features' own spread."""
_BATCH = 8

Row = dict[str, Any]


def _error(features: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    """Root mean square over all numbers of each frame, ``(N,)``."""
    squares = [(a - b).flatten(1).double().square() for a, b in zip(features, clean, strict=True)]
    return torch.cat(squares, 1).mean(1).sqrt()


def averaging(
    *,
    images: Path,
    out: Path,
    target: str = "resnet18",
    weights: Path | None = None,
    split: str = "L8",
    defenses: Sequence[str] = LEVELS,
    frames: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    attack: str = "best:faithful",
    changes: dict[str, Any] | None = None,
    limit: int = 16,
    prior: str = EMBEDDED,
    inversions: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, planned, what: None,
) -> list[Row]:
    """Measure it, going on with what is there.

    Args:
        images: folder or Parquet file, of images that no model was trained on; the last ``limit`` are taken.
        out: folder for ``averaging.parquet``, ``summary.json`` and ``index.html``.
        target: the split network.
        weights: its weights; the embedded ones by default.
        split: its cut.
        defenses: each with noise that is drawn for each frame.
        frames: numbers of frames.
        attack: ``NAME[:SETTING]``, which is told the defence.
        changes: values laid over its setting.
        limit: images.
        prior: name or folder of the prior.
        inversions: inversion network, a file or a folder of them.
        seed: of all draws.
        device: where to compute.
        progress: called with steps done, planned, and what is going on.

    Returns:
        One a defence, number of frames and image; ``frames`` 0 is the undefended image.

    Raises:
        UserError: unknown names, or a defence whose chance is not drawn for each frame.
    """
    method, _, setting = attack.partition(":")
    configured = ATTACKS.get(method).configured(setting or None, target=target, split=split, changes=changes)
    if configured.windowed or "network" in configured.needs:
        raise UserError(f"{method} cannot be told of noise on still images: choose another --attack")
    models = Workbench(target, weights=weights, prior=prior, inversion=inversions, device=device)
    stills = Stills(models, images, limit, tail=True)
    named = [str(parse_defense(text)) for text in defenses]
    _check(models, split, named, stills.originals[:1])
    about = {"target": target, "head": models.pipeline(split).description().head_digest, "split": split, "seed": seed}
    about |= {
        "attack": attack,
        "settings": configured.settings.dump(),
        "names": stills.names,
        "prior": models.prior.digest,
    }
    ledger = Ledger(out / "averaging.parquet", about)
    done = {(row["defense"], row["frames"], row["index"]) for row in ledger.rows}
    wanted = [("identity", 0), *((d, t) for t in sorted(set(frames)) for d in named)]
    steps = [(d, t, i) for d, t in wanted for i in range(0, len(stills), _BATCH)]
    for k, (defense, count, first) in enumerate(steps):
        progress(k, len(steps), f"{defense}, {count} frames")
        index = list(range(first, min(first + _BATCH, len(stills))))
        if not all((defense, count, i) in done for i in index):
            ledger.add(_measured(models, stills, configured, split, defense, count, index, seed))
    rows = [row for row in ledger.rows if (row["defense"], row["frames"]) in wanted]
    figures = _figures(rows)
    write_json(out / "summary.json", {"schema": "splitsight.averaging/1", **about, "curves": figures})
    write_text(out / "index.html", _page(figures, target, split, attack, len(stills)))
    return rows


def _check(models: Workbench, split: str, defenses: Sequence[str], image: Tensor) -> None:
    for defense in defenses:
        edge = models.pipeline(split, defense)
        known = told(edge, models.observe(edge, image, [0]))
        if not known.fresh or not any(bool(torch.as_tensor(s).any()) for s in known.noise):
            raise UserError(
                f"'{defense}' has no noise that is drawn for each frame: averaging has nothing to take away"
            )


def _measured(
    models: Workbench,
    stills: Stills,
    attack: Any,
    split: str,
    defense: str,
    count: int,
    index: Sequence[int],
    seed: int,
) -> list[Row]:
    edge, originals, frames = models.pipeline(split, defense), stills.originals[list(index)], max(1, count)
    features = models.observe_static(edge, originals, frames, seed, index)
    clean = models.observe(models.pipeline(split), originals)
    known, one = told(edge, features, static=frames), told(edge, [z[::frames] for z in features])
    sigma = [torch.as_tensor(s).expand_as(z) for s, z in zip(one.noise, known.features, strict=True)]
    predicted = _error(sigma, [torch.zeros_like(z) for z in sigma]) / frames**0.5
    problem = models.problem(attack, edge.description(), features, seed=seed, first=index[0], static=frames)
    scores = stills.score(attack.reconstruct(problem).images, index)
    errors = _error(known.features, clean)
    return [
        {
            "defense": defense,
            "frames": count,
            "index": i,
            "psnr": scores[k]["psnr"],
            "ssim": scores[k]["ssim"],
            "error": float(errors[k]),
            "predicted": float(predicted[k]),
        }
        for k, i in enumerate(index)
    ]


def _figures(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Means with intervals, by defence, a point a number of frames."""
    found: dict[str, list[dict[str, Any]]] = {}
    for defense, count in dict.fromkeys((row["defense"], row["frames"]) for row in rows):
        own = [row for row in rows if (row["defense"], row["frames"]) == (defense, count)]
        point = {key: mean_interval([row[key] for row in own]) for key in ("psnr", "ssim", "error", "predicted")}
        found.setdefault(defense, []).append({"frames": count, "n": len(own), **point})
    return found


def _page(figures: dict[str, list[dict[str, Any]]], target: str, split: str, attack: str, images: int) -> str:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    figure = plots.new_figure(2, horizontal_spacing=0.12)
    colours = plots.palette(name for name in figures if name != "identity")
    for name, points in figures.items():
        if name == "identity":
            continue
        at = [point["frames"] for point in points]
        line = {"color": colours[name]}
        for column, key in ((1, "psnr"), (2, "error")):
            means = [point[key]["mean"] for point in points]
            bars = [point[key]["high"] - point[key]["mean"] for point in points]
            trace = go.Scatter(x=at, y=means, error_y={"array": bars}, line=line, name=name, showlegend=column == 1)
            figure.add_trace(trace, row=1, col=column)
        predicted = [point["predicted"]["mean"] for point in points]
        dotted = go.Scatter(x=at, y=predicted, line={**line, "dash": "dot"}, mode="lines", showlegend=False)
        figure.add_trace(dotted, row=1, col=2)
    for point in figures.get("identity", []):
        figure.add_hline(y=point["psnr"]["mean"], line={"dash": "dash", "color": "#5b6472"}, row=1, col=1)
    figure.update_xaxes(title_text="frames of the scene", type="log", dtick=np.log10(2), tickformat="d")
    figure.update_yaxes(title_text="PSNR, dB", row=1, col=1)
    figure.update_yaxes(title_text="error of the features", type="log", row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{point['frames'] or 'undefended'}</td><td>{point['psnr']['mean']:.2f}</td>"
        f"<td>{point['ssim']['mean']:.3f}</td><td>{point['error']['mean']:.4g}</td>"
        f"<td>{point['predicted']['mean']:.4g}</td></tr>"
        for name, points in figures.items()
        for point in points
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitsight: a scene that stands still</title><style>{STYLE}main{{max-width:1280px}}</style>
<script>{get_plotlyjs()}</script></head><body><main>
<h1>What a scene that stands still gives away, {escape(target)} at {escape(split)}</h1>
<p class="lead">Mean over {images} images of what {escape(attack)} rebuilds from the mean of so many frames, each with
noise of its own. Dashed: without noise. Right: how far the mean features are from the clean ones; dotted, σ/√T.</p>
<div class="card">{plots.as_html(figure)}</div>
<h2>Figures</h2>
<div class="card scroll"><table><thead><tr><th>defence</th><th>frames</th><th>PSNR, dB</th><th>SSIM</th><th>error</th>
<th>σ/√T</th></tr></thead><tbody>{body}</tbody></table></div>
</main></body></html>
"""
