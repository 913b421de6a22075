"""From rows to figures: means with intervals for each cell, and paired differences between cells.

An interval needs observations that are independent of each other. Still images are; frames of one clip are not, and
count as one observation, their mean (where there is one clip only, its windows are the observations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scenarios.run.plan import cell_id
from scenarios.run.spec import Cell, Comparison, Scenario
from scenarios.run.store import Store
from splitsight.data import decode_image, to_tensor
from splitsight.defenses import parse_defense
from splitsight.errors import UserError
from splitsight.evaluators import Evaluator
from splitsight.metrics import Metric, mean_interval, metrics_named
from splitsight.metrics.perceptual import inception_score
from splitsight.summary import MATCHED, CellSummary, ComparisonSummary, Interval, MatchSummary, MethodSummary
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["by_cell", "cell_summaries", "comparisons", "falls", "measured", "score_sets"]

Row = Mapping[str, Any]


def _value(row: Row, metric: Metric) -> float | None:
    return metric.value(row.get(metric.column))


def measured(cells: Iterable[MethodSummary]) -> list[Metric]:
    """The metrics that at least one of these has a figure of, in the order of tables."""
    cells = list(cells)
    names = dict.fromkeys(name for cell in cells for name in cell.model_extra or {})
    return [m for m in metrics_named(names) if any((i := c.interval(m.name)) and i.mean is not None for c in cells)]


def by_cell(scenario: Scenario, rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each cell, in its order."""
    found: dict[str, list[Row]] = {cell_id(i): [] for i in range(len(scenario.cells))}
    for row in rows:
        found[row["cell"]].append(row)
    return [sorted(found[cell_id(i)], key=lambda row: row["index"]) for i in range(len(scenario.cells))]


def _observations(rows: Sequence[Row], values: Sequence[float | None]) -> list[float]:
    """Means over what belongs together; what is unknown is left out."""
    key = "clip" if len({row["clip"] for row in rows}) > 1 else "window"
    groups: dict[Any, list[float]] = {}
    for row, found in zip(rows, values, strict=True):
        if found is not None:
            own = row["index"] if row["clip"] is None else row[key]
            groups.setdefault(own, []).append(found)
    return [sum(group) / len(group) for group in groups.values()]


def _interval(rows: Sequence[Row], metric: Metric) -> Interval | None:
    seen = _observations(rows, [_value(row, metric) for row in rows])
    return Interval(**metric.interval(seen)) if seen else None


def cell_summaries(
    scenario: Scenario,
    rows: Sequence[Row],
    scores: Mapping[str, Mapping[str, float]],
    *,
    planned: Mapping[str, int],
    features: str,
) -> list[CellSummary]:
    """Figures of every cell that has rows.

    Args:
        scenario: whose cells.
        rows: all of the run.
        scores: of sets of reconstructions, by cell identifier and name.
        planned: images of each cell, by its identifier.
        features: name of the space in which originals were looked for.
    """
    summaries = []
    wanted = metrics_named(rows[0]) if rows else []
    for i, (cell, own) in enumerate(zip(scenario.cells, by_cell(scenario, rows), strict=True)):
        if not own:
            continue
        found = {metric.name: _interval(own, metric) for metric in wanted}
        further = {name: interval for name, interval in found.items() if name not in MATCHED}
        summaries.append(
            CellSummary(
                cell=cell_id(i),
                label=cell.name,
                split=cell.split,
                method=cell.method,
                setting=own[0]["setting"],
                prompt=" | ".join(cell.prompts),
                defense=cell.defense,
                noise=_ratio(cell.defense),
                options=cell.options
                | ({"queries": cell.queries} if cell.queries else {})
                | ({"training": cell.training_name} if cell.training else {}),
                n=len(own),
                planned=planned.get(cell_id(i), len(own)),
                **further,
                match=_match(own, found, features),
                scores=dict(scores.get(cell_id(i), {})),
                seconds_per_image=_mean(own, "seconds"),
                iterations=_mean(own, "iterations"),
                model_evaluations=_mean(own, "model_evaluations"),
            )
        )
    return summaries


def _match(rows: Sequence[Row], found: Mapping[str, Interval | None], features: str) -> MatchSummary | None:
    galleries = [row["gallery"] for row in rows if row["gallery"] is not None]
    if not galleries:
        return None
    # the smallest, where they differ: no figure is easier to reach than this says
    return MatchSummary.model_validate(
        {"gallery": min(galleries), "features": features, **{key: found[name] for name, key in MATCHED.items()}}
    )


def _mean(rows: Sequence[Row], name: str) -> float | None:
    return mean_interval([row[name] for row in rows if row[name] is not None])["mean"]


def _images(store: Store, rows: Sequence[Row], column: str) -> Tensor:
    pictures = []
    for row in rows:
        path = store.folder / row[column]
        try:
            pictures.append(decode_image(path.read_bytes(), str(path)))
        except (OSError, UserError) as error:
            raise UserError(f"{path} is missing or damaged: remove the run and make it again") from error
    return to_tensor(np.stack(pictures))


_LEAST = 50
"""Images from which on distances between sets are taken: they depend on the number, and of few say little."""


def falls(score: str) -> bool:
    """Whether a set of images is better the lower this score of it is."""
    return score.startswith(("frechet", "kernel"))


def score_sets(
    scenario: Scenario,
    store: Store,
    rows: Sequence[Row],
    classifiers: Mapping[str, Callable[[Tensor], Tensor] | None],
    evaluators: Sequence[Evaluator] = (),
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Scores that a set of images has, not one image.

    Args:
        scenario: whose cells.
        store: of the run, with the images.
        rows: all of the run.
        classifiers: by the name of the inception score that they make; ``None`` stands for the published network.
        evaluators: in whose features cells of 50 images or more are compared with their originals: ``frechet_<name>``
            and ``kernel_<name>`` (:class:`scenarios.prior_quality.Distances`).

    Returns:
        By cell identifier and name, and of the originals by name; scores that cannot be had here are left out.

    Raises:
        UserError: an image of the run is gone.
    """
    from scenarios.prior_quality import Distances  # seconds, which those who only read rows need not wait for

    cells: dict[str, dict[str, float]] = {}
    known: dict[tuple[str, ...], Distances] = {}
    for i, own in enumerate(by_cell(scenario, rows)):
        if not own or not (classifiers or evaluators):
            continue
        images = _images(store, own, "reconstruction")
        scores = cells[cell_id(i)] = _scores(images, classifiers)
        for evaluator in evaluators if len(own) >= _LEAST else ():
            key = evaluator.name, *(row["original"] for row in own)
            if key not in known:
                known[key] = Distances(evaluator, _images(store, own, "original"))
            found = known[key].of(images)
            scores |= {f"{kind}_{evaluator.name}": found[kind] for kind in ("frechet", "kernel")}
    first = {row["image"]: row for row in sorted(rows, key=lambda row: row["index"])}
    originals = _scores(_images(store, list(first.values()), "original"), classifiers) if first and classifiers else {}
    return cells, originals


def _scores(images: Tensor, classifiers: Mapping[str, Callable[[Tensor], Tensor] | None]) -> dict[str, float]:
    found = {name: inception_score(images, classifier) for name, classifier in classifiers.items()}
    return {name: score for name, score in found.items() if score is not None and math.isfinite(score)}


def _one(cells: Sequence[tuple[Cell, list[Row]]], comparison: Comparison, side: str) -> list[Row]:
    if len(cells) > 1:
        names = ", ".join(f"“{cell.name}”" for cell, _ in cells)
        raise UserError(
            f"the comparison '{comparison.name}' selects several cells with '{side}' at {cells[0][0].split}: {names}; "
            "name more keys"
        )
    return cells[0][1] if cells else []


def comparisons(scenario: Scenario, rows: Sequence[Row]) -> list[ComparisonSummary]:
    """Paired differences: each comparison at each split and behind each defence that both of its sides have.

    Where a side names its defence, the comparison is made once a split; where both name a split, once for those two.

    Raises:
        UserError: a comparison selects several cells for one side.
    """
    found = []
    cells = list(zip(scenario.cells, by_cell(scenario, rows), strict=True))
    for comparison in scenario.compare:
        named = "defense" in comparison.of or "defense" in comparison.to
        points = [side["split"] for side in (comparison.of, comparison.to) if "split" in side]
        across = " and ".join(dict.fromkeys(points)) if len(points) == 2 else ""
        for split, defense in dict.fromkeys(
            (across or cell.split, "" if named else cell.defense) for cell in scenario.cells
        ):
            here = [
                (cell, own) for cell, own in cells if (across or cell.split == split) and defense in ("", cell.defense)
            ]
            sides = [
                _one([(cell, own) for cell, own in here if cell.matches(wanted)], comparison, side)
                for side, wanted in (("of", comparison.of), ("to", comparison.to))
            ]
            pairs = _pairs(*sides)
            if not pairs:
                continue
            found.append(_difference(comparison, split, defense, None, pairs))
            clips = dict.fromkeys(a["clip"] for a, _ in pairs if a["clip"])
            if comparison.by_clip:
                for clip in clips:
                    own = [pair for pair in pairs if pair[0]["clip"] == clip]
                    found.append(_difference(comparison, split, defense, clip, own))
    return found


def _pairs(of: Sequence[Row], to: Sequence[Row]) -> list[tuple[Row, Row]]:
    other = {row["index"]: row for row in to}
    return [(row, other[row["index"]]) for row in of if row["index"] in other]


def _difference(
    comparison: Comparison, split: str, defense: str, clip: str | None, pairs: Sequence[tuple[Row, Row]]
) -> ComparisonSummary:
    differences = {}
    for metric in metrics_named(pairs[0][0]):
        both = [(_value(x, metric), _value(y, metric)) for x, y in pairs]
        gains = [None if x is None or y is None else x - y for x, y in both]
        if seen := _observations([x for x, _ in pairs], gains):
            differences[metric.name] = Interval(**metric.interval(seen, difference=True))
    paper = comparison.paper.model_dump(exclude_none=True) if comparison.paper and clip is None else None
    return ComparisonSummary(
        name=comparison.name,
        split=split,
        defense=defense,
        noise=_ratio(defense or UNDEFENDED),
        clip=clip,
        n=len(pairs),
        differences=differences,
        paper=paper,
    )


def _ratio(defense: str) -> float:
    """Strength of Gaussian noise that is all of a defence, as a part of the features' spread; 0 for any other."""
    parts = parse_defense(defense).parts
    return float(getattr(parts[0].parameters, "ratio", 0.0)) if len(parts) == 1 else 0.0
