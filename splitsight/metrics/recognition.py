"""What an evaluator recognises: the class of a reconstruction, and which image of a gallery it is.

* ``recognised``: it is put into its own class (or, where that is unknown, into what the original is put into).
* ``matched_top1``, ``matched_top5``: its original is the first, or among the first five, of a gallery by similarity in
  the evaluator's penultimate features; see :mod:`splitsight.metrics.retrieval`. Rows hold the rank.
* ``own_answer``: the attacked network itself puts it into what it puts the original into. It is no independent witness,
  since what fits its features looks right to it; it says what the reconstruction is worth to that network.
* ``lite0_distance``: the perceptual distance that the evaluator ``efficientnet-lite0`` has of its own.
"""

from __future__ import annotations

from torch import Tensor

from splitsight.metrics.metric import Batch, Metric, register
from splitsight.metrics.retrieval import matched

__all__ = ["lite0_distance", "own_answer", "rank", "recognised"]


def rank(batch: Batch) -> list[int | None]:
    """Place of each original among its gallery, 1 for found first; ``None`` where there is nothing to tell it from."""
    assert batch.evaluator is not None and batch.gallery is not None
    found: list[int | None] = []
    for i, image in enumerate(batch.reconstruction):
        gallery = batch.gallery(i)
        if gallery is None:
            found.append(None)
            continue
        features = batch.evaluator.features(image[None])
        found.append(int(matched(features, gallery, [0], lambda known: known).ranks[0]))
    return found


def recognised(batch: Batch) -> Tensor:
    """Whether each reconstruction is put into its class, ``(B,)`` bool."""
    assert batch.evaluator is not None and batch.label is not None
    return batch.evaluator.recognised(batch.reconstruction, batch.label, batch.original)


register(
    Metric(
        name="recognised",
        title="recognised",
        fn=recognised,
        needs=frozenset({"reconstruction", "original", "label", "evaluator"}),
        kind="share",
        digits=1,
        side="perception",
        place=30,
    )
)
for k, title in ((1, "found first"), (5, "found in five")):
    register(
        Metric(
            name=f"matched_top{k}",
            title=title,
            fn=rank,
            needs=frozenset({"reconstruction", "evaluator", "gallery"}),
            kind="share",
            digits=1,
            side="perception",
            plotted=k == 1,
            place=40,
            column="match_rank",
            hit=lambda place, k=k: place <= k,
        )
    )


def lite0_distance(batch: Batch) -> Tensor | None:
    """EfficientNet-Lite0's perceptual distance, ``(B,)``."""
    assert batch.evaluator is not None
    return batch.evaluator.distance(batch.reconstruction, batch.original)


register(
    Metric(
        name="lite0_distance",
        title="EfficientNet-Lite0 distance",
        fn=lite0_distance,
        needs=frozenset({"reconstruction", "original", "evaluator"}),
        better="lower",
        digits=3,
        bounds=(0.0, 4.0),
        side="perception",
        place=21,
        only="efficientnet-lite0",
    )
)


def own_answer(batch: Batch) -> list[bool | None]:
    """Whether the attacked network sees each reconstruction as what it sees the original as; ``None`` for nothing."""
    assert batch.network is not None
    whole = ~batch.reconstruction.isnan().flatten(1).any(1)
    seen, said = batch.network(batch.reconstruction.nan_to_num()).tolist(), batch.network(batch.original).tolist()
    return [None if b < 0 else a == b and w for a, b, w in zip(seen, said, whole.tolist(), strict=True)]


register(
    Metric(
        name="own_answer",
        title="own answer kept",
        fn=own_answer,
        needs=frozenset({"reconstruction", "original", "network"}),
        kind="share",
        digits=1,
        side="perception",
        plotted=False,
        place=45,
    )
)
