"""FSInfoGuard: Gaussian noise of the strength that leaves a chosen Fisher-approximated Shannon information (FSInfo).

In nats for each of d numbers of the image, with J = ∂z/∂x (Deng et al., Quantifying Privacy Leakage in Split Inference
via Fisher-Approximated Shannon Information Analysis, arXiv 2504.10016):

    FSInfo = (1/2d) log det(JᵀJ / σ²) − ½ log 2πe     ⇒     σ = exp(L − FSInfo − ½ log 2πe),  L = (1/2d) log det JᵀJ.

Less is safer. As in the closed form of the paper the noise is a function of J's determinant alone. **Ours**: where
there are fewer features than numbers in the image, JᵀJ is singular and FSInfo is −∞ for any noise; L is then taken over
JJᵀ, the directions that are seen at all, and eigenvalues have a floor (:mod:`splitsight.defenses._jacobian`). L is the
largest over some images, measured once (``splitsight calibrate fsinfo:target=…``), not computed for each frame.

The measure rests on a Gaussian approximation of what is known of the image; nothing is proven by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from splitsight.defenses import DEFENSES, Cost, Defense, Features, Parameters, Place, Protection
from splitsight.defenses._jacobian import half_log_determinant
from splitsight.defenses._noise import Constant
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["FSInfo"]


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
        largest = max(half_log_determinant(head, image, seed=i) for i, image in enumerate(images))
        return FSInfo(_Parameters(target=self.parameters.target, logdet=float(f"{largest:.6g}")))

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        return Constant(self.sigma), None

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A multiplication and an addition a number; drawing it is not counted."""
        return Cost(flops=2 * sum(spec.numel for spec in specs))
