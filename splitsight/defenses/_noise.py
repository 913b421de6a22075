"""What the defences that add noise have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from splitsight.accounting import Mechanism
from splitsight.defenses._base import Defense, Features, Law, Norms, Protection, Scale
from splitsight.draws import Draws
from splitsight.errors import UserError

__all__ = ["Constant", "needed", "promise", "spread", "spread_in_noise"]


def spread(z: Tensor) -> Tensor:
    """Standard deviation of each frame's numbers, ``(B, 1, …)``."""
    return z.flatten(1).std(1).view(-1, *[1] * (z.ndim - 1))


def spread_in_noise(tapped: Tensor, ratio: float) -> float:
    """Noise that is ``ratio`` times the spread of what it was added to, told from tapped features: it is in theirs."""
    return ratio / (1 + ratio**2) ** 0.5 * float(tapped.flatten(1).std(1).mean())


def needed(noise: Defense[Any], before: Norms, order: int) -> float:
    """The bound that noise is calibrated to.

    Raises:
        UserError: there is none; one sentence with the reason.
    """
    bound = before.bound(order)
    if bound is None:
        why = before.why
        if before.bounds:
            why = f"the clip before it bounds ‖z‖ of order {min(before.bounds)}, not {order}"
        clip = "clip:norm=C" + (",order=1" if order == 1 else "")
        raise UserError(
            f"'{noise}' promises an ε that nothing bounds: {why}; put {clip} directly before it, or give the noise's "
            "strength instead, which promises nothing"
        )
    return bound


def promise(mechanism: Mechanism | None, bound: str, scale: str) -> str | None:
    """The sentence about a frame that a mechanism gives a guarantee for."""
    if mechanism is None:
        return None
    pair = f"ε = {mechanism.epsilon():.4g}" + f", δ = {mechanism.stated_delta:g}"
    return (
        f"each frame is differentially private with {pair} towards anyone who sees what leaves but not the draws, any "
        f"two frames being neighbours ({bound}, sensitivity twice that, {scale}); over a stream ε adds up"
    )


class Constant(Protection):
    """Gaussian noise of one strength on every number.

    Args:
        sigma: standard deviation, in the features' unit.
    """

    law: Law | None = "gaussian"

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, features: Features, draws: Draws) -> Features:
        """Features → with noise."""
        return tuple(z + self.sigma * draws.normal(z) for z in features)

    def deviations(self, features: Features) -> list[Scale]:
        """σ for each tensor."""
        return [self.sigma] * len(features)
