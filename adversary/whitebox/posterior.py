"""The pieces of the maximum a posteriori fits of :mod:`adversary.gaussian`: variables and terms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adversary.gaussian import GaussianErrors, whitened
from adversary.priors.prior import Prior
from adversary.whitebox.terms import MODEL, FeatureMatch, Term
from adversary.whitebox.variables import Variable
from splitsight.defenses import Scale
from splitsight.features import FeatureSpec

__all__ = [
    "PIXEL_NOISE",
    "GaussianPrior",
    "OnImages",
    "OnLatents",
    "WhitenedLatent",
    "WhitenedMatch",
    "WhitenedPixels",
    "pixel_match",
]


_SMOOTH = 0.3


class WhitenedLatent(Variable):
    """``x̂ = Dec(u₀ + C^{1/2} a)``, with a the variable.

    Args:
        prior: its decoder is used.
        errors: gives C.
        centre: u₀, ``(K, C, h, w)``.
        start: latents to start from; u₀ where not given.
    """

    def __init__(self, prior: Prior, errors: GaussianErrors, centre: Tensor, start: Tensor | None = None) -> None:
        self.prior, self.errors, self.centre = prior, errors, centre.detach()
        a = torch.zeros_like(self.centre) if start is None else errors.whitened(start.detach() - self.centre)
        self.value = a.requires_grad_()

    def latents(self, value: Tensor | None = None) -> Tensor:
        """The latents ``(K, C, h, w)`` that a value (its own by default) stands for."""
        return self.centre + self.errors.displacement(self.value if value is None else value)

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.prior.decode(self.latents())


class WhitenedPixels(Variable):
    """``x̂ = x₀ + Q^{1/2} a``, with a the variable.

    Args:
        errors: gives Q, the covariance of ``x − x₀``.
        centre: x₀, ``(K, 3, H, W)``.
    """

    def __init__(self, errors: GaussianErrors, centre: Tensor) -> None:
        self.errors, self.centre = errors, centre.detach()
        self.value = torch.zeros_like(self.centre).requires_grad_()

    def begin(self, images: Tensor) -> None:
        """Move to these images, ``(K, 3, H, W)``."""
        with torch.no_grad():
            self.value.copy_(self.errors.whitened(images - self.centre))

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.centre + self.errors.displacement(self.value)


PIXEL_NOISE = MODEL
"""Standard deviation that features are fitted to, as a part of their own: what a Gaussian error does not describe."""


def pixel_match(
    pipeline: nn.Module,
    features: Sequence[Tensor],
    noise: Sequence[Scale],
    part: float = PIXEL_NOISE,
    *,
    support: Sequence[Tensor | None] | None = None,
    laplace: bool = False,
    covariances: Sequence[Tensor | None] | None = None,
    specs: Sequence[FeatureSpec] = (),
) -> FeatureMatch:
    """``½ ‖F1(x̂) − z_mid‖² / σ²``, the feature loss that goes with :class:`WhitenedPixels`.

    Without noise σ is one number a frame for all channels, so that a feature that varies much is not fitted less.

    Args:
        pipeline: F1.
        features: the tapped ones, each ``(K, …)``.
        noise: known standard deviation on each tensor, in its unit.
        part: σ without noise, as a part of the features' spread.
        support: as for :class:`~adversary.whitebox.terms.FeatureMatch`.
        laplace: likewise.
        covariances: likewise.
        specs: likewise.
    """
    spread = torch.stack([z.reshape(len(z), -1).var(1) for z in features]).mean(0).sqrt().clamp_min(1e-6)
    told = {"support": support, "laplace": laplace, "covariances": covariances, "specs": specs}
    match = FeatureMatch(pipeline, features, noise=noise, **told)
    known = [s.square().mean() for s in match.noise]
    match.scale = 0.5 / ((part * spread).square() + sum(known) / len(known))
    return match


class WhitenedMatch:
    """``½ ‖R^{-1/2} (F1(x̂) − z_mid)‖²``, summed over all tensors that cross the split.

    Args:
        pipeline: F1, from images in [0, 1] to a tuple of features.
        features: the tapped ones, each ``(K, …)``.
        errors: gives R.
        noise: standard deviation of noise on the features, in their unit: one for all tensors, or one a tensor.
        weight: factor.
        support: as for :class:`~adversary.whitebox.terms.FeatureMatch`.
        covariances: likewise.
        laplace: likewise; the whitened differences are then compared by √2 |·|, smoothed below a third of their unit.
    """

    def __init__(
        self,
        pipeline: nn.Module,
        features: Sequence[Tensor],
        errors: GaussianErrors,
        *,
        noise: float | Sequence[Scale] = 0.0,
        weight: float = 1.0,
        support: Sequence[Tensor | None] | None = None,
        laplace: bool = False,
        covariances: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.pipeline, self.features, self.weight, self.errors = pipeline, tuple(features), weight, errors
        each = [noise] * len(self.features) if isinstance(noise, int | float) else noise
        known = covariances or [None] * len(self.features)
        pairs = zip(each, known, strict=True)
        self.whiteners = [errors.whitener(i, sigma, covariance) for i, (sigma, covariance) in enumerate(pairs)]
        self.support = list(support or [None] * len(self.features))
        self.laplace = laplace
        self.evaluations = 0

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        self.evaluations += len(images)
        total = images.new_zeros(len(images))
        pairs = zip(self.pipeline(images), self.features, strict=True)
        for spec, w, m, (found, z) in zip(self.errors.specs, self.whiteners, self.support, pairs, strict=True):
            white = whitened(found - z if m is None else m * (found - z), spec, w).flatten(1)
            if self.laplace:
                total = total + math.sqrt(2) * ((white.square() + _SMOOTH**2).sqrt() - _SMOOTH).sum(1)
            else:
                total = total + 0.5 * white.square().sum(1)
        return total


class GaussianPrior:
    """``½ ‖a‖²``: the whitened distance from the inversion network's answer."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        return 0.5 * value.flatten(1).square().sum(1)


class OnLatents:
    """Another term, told the latents instead of the whitened value (temporal smoothing compares latents)."""

    def __init__(self, variable: WhitenedLatent, term: Term) -> None:
        self.variable, self.term, self.weight = variable, term, term.weight

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        return self.term(self.variable.latents(value), images)


class OnImages:
    """Another term, told the images instead of the whitened value."""

    def __init__(self, term: Term) -> None:
        self.term, self.weight = term, term.weight

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        return self.term(images, images)
