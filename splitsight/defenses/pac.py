"""PAC noise: anisotropic Gaussian noise for a budget of mutual information between a frame and what leaves.

For any distribution of frames whose features have the covariance Σ, and Gaussian noise of covariance B,

    I(x; z + n) ≤ ½ log det(I + Σ B⁻¹)      nats

(Xiao and Devadas, PAC Privacy, CRYPTO 2023, theorem 3; it is tight for Gaussian features, Zhang and Vorobeychik, arXiv
2506.06530). Among noises with B's eigenvectors those of Σ, the least total variance for ``½ tr(Σ B⁻¹) ≤ v`` has

    eigenvalues  b = √λ · Σ_j √λ_j / (2v):

strong where features vary much, weak where they hardly do. ``log(1 + t) ≤ t`` makes that a bound of v in closed form.
Here the shape ``b = c √λ`` is kept, and c is what meets the budget without that inequality, ``Σ ½ log(1 + √λ/c) = v``:
less noise for the same bound.

Σ of thousands of features is not estimated in full. Features are turned, position by position, into the eigenvectors
of their channels' covariance, and λ is the variance of each number there. By Hadamard's inequality ``det(I + Σ B⁻¹)``
is at most the product over B's own axes, so the bound holds for whatever correlation is left.

The budget is for frames *distributed like the images that λ was measured on*, not for any frame: weaker than
differential privacy, which it is not. Frames of a stream add up at most: T of them leak at most T v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from splitsight.artifacts import home
from splitsight.defenses import DEFENSES, Cost, Features, Law, Parameters, Place, Protection, Scale
from splitsight.defenses._trained import Trained, TrainedParameters
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.names import file_stem

__all__ = ["PAC"]

_AT_ONCE = 64
_FLOOR = 1e-3
"""Added to each variance, as a part of their mean: what never moved in the images may move in a frame."""
_ROUNDING = 1.01
"""Factor that keeps a variance from being rounded down when its logarithm is stored in half precision."""


class _Parameters(TrainedParameters):
    weights: str = Field(
        default="", description="file with the features' variances that `splitsight calibrate` measured, or its name"
    )
    budget: float = Field(gt=0, allow_inf_nan=False, description="mutual information of a frame with what leaves, nats")


class _Spectrum(nn.Module):
    """Of one tensor: ``basis`` ``(C, C)``, columns orthonormal, and the logarithm of the variances there."""

    basis: Tensor
    log_variance: Tensor

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        shape = spec.channels_last(torch.empty(1, *spec.shape)).shape[1:]
        self.register_buffer("basis", torch.eye(spec.channels))
        self.register_buffer("log_variance", torch.zeros(shape))


class _Anisotropic(Protection):
    law: Law | None = "gaussian"

    def __init__(self, specs: Sequence[FeatureSpec], spectra: Sequence[_Spectrum], budget: float) -> None:
        super().__init__()
        self.specs = tuple(specs)
        roots = [(0.5 * s.log_variance.double()).exp() for s in spectra]
        scale = _scale(torch.cat([r.flatten() for r in roots]), budget)
        for i, (spectrum, root) in enumerate(zip(spectra, roots, strict=True)):
            self.register_buffer(f"basis{i}", _orthonormal(spectrum.basis))
            self.register_buffer(f"variance{i}", (scale * root).float())

    def _of(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"basis{i}"), self.get_buffer(f"variance{i}")

    def forward(self, features: Features, draws: Draws) -> Features:
        noisy = []
        for i, (spec, z) in enumerate(zip(self.specs, features, strict=True)):
            basis, variance = self._of(i)
            drawn = spec.channels_last(draws.normal(z)) * variance.sqrt()
            noisy.append(z + spec.from_channels_last(drawn @ basis.T))
        return tuple(noisy)

    def deviations(self, features: Features) -> list[Scale]:
        found: list[Scale] = []
        for i, spec in enumerate(self.specs):
            basis, variance = self._of(i)
            found.append(spec.from_channels_last(variance @ basis.square().T).sqrt()[None])
        return found

    def covariances(self, features: Features) -> list[Tensor | None]:
        """The mean over positions."""
        found: list[Tensor | None] = []
        for i, spec in enumerate(self.specs):
            basis, variance = self._of(i)
            found.append((basis * variance.reshape(-1, spec.channels).mean(0)) @ basis.T)
        return found


@DEFENSES.register("pac")
class PAC(Trained[_Parameters]):
    """Anisotropic Gaussian noise for a budget of mutual information, on frames like those that it was measured on."""

    name = "pac"
    maker: ClassVar[str] = "splitsight calibrate pac:budget=…"
    Parameters: ClassVar[type[Parameters]] = _Parameters

    @torch.no_grad()
    def fitted(self, head: Callable[[Tensor], Features], images: Tensor, place: Place, out: Path | None = None) -> PAC:
        """With variances of these images, written to ``out``, by default to ``$SPLITSIGHT_HOME/defenses``.

        Raises:
            UserError: fewer than two images.
        """
        if len(images) < 2:
            raise UserError("the features' variances need at least two images: give more")
        spectra = measured(head, images)
        path = (
            out
            or home()
            / "defenses"
            / f"{file_stem('pac', place.target, place.split)}-{place.head_digest[:12]}.safetensors"
        )
        self.save(path, place, {"edge": spectra}, images=len(images))
        # by its name where it is found by that, so that a report and a session do not tell where it lies
        return PAC(_Parameters(weights=path.stem if out is None else str(path), budget=self.parameters.budget))

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, None]:
        """Noise on the edge, nothing on the server."""
        spectra = self.fill("edge", nn.ModuleList(_Spectrum(spec) for spec in specs))
        return _Anisotropic(
            specs, [cast(_Spectrum, s) for s in cast(nn.ModuleList, spectra)], self.parameters.budget
        ), None

    def guarantee(self) -> str | None:
        """The budget, and for which frames."""
        v = self.parameters.budget
        return (
            f"the mutual information between a frame and what leaves is at most {v:g} nats "
            f"({v / math.log(2):.3g} bits) for frames distributed like the {self.about.get('images')} images that the "
            "covariance was measured on; "
            "this is no differential privacy"
        )

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """A matrix product a position, a multiplication and an addition a number."""
        return Cost(flops=sum(2 * (spec.channels + 1) * spec.numel for spec in specs))


def _scale(roots: Tensor, budget: float) -> float:
    """c with ``Σ ½ log(1 + √λ/c) = v``, by bisection of its logarithm below the closed form ``Σ √λ / (2v)``."""
    high = float(roots.sum()) / (2 * budget)
    low = high
    while 0.5 * float((roots / low).log1p().sum()) < budget:
        low /= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        enough = 0.5 * float((roots / middle).log1p().sum()) <= budget
        low, high = (low, middle) if enough else (middle, high)
    return high


def _orthonormal(basis: Tensor) -> Tensor:
    """What the rounding of a stored basis took from it, put right."""
    q, r = torch.linalg.qr(basis.double())
    return (q * r.diagonal().sign()).float()


def measured(head: Callable[[Tensor], Features], images: Tensor) -> nn.ModuleList:
    """The spectra of features over images ``(N, 3, S, S)``, as they will be read back from half precision."""
    batches = images.split(_AT_ONCE)
    first = head(images[:1])
    specs = [FeatureSpec(f"z{i}", tuple(z.shape[1:])) for i, z in enumerate(first)]
    rows = [s.channels_last(torch.zeros_like(z)).double() for s, z in zip(specs, first, strict=True)]
    means = [r.clone() for r in rows]
    for batch in batches:
        for i, (spec, z) in enumerate(zip(specs, head(batch), strict=True)):
            means[i] += spec.channels_last(z).double().sum(0, keepdim=True) / len(images)
    spectra = nn.ModuleList(_Spectrum(spec) for spec in specs)
    covariances = [torch.zeros(spec.channels, spec.channels).double() for spec in specs]
    for batch in batches:
        for i, (spec, z) in enumerate(zip(specs, head(batch), strict=True)):
            centred = (spec.channels_last(z).double() - means[i]).reshape(-1, spec.channels)
            covariances[i] += centred.T @ centred
    for spectrum, covariance in zip(spectra, covariances, strict=True):
        cast(_Spectrum, spectrum).basis.copy_(torch.linalg.eigh(covariance).eigenvectors.flip(1).half())
    variances = [r.clone() for r in rows]
    for batch in batches:
        for i, (spec, z) in enumerate(zip(specs, head(batch), strict=True)):
            basis = _orthonormal(cast(_Spectrum, spectra[i]).basis).double()
            turned = (spec.channels_last(z).double() - means[i]) @ basis
            variances[i] += turned.square().sum(0, keepdim=True) / (len(images) - 1)
    for spectrum, variance in zip(spectra, variances, strict=True):
        floored = (variance[0] + _FLOOR * variance.mean().clamp_min(1e-12)) * _ROUNDING
        cast(_Spectrum, spectrum).log_variance.copy_(floored.log())
    return spectra
