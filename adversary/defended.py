"""What an attacker makes of tapped features who was told the defence, its parameters, and never its draws.

* What he fits is the edge pipeline without chance, on the entries that the tap shows were sent (top-k, dropout, DISCO:
  the support is in the tap; DRAG, arXiv 2509.11724, matches it only there).
* The likelihood of what is left has the law and the strength of the defence's noise, entry by entry.
* **A static scene.** T frames of it differ by the defence's chance alone. Where that is drawn anew for each frame, the
  mean of its n observations of a number has noise σ/√n, and a number that was sent once is known. Noise that is drawn
  once is in the mean as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adversary.attacks.base import Known
from splitsight.defenses import Scale
from splitsight.pipeline import EdgePipeline, Expected

__all__ = ["averaged", "told"]


def averaged(
    features: Sequence[Tensor], frames: int, support: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Means over each ``frames`` consecutive frames, and how many observations each number of them has.

    Args:
        features: each ``(K · frames, …)``, the frames of a static scene side by side.
        frames: T.
        support: bool, of the same shapes: what was sent; all of it by default.

    Returns:
        Features, each ``(K, …)``, 0 where nothing was sent; and the numbers of observations, likewise.
    """
    means, counts = [], []
    for i, z in enumerate(features):
        sent = torch.ones_like(z) if support is None else support[i].to(z)
        seen = sent.unflatten(0, (-1, frames)).sum(1)
        means.append((sent * z).unflatten(0, (-1, frames)).sum(1) / seen.clamp_min(1))
        counts.append(seen)
    return means, counts


def _mean_square(scale: Scale, like: Tensor, frames: int) -> Tensor:
    """Root mean square of σ over the frames of each scene, ``(K, …)`` or what broadcasts against it."""
    sigma = torch.as_tensor(scale).to(like)
    if sigma.ndim < like.ndim or len(sigma) != len(like):
        return sigma
    return sigma.square().unflatten(0, (-1, frames)).mean(1).sqrt()


def told(edge: EdgePipeline, features: Sequence[Tensor], *, static: int = 1) -> Known:
    """What the defence of an edge says about its features.

    Args:
        edge: as the attacker knows it.
        features: the tapped ones, each ``(K · static, …)``.
        static: T, frames of a static scene side by side, which become one.

    Returns:
        Features, each ``(K, …)``, and what is known of them.
    """
    whole, protection = tuple(features), edge.protection
    support, fresh = protection.support(whole), protection.fresh
    noise: list[Scale] = list(protection.deviations(whole))
    covariances = protection.covariances(whole)
    laplace = protection.law == "laplace"
    if static > 1:
        means, counts = averaged(whole, static, support)
        noise = [_mean_square(s, z, static) for s, z in zip(noise, whole, strict=True)]
        if fresh:
            noise = [s / n.clamp_min(1).sqrt() for s, n in zip(noise, counts, strict=True)]
            covariances = [None if c is None else c / static for c in covariances]
            laplace = False  # a mean of several is nearer to normal
        whole = tuple(means)
        support = None if support is None else tuple(n > 0 for n in counts)
    return Known(
        features=list(whole),
        pipeline=Expected(edge, support),
        noise=noise,
        support=None if support is None else [m.to(z) for m, z in zip(support, whole, strict=True)],
        laplace=laplace,
        covariances=None if all(c is None for c in covariances) else list(covariances),
        fresh=fresh,
    )
