"""FSInfo: Fisher-approximated Shannon information, the attacker's certainty about the image.

Deng, Lu, Duan and Hu: "Quantifying Privacy Leakage in Split Inference via Fisher-Approximated Shannon Information
Analysis" (arXiv 2504.10016). Leakage is the attacker's certainty, the negative conditional entropy ``−H(x|z)``; with
the posterior taken for a Gaussian of covariance F⁻¹, ``F = Σ_t J_tᵀJ_t/σ_t²``, it is, in nats an input number,

    −H(x|z)/d ≈ 1/(2d) · log det(F / 2πe).

That is the form in which the authors' next paper solves it for σ (InfoDecom, arXiv 2511.13365): ``σ = det(JᵀJ)^(1/2d)
/ (e^FSInfo √(2πe))``. It was checked against the abstracts of both and a published note on the second, which quotes
that formula; the text of 2504.10016 itself was not at hand, and whether it averages F before the determinant is not
known. Here the determinant is taken for each image.

F is singular wherever fewer features than input numbers cross, or a rectifier silences a direction, and the published
form −∞. So the posterior here has a prior in it, Gaussian with variance τ² for each input number (1/12 by default:
that of the uniform distribution on [0, 1]):

    FSInfo = 1/(2d) · log det((F + I/τ²) / 2πe)  =  1/(2d) · log det(I + τ²F) − ½ log 2πe τ²,

which tends to the published form as τ → ∞. Its first summand is the mutual information I(x; z)/d of a linear F1 and
that prior, exactly; the second is the prior's entropy.

``log det(I + τ²F)`` is exact for few features; else by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J.
Matrix Anal. Appl. 38(4), 2017) in the smaller of both spaces, since JᵀWJ and W^½JJᵀW^½ share their eigenvalues but
zeros. Gauss quadrature of log(1 + τ²λ), whose even derivatives are negative, is never below the integral: too few
Lanczos steps overstate the leakage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitsight.leakage.estimates import (
    Deviations,
    Estimates,
    averaged,
    check_finite,
    deviations_of,
    generators,
    signs,
)
from splitsight.leakage.jacobian import Head, Jacobian

__all__ = ["FSInfo", "fsinfo"]

_EXACT = 64
"""Features up to which each row of J is computed: fewer sweeps than the quadrature takes."""


@dataclass(frozen=True, eq=False)
class FSInfo(Estimates):
    """Certainty of each image, nats an input number; the prior alone has ``−½ log 2πe τ²``.

    Attributes:
        prior_variance: τ².
    """

    prior_variance: float

    @property
    def information(self) -> Estimates:
        """What the features add to the prior: ``I(x; z)/d`` for a linear F1, nats an input number, ≥ 0."""
        return Estimates(self.values + 0.5 * math.log(2 * math.pi * math.e * self.prior_variance), self.errors)


def fsinfo(
    head: Head,
    images: Tensor,
    sigma: Deviations,
    *,
    prior_variance: float = 1 / 12,
    probes: int = 2,
    steps: int = 16,
    seed: int = 0,
    batch: int = 8,
) -> FSInfo | None:
    """Certainty about each image of an attacker who sees its features with Gaussian noise.

    Args:
        head: F1 in eval mode, without a codec that rounds.
        images: ``(N, C, H, W)`` in [0, 1], of the size that F1 takes.
        sigma: deviation of the noise in the features' unit: one number, one a tensor, or one an image and tensor.
        prior_variance: τ² of an input number; > 0.
        probes: random vectors an image, ≥ 2.
        steps: of Lanczos for each, ≥ 1; a step is two passes through F1.
        seed: of the probes.
        batch: images at a time.

    Returns:
        ``None`` where a tensor crosses without noise: the certainty is infinite there.

    Raises:
        UserError: an operator of F1 without the derivatives needed, or derivatives that are not finite.
        ValueError: no images, arguments out of range, or deviations of another number of tensors or images.
    """
    if len(images) == 0 or probes < 2 or steps < 1 or batch < 1 or not 0 < prior_variance < math.inf:
        raise ValueError(
            f"{len(images)} images, {probes} probes, {steps} steps, {batch} at a time, variance {prior_variance}: "
            "give ≥ 1, ≥ 2, ≥ 1, ≥ 1 and a positive number"
        )
    parts: list[np.ndarray] = []
    for first in range(0, len(images), batch):
        some = images[first : first + batch]
        jacobian = Jacobian(head, some)
        deviations = deviations_of(sigma, len(images), len(jacobian.features))
        if deviations is None:
            return None
        scales = _scales(jacobian, deviations[first : first + batch] / math.sqrt(prior_variance))
        if sum(z[0].numel() for z in jacobian.features) <= _EXACT:
            found = np.repeat(_exact(jacobian, scales)[:, None], probes, 1)
        else:
            found = _quadrature(jacobian, scales, generators(seed, first, len(some)), probes, steps)
        check_finite(found, first)
        parts.append(found / (2 * some[0].numel()))
    values, errors = averaged(np.concatenate(parts))
    return FSInfo(values - 0.5 * math.log(2 * math.pi * math.e * prior_variance), errors, prior_variance)


def _scales(jacobian: Jacobian, deviations: np.ndarray) -> list[Tensor]:
    """``τ/σ`` for each tensor, ``(B, 1, …)``."""
    columns = torch.from_numpy(1 / deviations).T
    return [s.to(z).view(-1, *[1] * (z.ndim - 1)) for s, z in zip(columns, jacobian.features, strict=True)]


def _exact(jacobian: Jacobian, scales: Sequence[Tensor]) -> np.ndarray:
    """``log det(I + A)``, ``(B,)``, by all rows of ``τ W^½ J``."""
    rows = []
    for t, (z, scale) in enumerate(zip(jacobian.features, scales, strict=True)):
        for j in range(z[0].numel()):
            unit = torch.zeros_like(z)
            unit.flatten(1)[:, j] = 1
            cotangents = [scale * unit if i == t else None for i in range(len(scales))]
            rows.append(jacobian.transposed(cotangents).flatten(1).double())
    j = torch.stack(rows, 1)
    return torch.linalg.eigvalsh(j @ j.mT).clamp(min=0).log1p().sum(1).cpu().numpy()


def _quadrature(
    jacobian: Jacobian, scales: Sequence[Tensor], draws: Sequence[torch.Generator], probes: int, steps: int
) -> np.ndarray:
    """``log det(I + A)`` by each probe, ``(B, P)``, with A of the smaller space."""
    shapes = [z.shape[1:] for z in jacobian.features]
    sizes = [math.prod(shape) for shape in shapes]
    image = jacobian.images

    def apart(v: Tensor) -> list[Tensor]:
        pieces = v.to(image.dtype).split(sizes, 1)
        return [p.unflatten(1, shape) * s for p, shape, s in zip(pieces, shapes, scales, strict=True)]

    def in_features(v: Tensor) -> Tensor:
        moved = jacobian(jacobian.transposed(apart(v)))
        return torch.cat([(z * s).flatten(1) for z, s in zip(moved, scales, strict=True)], 1).double()

    def in_images(v: Tensor) -> Tensor:
        moved = jacobian(v.to(image.dtype).view_as(image))
        return jacobian.transposed([z * s**2 for z, s in zip(moved, scales, strict=True)]).flatten(1).double()

    product, n = (in_features, sum(sizes)) if sum(sizes) < image[0].numel() else (in_images, image[0].numel())
    like = torch.empty(len(image), n, dtype=torch.float64, device=image.device)
    return np.stack([_log_det(product, signs(draws, like), min(steps, n)) for _ in range(probes)], 1)


def _log_det(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> np.ndarray:
    """``uᵀ log(I + A) u`` for start vectors u ``(B, n)``, ``(B,)``: Lanczos with full reorthogonalisation."""
    size = start.square().sum(1)
    q = start / size.sqrt()[:, None]
    basis, diagonal, beside = [q], [], []
    for step in range(steps):
        w = product(q)
        diagonal.append((w * q).sum(1))
        if step == steps - 1:
            break
        known = torch.stack(basis, 1)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            w = w - torch.einsum("bkn,bk->bn", known, torch.einsum("bkn,bn->bk", known, w))
        beta = w.norm(dim=1)
        # an invariant subspace was found, up to the rounding of float32 products: what follows is noise, and uncoupled
        beta = torch.where(beta > 1e-6 * torch.stack(diagonal).abs().amax(0), beta, 0)
        q = torch.where(beta[:, None] > 0, w / beta.clamp(min=torch.finfo(w.dtype).tiny)[:, None], 0)
        beside.append(beta)
        basis.append(q)
    t = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        off = torch.diag_embed(torch.stack(beside, 1), 1)
        t = t + off + off.mT
    nodes, vectors = torch.linalg.eigh(t)
    return (size * (vectors[:, 0].square() * nodes.clamp(min=0).log1p()).sum(1)).cpu().numpy()
