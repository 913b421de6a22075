"""``--split auto``: a point of a network that nobody has evaluated, from its graph alone.

The rule, among the points that the target offers (its family's names, or every point of its graph where one tensor
crosses): the edge does at most :data:`SHARE` of the operations, the fewest bytes cross, and of points where as few do
it is the deepest. It knows neither latency nor leakage, which only ``splitsight splits --attacks`` measures.
"""

from __future__ import annotations

from collections.abc import Callable

from scenarios.splits.points import SplitPoint, all_points
from splitsight.errors import UserError
from splitsight.targets import Target

__all__ = ["AUTO", "SHARE", "auto_split", "usual_split"]

AUTO = "auto"
"""What ``--split`` takes for it."""

SHARE = 0.6
"""Part of the network's operations that the edge does at most: the server is there to take work off it."""


def usual_split(split: str | None, target: str) -> str:
    """A split point as it was given, or else L8 for the network that commands take by default and ``auto`` for others.

    Args:
        split: name of a point, or ``None``.
        target: name of the network.
    """
    return split or ("L8" if target == "resnet18" else AUTO)


def auto_split(target: Target, usable: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """A split point of a target, and a sentence that says which and why.

    Args:
        target: that is to be cut.
        usable: whether a point of this name will do; where none does, all are looked at.

    Raises:
        UserError: it cannot be traced, or the edge would do more than :data:`SHARE` of the work at every point.
    """
    points = all_points(target)
    whole = max(point.flops or 0 for point in points)
    names = set(target.points())
    offered = [p for p in points if p.name in names and p.flops is not None and p.flops <= SHARE * whole]
    if not offered:
        raise UserError(
            f"the edge would do more than {SHARE:.0%} of the work at every point of {target.name}: choose one of "
            f"{', '.join(sorted(names))} with --split"
        )
    kept = [p for p in offered if usable is not None and usable(p.name)]

    def order(point: SplitPoint) -> tuple[float, float]:
        return point.bytes, -point.position

    chosen = min(kept or offered, key=order)
    share = (chosen.flops or 0) / whole if whole else 0.0
    among = f"{len(kept)} of them that have a preview network" if kept else f"{len(offered)}"
    return chosen.name, (
        f"--split auto: {chosen.name}, where the fewest bytes cross ({chosen.bytes / 1024:.1f} KiB a frame) of the "
        f"points at which the edge does at most {SHARE:.0%} of the operations ({among}; here {share:.0%}); nothing was "
        "measured: `splitsight splits --attacks` does"
    )
