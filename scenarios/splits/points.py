"""The points at which a target can be cut, and what is known of each before anything is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.pictures import spread
from splitsight.split import CutPoint
from splitsight.targets import OUTPUT, Target

__all__ = ["SplitPoint", "all_points", "chosen_points", "is_chain"]

_FEW = 6
"""Points of a short evaluation, for a target whose family has no names of its own for some."""


@dataclass(frozen=True)
class SplitPoint:
    """A place where a target can be cut.

    Attributes:
        name: what the command line takes.
        position: depth, in values computed by then; infinite for the model's output.
        tensors: what crosses.
        parameters: numbers in the weights that F1 reads; ``None`` where the graph does not have the point.
        flops: of F1, an image; likewise.
        at: the graph's name of the point, where ``name`` is the family's own.
    """

    name: str
    position: float
    tensors: tuple[FeatureSpec, ...]
    parameters: int | None = None
    flops: int | None = None
    at: str = ""

    @property
    def bytes(self) -> int:
        """Bytes a frame in float32."""
        return sum(t.bytes for t in self.tensors)

    @classmethod
    def of(cls, name: str, point: CutPoint) -> SplitPoint:
        """A point of the graph under this name."""
        at = "" if name == point.name else point.name
        return cls(name, point.position, point.tensors, point.parameters, point.flops, at)


def all_points(target: Target, tensors: int = 1) -> list[SplitPoint]:
    """The family's names, and all points of the graph where so many tensors cross at most, shallow first.

    Raises:
        UserError: the model cannot be traced, or has no such point.
    """
    found = [(name, target.traced.resolve(at)) for name, at in target.aliases.items()]
    named = {point.name for _, point in found}
    found += [(point.name, point) for point in target.cut_points(tensors) if point.name not in named]
    return sorted((SplitPoint.of(*one) for one in found), key=lambda point: point.position)


def _named(target: Target, name: str) -> SplitPoint:
    """The point of a name; one that a family cuts by hand need not be in the graph.

    Raises:
        UserError: no such point.
    """
    try:
        return SplitPoint.of(name, target.traced.resolve(target.aliases.get(name, name)))
    except UserError:
        specs = target.cut(name).specs  # says what is wrong, and which points there are
        known = target.points()
        return SplitPoint(name, known.index(name) if name in known else math.inf, specs)


def chosen_points(
    target: Target, names: Sequence[str] | None = None, *, quick: bool = False
) -> tuple[list[SplitPoint], list[str]]:
    """The points of an evaluation.

    Args:
        target: that is cut.
        names: of the points; by default all of :func:`all_points`.
        quick: by default only those that the family names, or a few evenly spread ones where it names none.

    Returns:
        The points, shallow first, and the names of those that are left out.

    Raises:
        UserError: no such point, or one twice.
    """
    if names is not None:
        if len(set(names)) < len(names):
            raise UserError(f"--splits names a point twice: {', '.join(names)}")
        return sorted((_named(target, name) for name in names), key=lambda point: point.position), []
    points = all_points(target)
    if not quick:
        return points, []
    kept = [point for point in points if point.name in target.aliases]
    kept = kept or [points[i] for i in spread(len(points), _FEW)]
    return kept, [point.name for point in points if point not in kept]


def is_chain(points: Iterable[SplitPoint]) -> bool:
    """Whether the features of each are a function of those before it: where one tensor crosses, all of it does."""
    return all(len(point.tensors) == 1 or point.name == OUTPUT for point in points)
