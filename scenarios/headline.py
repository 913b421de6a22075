"""What a person asks of a reconstruction, before any decibels: is it recognised, and is the original found by it?

Both are asked of something that no attack ever sees: an evaluator (:mod:`splitsight.evaluators`) puts the picture into
a class, and the original is looked for among the images of a gallery (:mod:`splitsight.metrics.gallery`). PSNR rewards
a blur, which is why it comes second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitsight.artifacts import asset
from splitsight.evaluators import EMBEDDED

__all__ = ["EVALUATORS", "Headline", "default_evaluators", "default_gallery", "headline"]

EVALUATORS = (EMBEDDED,)
"""Who looks at reconstructions where nobody else is named."""


def default_gallery() -> Path:
    """The photographs of the package among which a frame is found; their origin and licence lie beside them."""
    return asset("gallery", "tiny-imagenet.parquet")


def default_evaluators(given: Sequence[str], target: str) -> tuple[str, ...]:
    """Those that were named, else :data:`EVALUATORS` as far as the attacked network is none of them."""
    return tuple(given) or tuple(name for name in EVALUATORS if name != target)


@dataclass(frozen=True)
class Headline:
    """Answers for one method.

    Attributes:
        method: whose reconstructions.
        n: how many.
        recognised: part that an evaluator puts into the class of the original, in [0, 1]; ``None`` where not asked.
        found: part by which the original is found first, in [0, 1]; ``None`` where not asked.
        gallery: images among which it is looked for.
        evaluator: that was asked; empty for none.
    """

    method: str
    n: int
    recognised: float | None
    found: float | None
    gallery: int
    evaluator: str

    @property
    def says(self) -> str:
        """One sentence on what can be seen."""
        if self.found is None and self.recognised is None:
            return "Nobody was asked what can be seen: look at the pictures."
        parts = []
        if self.found is not None:
            which = f"which of {self.gallery:,} pictures" if self.gallery else "which picture"
            parts.append(f"Whoever reads the features {_FOUND(self.found)} {which} was sent")
        if self.recognised is not None:
            what = "what it shows" if parts else "What a picture shows"
            parts.append(f"{what} is {_RECOGNISED(self.recognised)} recognised by a classifier")
        alike = self.found is None or self.recognised is None or (self.found >= 0.5) == (self.recognised >= 0.4)
        return (", and " if alike else ", but ").join(parts) + "."


def _step(*steps: tuple[float, str]) -> Any:
    """The words of the highest step that a value reaches; the last one is for all that reach none."""
    return lambda value: next(words for least, words in steps if value >= least or least == steps[-1][0])


_FOUND = _step(
    (0.9, "can tell"),
    (0.5, "can mostly tell"),
    (0.1, "can sometimes tell"),
    (0.0, "cannot tell"),
)
_RECOGNISED = _step((0.7, "nearly always"), (0.4, "often"), (0.15, "sometimes"), (0.0, "hardly ever"))


def headline(summary: Mapping[str, Any], order: Sequence[str] = ()) -> Headline | None:
    """The headline of a summary: of its best method that has images; ``None`` where none has.

    Args:
        summary: as in ``summary.json``.
        order: methods from the worst to the best; by default as they stand.
    """
    methods: Mapping[str, Mapping[str, Any]] = summary["methods"]
    name = next((m for m in reversed(list(order or methods)) if methods.get(m, {}).get("n")), None)
    if name is None:
        return None
    figures = methods[name]
    # where the paper's tables are made: the published network before the package's own
    judges = sorted({key.partition(":")[2] for key in figures if key.startswith("recognised:")})
    judge = judges[0] if judges else ""
    match = figures.get("match") or {}

    def mean(key: str) -> float | None:
        return (figures.get(key) or {}).get("mean")

    found = mean(f"matched_top1:{judge}") if judge else None
    return Headline(
        method=name,
        n=int(figures["n"]),
        recognised=mean(f"recognised:{judge}") if judge else None,
        found=found if found is not None else (match.get("top1") or {}).get("mean"),
        gallery=int(match.get("gallery", 0)),
        evaluator=judge,
    )
