"""An empirical lower bound on ε: the best that a distinguisher does in the game that differential privacy is about.

Two frames a and b are known, one of them was sent, and the mechanism's output y is to tell which. (ε, δ) means that for
every set of outputs, ``P[y ∈ S | a] ≤ e^ε P[y ∈ S | b] + δ``, and the same with a and b exchanged. For S = {s(y) > t}
with true and false positive rates this is

    ε ≥ log((TPR − δ) / FPR)        ε ≥ log((TNR − δ) / FNR)

(Kairouz, Oh and Viswanath 2015; as an audit: Jagielski, Ullman and Oprea 2020, Nasr et al. 2023). The statistic s is
the log-likelihood ratio, which no other test beats (Neyman and Pearson): for Gaussian noise ``⟨y, a − b⟩``, for Laplace
noise ``‖y − b‖₁ − ‖y − a‖₁``. Threshold and direction are chosen on one half of the draws; the rates come from the
other half, as Clopper–Pearson bounds that hold together with 95 % confidence. So what is returned is below the true ε
with that confidence, and a claimed ε below it is wrong.

With n draws a side no more than about log(n/4) can be shown: a claim far above that is not tested by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import beta, chi2
from torch import Tensor

from splitsight.defenses import Features, Protection
from splitsight.draws import Draws

__all__ = ["Audit", "ScaleTest", "audit", "scale_test", "worst_pair"]

_CONFIDENCE = 0.95
_AT_ONCE = 1 << 22
"""Numbers drawn at once."""
_THRESHOLDS = 400


@dataclass(frozen=True)
class Audit:
    """What the game showed.

    Attributes:
        epsilon: lower bound on ε, at least 0.
        delta: at this δ.
        draws: of each of the two frames, half of which chose the threshold.
        confidence: that the true ε is not below :attr:`epsilon`.
        distance: between the two frames' features behind what bounds them, ℓ₂, in their unit.
        tpr: lower bound of the rate at which the frame that was sent was named.
        fpr: upper bound of the rate at which it was named wrongly.
    """

    epsilon: float
    delta: float
    draws: int
    confidence: float
    distance: float
    tpr: float
    fpr: float


@dataclass(frozen=True)
class ScaleTest:
    """The noise's variance against theory.

    Attributes:
        measured: standard deviation over all draws, root mean square over entries.
        expected: as the defence says it.
        p: two-sided p-value of the χ² test that they are equal; for Laplace noise with its own kurtosis.
        numbers: that were drawn.
    """

    measured: float
    expected: float
    p: float
    numbers: int


def worst_pair(protection: Protection, features: Features, *, opposite: bool = True) -> tuple[Features, Features]:
    """The two frames whose features lie farthest apart where the noise is added.

    Args:
        protection: the defence at work; without its noise it says where.
        features: of some frames, each ``(N, …)``.
        opposite: try also each frame's negative, and its largest number alone (farthest apart in a ball of ℓ₁): the
            mechanism's guarantee is for any features in the ball, whether or not an image has them.

    Returns:
        Two frames, each ``(1, …)``, before the defence.
    """
    candidates = features
    if opposite:
        alone = _largest_alone(features)
        candidates = tuple(torch.cat([z, -z, e, -e]) for z, e in zip(features, alone, strict=True))
    flat = torch.cat([z.flatten(1) for z in protection.expected(candidates)], 1).double()
    distances = torch.cdist(flat, flat)
    i, j = divmod(int(distances.argmax()), len(flat))
    return tuple(z[i : i + 1] for z in candidates), tuple(z[j : j + 1] for z in candidates)


def _largest_alone(features: Features) -> Features:
    """Each frame's largest number, all others zero, with the frame's ℓ₁ norm."""
    flat = torch.cat([z.flatten(1) for z in features], 1)
    alone = torch.zeros_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), flat.abs().sum(1, keepdim=True))
    parts = alone.split([z[0].numel() for z in features], dim=1)
    return tuple(part.view_as(z) for part, z in zip(parts, features, strict=True))


@torch.no_grad()
def audit(
    protection: Protection,
    a: Features,
    b: Features,
    *,
    draws: int = 20_000,
    delta: float = 1e-5,
    seed: int | None = None,
) -> Audit:
    """Play the game.

    Args:
        protection: the mechanism, a clip and noise (and post-processing that keeps the noise's mean).
        a: one frame's features, each ``(1, …)``, before the defence.
        b: another's.
        draws: of each, ≥ 10,000.
        delta: δ.
        seed: of the draws; the system's entropy by default, as on an edge.

    Raises:
        ValueError: too few draws to show anything.
    """
    if draws < 10_000:
        raise ValueError(f"{draws} draws show too little: take 10,000 or more")
    centre_a, centre_b = (_flat(protection.expected(z))[0] for z in (a, b))
    scores = [
        _scores(protection, z, centre_a, centre_b, draws, Draws() if seed is None else Draws.stream(2 * seed + i))
        for i, z in enumerate((a, b))
    ]
    half = draws // 2
    direction, threshold = _chosen(scores[0][:half], scores[1][:half], delta)
    held = [direction * s[half:] for s in scores]
    named, wrongly = (held[0], held[1]) if direction > 0 else (held[1], held[0])
    # two bounds that hold together
    alpha = (1 - _CONFIDENCE) / 2
    tpr = _lower(int((named > threshold).sum()), len(named), alpha)
    fpr = 1 - _lower(int((wrongly <= threshold).sum()), len(wrongly), alpha)
    found = math.log((tpr - delta) / fpr) if tpr > delta else 0.0
    distance = float((centre_a - centre_b).norm())
    return Audit(max(0.0, found), delta, draws, _CONFIDENCE, distance, tpr, fpr)


def _flat(features: Features) -> Tensor:
    return torch.cat([z.flatten(1) for z in features], 1).double()


def _scores(protection: Protection, z: Features, a: Tensor, b: Tensor, draws: int, numbers: Draws) -> np.ndarray:
    """The log-likelihood ratio of a to b, up to a factor, of each draw."""
    found, size = [], max(1, _AT_ONCE // len(a))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        y = _flat(protection(tuple(t.expand(count, *t.shape[1:]) for t in z), numbers))
        if protection.law == "laplace":
            found.append(((y - b).abs().sum(1) - (y - a).abs().sum(1)).numpy())
        else:
            found.append(((y - (a + b) / 2) @ (a - b)).numpy())
    return np.concatenate(found)


def _chosen(a: np.ndarray, b: np.ndarray, delta: float) -> tuple[int, float]:
    """The direction and the threshold with the largest bound on the first half."""
    best = (-math.inf, 1, 0.0)
    alpha = (1 - _CONFIDENCE) / 2
    for direction in (1, -1):
        named, wrongly = (a, b) if direction > 0 else (-b, -a)
        for threshold in np.quantile(np.concatenate([named, wrongly]), np.linspace(0, 1, _THRESHOLDS)):
            tpr = _lower(int((named > threshold).sum()), len(named), alpha)
            fpr = 1 - _lower(int((wrongly <= threshold).sum()), len(wrongly), alpha)
            if tpr > delta and (value := math.log((tpr - delta) / fpr)) > best[0]:
                best = (value, direction, float(threshold))
    return best[1], best[2]


def _lower(hits: int, n: int, alpha: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a rate."""
    return float(beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0


@torch.no_grad()
def scale_test(
    protection: Protection, shapes: Sequence[tuple[int, ...]], *, frames: int = 200, seed: int = 0
) -> ScaleTest:
    """χ² test of the noise's variance: on zeros, which a clip leaves as they are.

    Args:
        protection: the mechanism.
        shapes: of the features, without batch dimension.
        frames: to draw.
        seed: of the draws.
    """
    zero = tuple(torch.zeros(frames, *shape) for shape in shapes)
    noise = protection(zero, Draws.stream(seed))
    said = protection.deviations(zero)
    scaled = torch.cat([(n / s).flatten().double() for n, s in zip(noise, said, strict=True)])
    squares = torch.cat([torch.as_tensor(s).square().expand_as(n).flatten() for n, s in zip(noise, said, strict=True)])
    n, statistic = len(scaled), float(scaled.square().sum())
    # the square of a Laplace variable of unit variance has variance 5, that of a normal one 2
    spread = math.sqrt(5 / 2) if protection.law == "laplace" else 1.0
    below = float(chi2.cdf(n + (statistic - n) / spread, n))
    measured = float(torch.cat([z.flatten() for z in noise]).double().square().mean().sqrt())
    return ScaleTest(measured, float(squares.double().mean().sqrt()), 2 * min(below, 1 - below), n)
