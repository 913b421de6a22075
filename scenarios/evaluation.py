"""Evaluators of an experiment: loaded for what is attacked, and asked about reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from splitsight import evaluators
from splitsight.data import corresponding
from splitsight.errors import UserError
from splitsight.evaluators import Evaluator
from splitsight.metrics import Batch, Metric, matched, measure, metrics
from splitsight.metrics.gallery import Lineup, Space

__all__ = ["NONE", "asked", "asked_beside", "labels_for", "load_evaluators", "named"]

NONE = "none"
"""What ``--evaluator`` takes for none at all."""


def load_evaluators(
    names: Iterable[str], classes: list[list[str]] | None, digest: str | None, target: str
) -> list[Evaluator]:
    """Load evaluators.

    Args:
        names: of evaluators, or their folders; :data:`NONE` alone for none.
        classes: all names of each class of the attacked network, where they are known.
        digest: SHA-256 of the attacked network's weights, where they are known.
        target: what it is called.

    Raises:
        UserError: there is no such evaluator, two have one name, or one is the attacked network itself.
    """
    found = [] if (given := list(names)) == [NONE] else [evaluators.load(name, classes) for name in given]
    if len({evaluator.name for evaluator in found}) < len(found):
        raise UserError("two evaluators have one name: give each once, and its config.json a name of its own")
    for evaluator in found:
        if evaluator.network_digest == digest or evaluator.name == target:
            raise UserError(
                f"the evaluator '{evaluator.name}' is the attacked network itself, and what fits its features would "
                f"look right to it: give another --evaluator, such as {evaluators.EMBEDDED}, or {NONE}"
            )
    return found


def labels_for(evaluator: Evaluator, labels: Tensor, classes: Sequence[Sequence[str]]) -> Tensor:
    """Class numbers of the attacked network as those of an evaluator.

    Classes are the same where they share a name. An evaluator that lacks some of those that occur is told none, so that
    one question is asked of all images: are they seen as the same thing as the originals? Where the two lists share no
    name at all, the numbers are taken as they are.

    Args:
        evaluator: whose numbers are wanted.
        labels: ``(B,)``, −1 where unknown.
        classes: all names of each class of the attacked network, where they are known.

    Raises:
        UserError: the lists share no name and a number is beyond the evaluator's classes.
    """
    known = corresponding(classes, evaluator.synonyms)
    if known is None:
        if len(labels) and (most := int(labels.max())) >= len(evaluator.labels):
            raise UserError(
                f"the data have labels up to {most} and the evaluator '{evaluator.name}' knows "
                f"{len(evaluator.labels)} classes: give an evaluator trained on these classes, or --evaluator {NONE}"
            )
        return labels
    found = torch.tensor(
        [known[label] if 0 <= label < len(known) else -1 for label in labels.tolist()], dtype=torch.int64
    )
    return torch.full_like(found, -1) if bool(((found < 0) & (labels >= 0)).any()) else found


def asked(
    wanted: Sequence[Metric],
    found: Sequence[Evaluator],
    batch: Batch,
    labels: Callable[[Evaluator], Tensor],
    gallery: Callable[[Evaluator, int], Tensor | None] | None = None,
) -> dict[str, list[Any]]:
    """What evaluators say, by column.

    Args:
        wanted: metrics, each with the evaluator that it asks; others are left out.
        found: evaluators.
        batch: reconstructions and originals.
        labels: of the batch, as an evaluator's classes.
        gallery: an evaluator and a position in the batch → features of the images among which the original is looked
            for, itself first.
    """
    said: dict[str, list[Any]] = {}
    for evaluator in found:
        own = None if gallery is None else (lambda i, e=evaluator: gallery(e, i))
        with_it = replace(batch, evaluator=evaluator, label=labels(evaluator), gallery=own)
        said |= measure([metric for metric in wanted if metric.evaluator == evaluator.name], with_it)
    return said


def named(found: Sequence[Evaluator]) -> list[Metric]:
    """What evaluators are asked for, every figure with its evaluator's name: beside figures that need none."""
    return [metric for metric in metrics(["", *(evaluator.name for evaluator in found)]) if metric.evaluator]


def asked_beside(
    found: Sequence[Evaluator],
    reconstruction: Tensor,
    original: Tensor,
    *,
    labels: Callable[[Evaluator], Tensor] | None = None,
    lineup: Lineup | None = None,
    among: bool = False,
) -> dict[str, list[Any]]:
    """What evaluators say, by column of :func:`named`.

    Args:
        found: evaluators.
        reconstruction: ``(B, 3, H, W)`` in [0, 1].
        original: likewise.
        labels: of the images, as an evaluator's classes; by default none is known, and the question is whether a
            reconstruction is seen as what its original is seen as.
        lineup: the originals among distractors.
        among: without one, look for each original among all of them.
    """
    unknown = torch.full((len(original),), -1, dtype=torch.int64)
    batch = Batch(reconstruction=reconstruction, original=original, label=unknown)
    said = asked(named(found), found, batch, labels or (lambda evaluator: unknown))
    for evaluator in found:
        if lineup is not None:
            space = Space(f"{evaluator.name}-penultimate", evaluator.features)
            ranks = replace(lineup, space=space).ranks(reconstruction)
        elif among and len(original) > 1:
            ranks = matched(reconstruction, original, range(len(original)), evaluator.features).ranks.tolist()
        else:
            continue
        said[f"match_rank:{evaluator.name}"] = ranks
    return said
