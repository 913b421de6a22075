"""Diagonal Fisher information leakage, and the errors that it bounds.

Maeng, Guo, Kariyappa and Suh: "Measuring and Controlling Split Layer Privacy Leakage Using Fisher Information" (arXiv
2209.10119), "Bounding the Invertibility of Privacy-preserving Instance Encoding using Fisher Information" (arXiv
2305.04146). Features with Gaussian noise of deviation σ_t on tensor t have the Fisher information about the image
``F = Σ_t J_tᵀJ_t/σ_t²``, and

    dFIL = tr(F)/d.

* Cramér–Rao: any *unbiased* attacker has ``E‖x̂ − x‖²/d ≥ tr(F⁻¹)/d ≥ 1/dFIL`` (arithmetic and harmonic mean of F's
  eigenvalues; equal where F is a multiple of the identity).
* van Trees (Detection, Estimation and Modulation Theory I, 1968; Gill and Levit, Bernoulli 1(1/2), 1995): any
  attacker at all has, on average over images with density p, ``E‖x̂ − x‖²/d ≥ 1/(E dFIL + tr J_P/d)``, where
  ``J_P = E ∇log p ∇log pᵀ``.

Not contained: noise whose deviation itself depends on the image (a ratio of its features' spread s) tells of the
image by its strength, too; that adds ``2k‖∇ log s‖²/d``, at most ``2 r² λ_max(F)/d`` for k features and the ratio r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitsight.leakage.energy import Energy
from splitsight.leakage.estimates import Deviations, Estimates, deviations_of

__all__ = ["Bound", "cramer_rao", "dfil", "van_trees"]


def dfil(energy: Energy, sigma: Deviations) -> Estimates | None:
    """dFIL of each image, in inverse squared input numbers.

    Args:
        energy: of the Jacobian.
        sigma: deviation of the noise in the features' unit, as ``EdgePipeline.deviations`` gives it: one number, one a
            tensor, or one an image and tensor.

    Returns:
        ``None`` where a tensor crosses without noise: dFIL is infinite there and bounds nothing.

    Raises:
        ValueError: deviations that are negative, not finite, or of another number of tensors or images.
    """
    deviations = deviations_of(sigma, *energy.samples.shape[:2])
    return None if deviations is None else energy.weighted(deviations**-2)


@dataclass(frozen=True)
class Bound:
    """A lower limit of the mean squared error an input number, averaged over images.

    Attributes:
        mse: the limit, from the mean over the images measured; infinite where the features say nothing.
        low: from the upper end of that mean's 95 % interval.
        high: from the lower end; infinite where it is 0.
    """

    mse: float
    low: float
    high: float

    @property
    def psnr(self) -> float:
        """Upper limit of the PSNR *of that mean squared error*, dB; a mean of PSNRs over images can exceed it.

        Infinite for the limit 0, minus infinity for an infinite one.
        """
        return 10 * math.log10(1 / self.mse) if 0 < self.mse < math.inf else math.inf if self.mse == 0 else -math.inf


def cramer_rao(leakage: Estimates | None) -> Bound | None:
    """``1/E dFIL``: what the mean squared error of unbiased attackers is at least, by convexity also of ``E 1/dFIL``.

    Every attack here is biased (by its prior, its stopping, the limits 0 and 1), and may do better than this.
    """
    return _bound(leakage, 0.0)


def van_trees(leakage: Estimates | None, prior_information: float) -> Bound | None:
    """``1/(E dFIL + tr J_P/d)``: what the mean squared error of any attacker is at least.

    Args:
        leakage: dFIL of images drawn from the prior whose information is given.
        prior_information: ``tr J_P/d``, or more than that (:class:`splitsight.leakage.PriorInformation`, ``high``);
            0 gives Cramér–Rao's.

    Raises:
        ValueError: negative or not a number.
    """
    if not prior_information >= 0:
        raise ValueError(f"a prior's information is at least 0, not {prior_information}")
    return _bound(leakage, prior_information)


def _bound(leakage: Estimates | None, prior: float) -> Bound | None:
    if leakage is None:
        return None
    found = leakage.interval((0, math.inf))
    mean, low, high = (_reciprocal(float(found[k] or 0) + prior) for k in ("mean", "high", "low"))
    return Bound(mean, low, high)


def _reciprocal(x: float) -> float:
    return 1 / x if x else math.inf
