"""What can be measured of a reconstruction, each metric declared once.

Columns of rows, intervals, tables, plots, comparisons and the paper's rows follow from a :class:`Metric`. One that
comes with this package registers itself (:func:`register`) in a module of :mod:`splitsight.metrics`; another package
names its own as an entry point::

    [project.entry-points."splitsight.metrics"]
    sharpness = "mypackage.sharpness:SHARPNESS"

A metric that asks an evaluator is measured with each one of a run. The first one's figures carry the metric's own
name, those of others the evaluator's, too: ``recognised``, ``recognised:NAME``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from splitsight.errors import UserError
from splitsight.metrics.intervals import UNBOUNDED, mean_interval, proportion_interval
from splitsight.registry import Registry

__all__ = [
    "METRICS",
    "Batch",
    "Classifier",
    "Metric",
    "image_metrics",
    "measure",
    "metrics",
    "metrics_named",
    "register",
]

Need = Literal["reconstruction", "original", "label", "evaluator", "gallery", "network", "stride"]
IMAGES: frozenset[Need] = frozenset({"reconstruction", "original"})


class Classifier(Protocol):
    """What a metric may ask of an evaluator; see :class:`splitsight.evaluators.Evaluator`."""

    name: str

    def features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] → ``(B, F)``."""
        ...

    def recognised(self, reconstruction: Tensor, labels: Tensor, originals: Tensor | None = None) -> Tensor:
        """Whether each reconstruction is put into its class, ``(B,)`` bool."""
        ...

    def distance(self, reconstruction: Tensor, original: Tensor) -> Tensor | None:
        """A perceptual distance of its own, ``(B,)``; ``None`` where it has none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is measured.

    Attributes:
        reconstruction: ``(B, 3, H, W)`` in [0, 1]; NaN where an attack failed.
        original: likewise, in the same order.
        label: ``(B,)`` int64, the class of each image; −1 where unknown.
        evaluator: independent classifier.
        gallery: position in the batch → features in the evaluator's space, ``(G, F)``, of the images among which the
            original is looked for, itself first; ``None`` where it has no others.
        network: the attacked one, images ``(B, 3, H, W)`` in [0, 1] → class of its best answer ``(B,)``, −1 for none.
        stride: pixels between the positions that the features are of, see :func:`splitsight.features.stride_of`;
            ``None`` where they have none.
    """

    reconstruction: Tensor
    original: Tensor
    label: Tensor | None = None
    evaluator: Classifier | None = None
    gallery: Callable[[int], Tensor | None] | None = None
    network: Callable[[Tensor], Tensor] | None = None
    stride: int | None = None

    def __len__(self) -> int:
        return len(self.reconstruction)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One thing that is measured of each reconstruction.

    Attributes:
        name: in rows, summaries and comparisons.
        title: heading of its column.
        fn: a batch → one value an image, ``(B,)`` or a list (``None`` or NaN: unknown); ``None`` where it cannot be
            measured, for which :attr:`missing` says why.
        needs: the fields of :class:`Batch` that ``fn`` reads.
        kind: ``mean`` of numbers, with Student's interval, or ``share`` of images for which something is so, with
            Wilson's.
        unit: of its values, e.g. ``dB``; shares are shown in percent.
        better: whether ``higher`` or ``lower`` values are closer to the original.
        digits: decimals in tables (of a share: of the percentage).
        bounds: lowest and highest possible value, where intervals end; [0, 1] for a share.
        side: of the plane of distortion against perception (Blau and Michaeli, 2018) on which it lies.
        plotted: whether plots and tables in a terminal show it, too; a variant of another metric need not be there.
        place: among the columns; those with the same place stand in the order of their names.
        column: of the rows, where ``fn``'s values are filed; the name by default. Metrics with the same column have
            the same ``fn``.
        hit: for a share whose column holds another thing than yes or no (a rank): whether a value of it counts.
        missing: one sentence why it cannot be measured on this machine and what to do; ``None`` where it can.
        only: name of the one evaluator that can be asked, whose name the metric's own then says; any by default.
        evaluator: name of the evaluator that is asked; filled in by :func:`metrics`.
    """

    name: str
    title: str
    fn: Callable[[Batch], Tensor | Sequence[Any] | None]
    needs: frozenset[Need] = IMAGES
    kind: Literal["mean", "share"] = "mean"
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    digits: int = 2
    bounds: tuple[float, float] = UNBOUNDED
    side: Literal["distortion", "perception"] = "distortion"
    plotted: bool = True
    place: int = 100
    column: str = ""
    hit: Callable[[Any], bool] | None = None
    missing: Callable[[], str | None] = lambda: None
    only: str = ""
    evaluator: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", self.column or self.name)
        if self.kind == "share":
            object.__setattr__(self, "bounds", (0.0, 1.0))

    @property
    def heading(self) -> str:
        """Title and unit, as a column or an axis is called."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def value(self, stored: Any) -> float | None:
        """A row's value of :attr:`column` as a number; 0 or 1 for a share."""
        if stored is None:
            return None
        return float(stored if self.hit is None else self.hit(stored))

    def interval(self, values: Iterable[float | None], *, difference: bool = False) -> dict[str, float | None]:
        """``{"mean", "low", "high"}`` with the 95 % interval of this kind of metric, within what is possible.

        Args:
            values: one an independent observation; unknown ones are left out.
            difference: the values are differences between two reconstructions of an image.
        """
        known = [v for v in values if v is not None]
        low, high = self.bounds
        if difference:
            return mean_interval(known, (low - high, high - low))
        # the share of a clip's frames is no yes or no
        if self.kind == "share" and all(v in (0.0, 1.0) for v in known):
            return proportion_interval([bool(v) for v in known])
        return mean_interval(known, self.bounds)

    def text(self, value: float | None, *, sign: bool = False, unit: bool = True) -> str:
        """A value as tables show it, a dash for ``None``; shares in percent.

        Args:
            value: mean, or end of an interval.
            sign: show that of positive ones, too.
            unit: show the percent sign of a share.
        """
        if value is None:
            return "–"
        share = self.kind == "share"
        shown = f"{value * (100 if share else 1):{'+' if sign else ''},.{self.digits}f}"
        return f"{shown} %" if share and unit else shown

    def texts(
        self, mean: float | None, low: float | None, high: float | None, *, sign: bool = False
    ) -> tuple[str, str]:
        """An interval as tables show it: its mean, and its ends ``low, high``; no ends where there is no spread."""
        if mean is None or low is None or high is None or low == high:
            return self.text(mean, sign=sign), ""
        return self.text(mean, sign=sign), ", ".join(self.text(end, sign=sign, unit=False) for end in (low, high))

    def with_evaluator(self, name: str, first: bool) -> Metric:
        """This metric as one evaluator of a run measures it; all but the first one's carry its name."""
        if first or self.only:
            return replace(self, evaluator=name)
        own = {"name": f"{self.name}:{name}", "column": f"{self.column}:{name}", "title": f"{self.title} ({name})"}
        return replace(self, evaluator=name, **own)


METRICS: Registry[Metric] = Registry("metric", "splitsight.metrics")


def register(metric: Metric) -> Metric:
    """File a metric under its name."""
    return METRICS.register(metric.name)(metric)


def metrics(evaluators: Sequence[str] = ()) -> list[Metric]:
    """All metrics of a run, in the order of their columns.

    Args:
        evaluators: names of the run's; metrics that ask one are left out where there is none.

    Raises:
        UserError: what another package registered is no metric, or has another name than its entry point.
    """
    known = []
    for name, metric in METRICS:
        if not isinstance(metric, Metric) or metric.name != name:
            raise UserError(
                f"the entry point '{name}' of splitsight.metrics is no Metric of that name: let it name one, or remove "
                "the package that declares it"
            )
        known.append(metric)
    known.sort(key=lambda metric: (metric.place, metric.name))
    found = [metric for metric in known if "evaluator" not in metric.needs]
    for i, evaluator in enumerate(evaluators):
        asking = [m for m in known if "evaluator" in m.needs and m.only in ("", evaluator)]
        found += [metric.with_evaluator(evaluator, i == 0) for metric in asking]
    # columns of further evaluators stand beside those of the first
    return sorted(found, key=lambda metric: metric.place)


def metrics_named(names: Iterable[str]) -> list[Metric]:
    """All metrics of a run of which these are columns, or names of figures: its evaluators are read from them."""
    given = list(names)
    found = metrics(["", *dict.fromkeys(name.partition(":")[2] for name in given if ":" in name)])
    # the first evaluator's name is not in its figures, but a metric that only one can measure tells it
    own = [m for _, m in METRICS if m.only and m.name in given and all(m.name != other.name for other in found)]
    return sorted([*found, *(metric.with_evaluator(metric.only, True) for metric in own)], key=lambda m: m.place)


def image_metrics() -> list[Metric]:
    """The metrics for which a reconstruction and its original suffice, of those that can be measured here."""
    return [metric for metric in metrics() if metric.needs <= IMAGES and metric.missing() is None]


@torch.no_grad()
def measure(wanted: Iterable[Metric], batch: Batch) -> dict[str, list[Any]]:
    """One list a column, with a value an image: a number, true or false, ``None`` where unknown or not finite.

    Args:
        wanted: metrics; those that need what the batch does not have are left out.
        batch: what is measured.

    Raises:
        ValueError: a metric does not answer one value an image.
    """
    found: dict[str, list[Any]] = {}
    for metric in wanted:
        if metric.column in found or any(getattr(batch, need) is None for need in metric.needs):
            continue
        values = metric.fn(batch)
        listed = [None] * len(batch) if values is None else _listed(values)
        if len(listed) != len(batch):
            raise ValueError(f"the metric '{metric.name}' gave {len(listed)} values for {len(batch)} images")
        found[metric.column] = listed
    return found


def _listed(values: Tensor | Sequence[Any]) -> list[Any]:
    listed = values.tolist() if isinstance(values, Tensor) else list(values)
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in listed]
