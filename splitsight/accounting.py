"""The privacy accountant: what noise on a clipped frame guarantees, and what a stream of such frames has spent.

A mechanism releases ``z + n`` where ‖z‖ ≤ C, in ℓ₂ with Gaussian n and in ℓ₁ with Laplace n. **Neighbours are any two
frames**: nothing is assumed to be public about a frame, so one may be replaced by any other, whose features lie
anywhere in the same ball. Hence the sensitivity

    Δ = max ‖z − z'‖ ≤ ‖z‖ + ‖z'‖ ≤ 2C,

attained by opposite points, and not C, which is the sensitivity for frames that are added or removed. All that
follows depends on the *noise multiplier* alone, the noise's scale divided by Δ: σ/(2C), or b/(2C).

* Gaussian: (ε, δ) by the analytic Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8), in closed form.
* Laplace: ε = Δ/b, δ = 0 (Dwork et al., 2006).

Frames of a stream compose. Gaussian mechanisms compose to a Gaussian mechanism, exactly and for different noise too:
with multipliers m_i, that of the whole is ``(Σ 1/m_i²)^{-1/2}`` (Dong, Roth and Su, Gaussian differential privacy,
2022, corollary 3.3); T equal frames have m/√T. Mixtures with Laplace noise go through dp-accounting's privacy loss
distributions, which give an upper bound that is tight up to their grid.

With ``NeighboringRelation.REPLACE_ONE`` dp-accounting's PLD accountant doubles the sensitivity itself, and its RDP
accountant does not. Here the doubling is in the multiplier, and both are used with their default relation only.

The ε of a frame is a statement about that frame. The ε of a stream is one about a change of *all* its frames
together, and large after seconds: it is said beside the frame's wherever that is said.

Guarantees are for real numbers: noise in floating point can leak more (Mironov, CCS 2012), and the edge's generator,
seeded with 128 bits of the system's entropy, is not a cryptographic one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from splitsight.errors import UserError

__all__ = ["DELTA", "Accountant", "Mechanism", "gaussian_multiplier", "laplace_multiplier"]

DELTA = 1e-5
"""δ where none is given."""
_GRID = 1e-4
"""Finest step of a privacy loss distribution."""
_POINTS = 50_000
"""About how many steps a whole stream's losses may span: memory and time grow with it."""


def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """Least σ/Δ for (ε, δ), of the analytic Gaussian mechanism.

    Args:
        epsilon: > 0.
        delta: in (0, 1).
    """
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))


def laplace_multiplier(epsilon: float) -> float:
    """b/Δ for ε, δ = 0."""
    return 1 / epsilon


@dataclass(frozen=True)
class Mechanism:
    """Noise on a value of bounded sensitivity.

    Attributes:
        law: ``gaussian`` or ``laplace``.
        multiplier: the noise's scale (σ, or b) divided by the sensitivity; > 0.
        delta: δ that its ε is given at.
    """

    law: str
    multiplier: float
    delta: float = DELTA

    @property
    def stated_delta(self) -> float:
        """δ of a single frame: 0 with Laplace noise."""
        return self.delta if self.law == "gaussian" else 0.0

    def epsilon(self, frames: int = 1) -> float:
        """ε of that many frames at :attr:`delta`; of a single Laplace frame for δ = 0."""
        if self.law == "laplace" and frames == 1:
            return 1 / self.multiplier
        return Accountant(self.delta).spent(self, frames).epsilon


class Accountant:
    """ε of what was released so far, at one δ.

    Args:
        delta: δ of the whole stream, in (0, 1).
    """

    def __init__(self, delta: float = DELTA) -> None:
        self.delta = delta
        self._frames: Counter[tuple[str, float]] = Counter()
        self._known: float | None = 0.0

    def spent(self, mechanism: Mechanism, frames: int = 1) -> Accountant:
        """Counts frames that were released by a mechanism; returns itself."""
        if frames:
            self._frames[mechanism.law, mechanism.multiplier] += frames
            self._known = None
        return self

    @property
    def frames(self) -> int:
        """How many were released."""
        return sum(self._frames.values())

    @property
    def epsilon(self) -> float:
        """ε at δ, 0 before the first frame; an upper bound, and exact where all noise is Gaussian."""
        if self._known is None:
            self._known = self._compose()
        return self._known

    def _compose(self) -> float:
        gaussian = sum(n / m**2 for (law, m), n in self._frames.items() if law == "gaussian")
        laplace = {m: n for (law, m), n in self._frames.items() if law == "laplace"}
        if not laplace:
            return _gaussian_epsilon(gaussian**-0.5, self.delta)
        pure = sum(n / m for m, n in laplace.items())
        # what δ buys, of the losses' distribution; never more than by adding up, where nothing needs δ
        bounds = [_pld_epsilon(gaussian, laplace, self.delta, pure)]
        bounds.append(pure if not gaussian else pure + _gaussian_epsilon(gaussian**-0.5, self.delta))
        return min(bounds)

    def affordable(self, mechanism: Mechanism, budget: float) -> int:
        """How many further frames fit into a budget: the largest n for which ε stays at or below it.

        Raises:
            UserError: none does.
        """
        if not self._fits(mechanism, 1, budget):
            said = f"ε = {self.epsilon:.4g} of {self.frames} frames" if self.frames else "nothing"
            one = mechanism.epsilon()
            raise UserError(
                f"the budget ε = {budget:g} is spent: {said} so far, and another frame costs ε = {one:.4g}; "
                "give a larger --epsilon-budget or a defence with more noise"
            )
        low, high = 1, 2
        while self._fits(mechanism, high, budget):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(mechanism, middle, budget) else (low, middle)
        return low

    def _fits(self, mechanism: Mechanism, frames: int, budget: float) -> bool:
        tried = Accountant(self.delta)
        tried._frames = Counter(self._frames)
        return tried.spent(mechanism, frames).epsilon <= budget


def _gaussian_epsilon(multiplier: float, delta: float) -> float:
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(multiplier, delta))


def _pld_epsilon(gaussian: float, laplace: dict[float, int], delta: float, pure: float) -> float:
    from dp_accounting import GaussianDpEvent, LaplaceDpEvent
    from dp_accounting.pld import PLDAccountant

    span = pure + (_gaussian_epsilon(gaussian**-0.5, delta) if gaussian else 0.0)
    accountant = PLDAccountant(value_discretization_interval=max(_GRID, span / _POINTS))
    for multiplier, frames in laplace.items():
        accountant.compose(LaplaceDpEvent(multiplier), frames)
    if gaussian:  # all of them are one
        accountant.compose(GaussianDpEvent(gaussian**-0.5))
    return float(accountant.get_epsilon(delta))
