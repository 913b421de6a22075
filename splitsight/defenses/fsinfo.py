"""FSInfoGuard: Gaussian noise of the strength that leaves a chosen Fisher-approximated Shannon information (FSInfo).

In nats for each of d numbers of the image, with J = ∂z/∂x (Deng et al., Quantifying Privacy Leakage in Split Inference
via Fisher-Approximated Shannon Information Analysis, arXiv 2504.10016):

    FSInfo = (1/2d) log det(JᵀJ / σ²) − ½ log 2πe     ⇒     σ = exp(L − FSInfo − ½ log 2πe),  L = (1/2d) log det JᵀJ.

Less is safer. As in the closed form of the paper the noise is a function of J's determinant alone. **Ours**: where
there are fewer features than numbers in the image, JᵀJ is singular and FSInfo is −∞ for any noise; L is then taken over
JJᵀ, the directions that are seen at all, and units that a rectifier holds at zero get a floor: ``log(λ + f)``, f a
millionth of the mean eigenvalue. L is the largest over some images, measured once (``splitsight calibrate
fsinfo:target=…``), not computed for each frame. :func:`splitsight.leakage.fsinfo` measures with a prior of the image in
the determinant instead, which keeps it finite and never below the prior's own certainty; the two agree where the
features say much more than that.

The measure rests on a Gaussian approximation of what is known of the image; nothing is proven by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Parameters, Place, Protection
from splitsight.defenses._noise import Constant
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.leakage import fsinfo, jacobian_energy

__all__ = ["FSInfo", "half_log_determinants"]

_FLOOR = 1e-6
"""Of an eigenvalue, as a part of their mean."""


class _Parameters(Parameters):
    target: float = Field(allow_inf_nan=False, description="FSInfo in nats a number; less is safer, may be negative")
    logdet: float | None = Field(
        default=None, allow_inf_nan=False, description="L, as `splitsight calibrate` measures it"
    )


@DEFENSES.register("fsinfo")
class FSInfo(Defense[_Parameters]):
    """FSInfoGuard: Gaussian noise calibrated to a Fisher-approximated Shannon information; proves nothing."""

    name = "fsinfo"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    @property
    def sigma(self) -> float:
        """σ in the features' unit.

        Raises:
            UserError: L was not measured.
        """
        p = self.parameters
        if p.logdet is None:
            raise UserError(
                f"'{self}' does not know F1's Jacobian: let `splitsight calibrate '{self}'` measure it on images"
            )
        return math.exp(p.logdet - p.target) / math.sqrt(2 * math.pi * math.e)

    def fitted(
        self, head: Callable[[Tensor], Features], images: Tensor, place: Place, out: Path | None = None
    ) -> FSInfo:
        """With the largest L of these images."""
        largest = float(half_log_determinants(head, images).max())
        return FSInfo(_Parameters(target=self.parameters.target, logdet=float(f"{largest:.6g}")))

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return Constant(self.sigma), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))


def half_log_determinants(
    head: Callable[[Tensor], Features], images: Tensor, *, probes: int = 4, steps: int = 24
) -> np.ndarray:
    """L of each image ``(N, 3, S, S)``: ``(1/2r) log det`` of JᵀJ + f or JJᵀ + f, r the side of the smaller one.

    Args:
        head: images → features, differentiable.
        images: where.
        probes: random vectors.
        steps: of Lanczos for each.
    """
    numbers = images[0].numel()
    with torch.no_grad():
        seen = sum(z[0].numel() for z in head(images[:1]))
    side = min(numbers, seen)
    found = []
    for i, image in enumerate(images.split(1)):
        floor = _FLOOR * float(jacobian_energy(head, image, probes=probes, seed=i).values[0]) * numbers / side
        if floor == 0:
            raise UserError(f"the features do not move with image {i}, counted from 0: give other images")
        # log det(I + JJᵀ/f), as the information that noise of variance f leaves about numbers of variance 1
        known = fsinfo(head, image, math.sqrt(floor), prior_variance=1.0, probes=probes, steps=steps, seed=i)
        assert known is not None
        found.append(float(known.information.values[0]) * numbers / side + 0.5 * math.log(floor))
    return np.array(found)
