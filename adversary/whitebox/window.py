"""The live window's fast solver: the most probable latents, then the most probable pixels, given its features.

Both are maximum a posteriori fits around the preview, under its measured errors (:mod:`adversary.gaussian`), by
L-BFGS, with the temporal term. The latents come first, because the decoder keeps them on images while they are far
off; but a step through the decoder costs three of the pixels alone, and its own error stays. The pixels go on from the
latents' image (with what they had added to the last window's, where the features still agree) until the deadline.
The answer is mostly the pixels': some of the latents' image takes off the grain that no feature speaks against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.callback import Callback
from adversary.priors.prior import Prior
from adversary.whitebox.posterior import (
    GaussianPrior,
    OnImages,
    OnLatents,
    WhitenedLatent,
    WhitenedMatch,
    WhitenedPixels,
    pixel_match,
)
from adversary.whitebox.solvers import Outcome, lbfgs
from adversary.whitebox.terms import Term, Told, coupling
from splitsight.defenses import Scale
from splitsight.features import FeatureSpec

__all__ = ["Fit", "Start", "fit_window"]

LATENTS = 0.25
"""Part of the time before a deadline that latents may take."""
PIXELS = 0.85
"""Weight of the pixels' image in the answer; 0.7 to 1 differ by 0.1 dB and 0.01 of SSIM."""
COST = 3
"""Evaluations on pixels that cost as much as one on latents."""
PER_PIXEL = 33.0
"""λ_c on pixels over λ_c on latents: numbers in [0, 1] differ by less."""
_FIRST = 0.003  # in whitened numbers the largest curvature is some hundreds; to find that out costs five evaluations


@dataclass
class Start:
    """Where a window's fit is and begins.

    Attributes:
        features: tapped tensors, each ``(K, …)``.
        specs: what they are.
        noise: standard deviation of the noise on each.
        centre: the preview's latents, ``(K, C, h, w)``.
        latents: to begin from, the same shape.
        detail: what to add to their image to begin with the pixels from, ``(K, 3, H, W)``.
    """

    features: list[Tensor]
    specs: Sequence[FeatureSpec]
    noise: Sequence[Scale]
    centre: Tensor
    latents: Tensor
    detail: Tensor | None = None


@dataclass
class Fit:
    """What came of it.

    Attributes:
        outcome: images, latents as ``value``; losses and evaluations of both parts in a row.
        detail: what the pixels added to the latents' image, ``(K, 3, H, W)``; ``None`` where they had no turn.
    """

    outcome: Outcome
    detail: Tensor | None


def fit_window(
    prior: Prior,
    pipeline: nn.Module | None,
    network: InversionNetwork,
    start: Start,
    *,
    inner: int,
    pixels: int,
    smoothing: float,
    likelihood_weight: float = 1.0,
    told: Told | None = None,
    callback: Callback | None = None,
) -> Fit:
    """Fit a window's frames together.

    Args:
        prior: its decoder is used.
        pipeline: F1, or a surrogate of it; ``None`` leaves the latents with the preview and the temporal term.
        network: the preview's, with measured errors; those of pixels too where pixels are to be fitted.
        start: from where.
        inner: evaluations on the latents, at most.
        pixels: evaluations on the pixels, at most; 0 leaves them out. Where F1 is not known, or the network's errors of
            pixels are not, the latents have the time instead.
        smoothing: λ_c on the latents.
        likelihood_weight: of the feature loss on the latents.
        told: of a defence, by default the noise of ``start`` alone.
        callback: keeps the time.
    """
    assert network.errors is not None
    callback = callback or Callback()
    told = told or {"noise": list(start.noise), "support": None, "laplace": False, "covariances": None}
    begin = callback.now()
    together = coupling(start.features, start.specs, smoothing, prior.latent_shape[-1])
    if pipeline is None or network.pixels is None:
        inner, pixels = inner + pixels // COST, 0
    variable = WhitenedLatent(prior, network.errors, start.centre, start.latents)
    terms: list[Term] = [GaussianPrior()]
    if pipeline is not None:
        match = WhitenedMatch(pipeline, start.features, network.errors, weight=likelihood_weight, **told)
        terms.insert(0, match)
    if together is not None:
        terms.append(OnLatents(variable, together))
    first = lbfgs(
        variable,
        terms,
        evaluations=inner,
        together=together is not None,
        first=_FIRST,
        callback=callback.part(LATENTS if pixels else 1.0, planned=inner + pixels),
    )
    with torch.no_grad():
        first.value = variable.latents(first.value)
    if pipeline is None or network.pixels is None or not pixels or not first.iterations:
        return Fit(first, None)
    with torch.no_grad():
        image = WhitenedPixels(network.pixels, prior.decode(start.centre).clamp(0, 1))
        image.begin(first.images if start.detail is None else first.images + start.detail)
    terms = [pixel_match(pipeline, start.features, specs=start.specs, **told), GaussianPrior()]
    on_pixels = coupling(start.features, start.specs, PER_PIXEL * smoothing, first.images.shape[-1])
    if on_pixels is not None:
        terms.append(OnImages(on_pixels))
    second = lbfgs(
        image,
        terms,
        evaluations=pixels,
        together=together is not None,
        first=_FIRST,
        callback=callback.part(done=first.iterations, planned=inner + pixels),
    )
    if not second.iterations:
        return Fit(first, None)
    outcome = Outcome(
        torch.lerp(first.images, second.images, PIXELS),
        first.value,
        first.losses + second.losses,
        first.iterations + second.iterations,
        callback.now() - begin,
        second.final,
    )
    return Fit(outcome, second.images - first.images)
