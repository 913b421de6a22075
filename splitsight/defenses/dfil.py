"""Gaussian noise of the strength that leaves a chosen diagonal Fisher information leakage (dFIL).

With noise of variance σ² on ``z = F1(x)`` the Fisher information about the image is ``JᵀJ / σ²``, J = ∂z/∂x, and

    dFIL = tr(JᵀJ) / (σ² d),     d numbers in the image,

bounds from below what an *unbiased* estimate of the image errs, ``E ‖x̂ − x‖²/d ≥ 1/dFIL`` (Maeng et al., Bounding the
Invertibility of Privacy-preserving Instance Encoding using Fisher Information, NeurIPS 2023, equation 3). So
``σ = √(E / dFIL)`` with the energy ``E = tr(JᵀJ) / d``. Attackers with a prior are biased and may err less.

Maeng et al. compute J for each frame on the edge; here E is the largest over some images, measured once
(``splitsight calibrate dfil:target=…``), and a parameter, so that the noise tells nothing about the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Parameters, Place, Protection
from splitsight.defenses._noise import Constant
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.leakage import jacobian_energy

__all__ = ["DFIL"]


class _Parameters(Parameters):
    target: float = Field(gt=0, allow_inf_nan=False, description="dFIL, in 1/squared pixel values of [0, 1]")
    energy: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="tr(JᵀJ)/d, as `splitsight calibrate` measures it"
    )


@DEFENSES.register("dfil")
class DFIL(Defense[_Parameters]):
    """Gaussian noise calibrated to a diagonal Fisher information leakage: bounds unbiased estimates alone."""

    name = "dfil"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    @property
    def sigma(self) -> float:
        """σ in the features' unit.

        Raises:
            UserError: the energy was not measured.
        """
        p = self.parameters
        if p.energy is None:
            raise UserError(
                f"'{self}' does not know the features' energy: let `splitsight calibrate '{self}'` measure it on images"
            )
        return (p.energy / p.target) ** 0.5

    def fitted(self, head: Callable[[Tensor], Features], images: Tensor, place: Place, out: Path | None = None) -> DFIL:
        """With the largest energy of these images."""
        largest = float(jacobian_energy(head, images, probes=16).values.max())
        return DFIL(_Parameters(target=self.parameters.target, energy=float(f"{largest:.6g}")))

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return Constant(self.sigma), None

    def guarantee(self) -> str | None:
        """The bound on unbiased estimates."""
        p = self.parameters
        if p.energy is None:
            return None
        return (
            f"no unbiased estimate of a frame whose Jacobian has tr(JᵀJ)/d ≤ {p.energy:g} has a mean squared error "
            f"below {1 / p.target:.3g} a number (dFIL = {p.target:g}); an attacker with a prior is biased, and not "
            "bounded by it"
        )

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
