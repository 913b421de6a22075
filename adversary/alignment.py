"""A key that the attacker does not hold, found out: which order, or which rotation, the features were sent in.

* **Channels in an unknown order.** An attacker with pictures of the same kind needs no query: a channel keeps its
  distribution and its correlations with the others. The logarithms of its moments and its sorted correlations are
  compared with those of the attacker's own undefended features, and the order with the least total distance is an
  assignment problem (Crouse, 2016, as scipy solves it). With an order at hand, correlations can be compared one by one,
  and the order is found again, a few times (a quadratic assignment, by its linearisation: Vogelstein et al., 2015).
* **All numbers in an unknown order.** An attacker who may query the edge has pairs: the same pictures' features with
  and without the defence. Numbers that agree on all of them are the same: both sides are sorted by a random weighted
  sum over the pictures.
* **A rotation of the channels.** With pairs again, ``argmin_Q ‖Z Q − Z'‖`` over orthogonal Q is orthogonal Procrustes
  (Schönemann, Psychometrika 1966), from the singular vectors of ``Zᵀ Z'``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from splitsight.defenses import Chain
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline

__all__ = ["Restore", "channel_order", "find_key", "keyed", "keyless", "number_order", "rotation"]

Restore = Callable[[Sequence[Tensor]], list[Tensor]]
"""Tapped features → in the order, or in the directions, in which F1 makes them."""

_KEYED = ("permutation", "rotation")
_ROUNDS = 10
_LEAST_TAPPED = 64
"""Frames that statistics are taken of."""


def _moments(rows: Tensor) -> Tensor:
    """Of each channel, ``(C, 4)``: logarithms of mean size, deviation and third moment; how often it is above zero."""
    size = rows.abs()
    third = size.pow(3).mean(0).clamp_min(1e-18).log() / 3
    parts = [size.mean(0).clamp_min(1e-6).log(), rows.std(0).clamp_min(1e-6).log(), third]
    return torch.stack([*parts, 4 * (rows > 0).double().mean(0)], 1)


def _correlations(rows: Tensor) -> Tensor:
    """``(C, C)``; 0 for a channel that never moves."""
    centred = rows - rows.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(1e-9)
    return unit.T @ unit


def channel_order(own: Tensor, tapped: Tensor, spec: FeatureSpec) -> Tensor:
    """Which channel of the tapped tensor each own channel is, ``(C,)`` int64.

    Args:
        own: undefended features of the attacker's pictures, ``(N, *shape)``.
        tapped: of any other pictures of the kind, ``(M, *shape)``, behind one unknown order.
        spec: what they are.
    """
    mine, theirs = (spec.rows(z).double() for z in (own, tapped))
    a, b = _correlations(mine), _correlations(theirs)
    apart = torch.cdist(_moments(mine), _moments(theirs)).square()
    order = _assigned(apart + 3 * torch.cdist(a.sort(1).values, b.sort(1).values).square())
    for _ in range(_ROUNDS):
        order = _assigned(apart + torch.cdist(a, b[:, order]).square())
    return order


def _assigned(costs: Tensor) -> Tensor:
    return torch.from_numpy(linear_sum_assignment(costs.cpu().numpy())[1])


def number_order(own: Tensor, tapped: Tensor) -> Tensor:
    """Which number of the tapped tensor each own number is, ``(numbers,)`` int64.

    Args:
        own: undefended features of some pictures, ``(N, …)``; several, so that no two numbers agree on all of them.
        tapped: of the same pictures behind one unknown order, the same shape.
    """
    weights = torch.randn(len(own), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, theirs = (weights @ z.flatten(1).double().cpu() for z in (own, tapped))
    order = torch.empty(len(mine), dtype=torch.int64)
    order[mine.argsort()] = theirs.argsort()
    return order


def rotation(own: Tensor, tapped: Tensor, spec: FeatureSpec) -> Tensor:
    """The orthogonal Q, ``(C, C)``, with ``tapped = Q own`` at each position, in the least squares' sense.

    Args:
        own: undefended features of some pictures, ``(N, *shape)``; with more positions in all than channels.
        tapped: of the same pictures, the same shape.
        spec: what they are.
    """
    mine, theirs = (spec.rows(z).double().cpu().numpy() for z in (own, tapped))
    return torch.from_numpy(orthogonal_procrustes(mine, theirs)[0].T).float()


def keyed(edge: EdgePipeline) -> tuple[str, str] | None:
    """The defence of an edge that has a key, and what it is over; ``None`` where none has."""
    kinds = [(part.name, getattr(part.parameters, "over", "")) for part in edge.defense.parts]
    return next((kind for kind in kinds if kind[0] in _KEYED), None)


def keyless(defense: Chain) -> Chain:
    """What is left of a defence for an attacker who has found its key out."""
    return Chain([part for part in defense.parts if part.name not in _KEYED])


def find_key(
    edge: EdgePipeline,
    plain: EdgePipeline,
    pictures: Callable[[], Tensor],
    tapped: Sequence[Tensor],
    *,
    alike: bool = True,
) -> Restore:
    """How to undo what a key does to features.

    Args:
        edge: as it answers queries; its key is not read.
        plain: the same without its key, as the attacker has it.
        pictures: makes images ``(N, 3, S, S)`` of the attacker's own, when asked.
        alike: whether these are of the kind that the tap sees, so that statistics can be compared; if not, and for all
            but an order of channels, the edge is queried with them.
        tapped: what the tap has seen, each ``(M, …)``.
    """
    kind = keyed(edge)
    if kind is None:
        raise ValueError(f"the defence '{edge.defense}' has no key")
    with torch.no_grad():
        images = pictures()
        own = plain(images)
        passive = kind == ("permutation", "channels") and alike and len(tapped[0]) >= _LEAST_TAPPED
        answered = tapped if passive else edge(images)
    undo = [_undo(kind, passive, *each) for each in zip(own, answered, edge.specs, strict=True)]
    return lambda features: [one(z) for one, z in zip(undo, features, strict=True)]


def _undo(
    kind: tuple[str, str], passive: bool, own: Tensor, seen: Tensor, spec: FeatureSpec
) -> Callable[[Tensor], Tensor]:
    if kind[0] == "rotation":
        matrix = rotation(own, seen, spec)
        return lambda z: spec.from_channels_last(spec.channels_last(z) @ matrix.to(z))
    if kind[1] == "channels":
        means = [spec.rows(z).unflatten(0, (len(z), -1)).mean(1) for z in (own, seen)]
        order = channel_order(own, seen, spec) if passive else number_order(*means)
        return lambda z: spec.from_channels_last(spec.channels_last(z)[..., order.to(z.device)])
    order = number_order(own, seen)
    return lambda z: z.flatten(1)[:, order.to(z.device)].view_as(z)
