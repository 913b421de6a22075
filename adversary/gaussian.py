"""What an inversion network does not know, measured: Gaussian errors of its latent and of the decoder's features.

With the network's answer ``u₀`` for features ``z = F1(x)`` of an image x with latent ``Enc(x)``, two errors are
measured over images that are not attacked later:

* ``Enc(x) − u₀``, covariance C: how far the truth lies from the answer, and in which directions. It is taken in the
  two-dimensional cosine basis (DCT-II), between the channels of each frequency: errors of different frequencies are
  nearly uncorrelated, and 16 × 16 blocks of 8 × 8 numbers say what a 2048 × 2048 matrix would.
* ``F1(Dec(Enc(x))) − z``, covariance R: what the decoder cannot show and no fit should chase. It is taken between the
  channels of a map or of tokens, the same at every position; between all numbers of a vector. Of more than 1,024
  channels, only their variances are.

They turn the fit of a latent into a maximum a posteriori estimate without a weight to tune,

    min_u ½ ‖R^{-1/2} (F1(Dec(u)) − z)‖² + ½ ‖C^{-1/2} (u − u₀)‖²

(:mod:`adversary.whitebox.posterior`), and ``u = u₀ + C^{1/2} a`` is the variable in which it is well conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from splitsight.features import FeatureSpec

__all__ = ["GaussianErrors", "cosine_basis", "whitened"]

_FULL = 1024
"""A feature with more channels than this gets variances only: a covariance would be larger than the network."""


def cosine_basis(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix ``(n, n)``, lowest frequency first."""
    k = torch.arange(n, dtype=torch.float32)
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def whitened(values: Tensor, spec: FeatureSpec, whitener: Tensor) -> Tensor:
    """``R^{-1/2}`` of one feature, ``(C, C)`` or its diagonal ``(C,)``, applied to values ``(B, *shape)``.

    Returns:
        ``(B, C, …)``, channels first.
    """
    columns = spec.channels_last(values).movedim(-1, 1)
    over = "hw"[: columns.ndim - 2]
    rule = f"c,bc{over}->bc{over}" if whitener.ndim == 1 else f"kc,bc{over}->bk{over}"
    return torch.einsum(rule, whitener, columns)


def _shrunk(covariance: Tensor, amount: float = 1e-3) -> Tensor:
    """A little of the mean variance on the diagonal: invertible, also where a channel is always zero."""
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-8)
    return covariance + amount * mean[..., None, None] * torch.eye(covariance.shape[-1]).to(covariance)


class GaussianErrors(nn.Module):
    """Both covariances, as factors; buffers only.

    Args:
        latent: ``(C, h, w)`` of the prior.
        specs: what crosses the split.
    """

    latent: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, latent: tuple[int, int, int], specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        c, h, w = latent
        # Cholesky factors of C, one a frequency
        self.register_buffer("latent", torch.eye(c).repeat(h, w, 1, 1))
        # R^{-1/2}: a factor is stored, not R, because rounding to float16 must not make it indefinite
        for i, spec in enumerate(self.specs):
            n = spec.channels
            self.register_buffer(f"feature{i}", torch.eye(n) if n <= _FULL else torch.ones(n))
        self.register_buffer("rows", cosine_basis(h), persistent=False)
        self.register_buffer("columns", cosine_basis(w), persistent=False)

    @torch.no_grad()
    def measure(self, latent: Tensor, features: Sequence[Tensor]) -> None:
        """Set both from samples.

        Args:
            latent: ``Enc(x) − u₀``, ``(N, C, h, w)``; N should be some hundreds at least.
            features: ``F1(Dec(Enc(x))) − z``, each ``(N, …)``.
        """
        spectrum = self.rows @ latent @ self.columns.T
        covariance = torch.einsum("nchw,ndhw->hwcd", spectrum, spectrum) / len(latent)
        self.latent.copy_(torch.linalg.cholesky(_shrunk(covariance)))
        for i, (spec, residual) in enumerate(zip(self.specs, features, strict=True)):
            rows = spec.rows(residual).double()
            whitener = self._whitener(i)
            if whitener.ndim == 1:
                variance = rows.square().mean(0)
                whitener.copy_((variance + 1e-3 * variance.mean().clamp_min(1e-8)).rsqrt())
            else:
                covariance = _shrunk((rows.T @ rows / len(rows)).float()).double()
                whitener.copy_(torch.linalg.cholesky(torch.linalg.inv(covariance)).T)

    def _whitener(self, index: int) -> Tensor:
        return self.get_buffer(f"feature{index}")

    @property
    def deviation(self) -> float:
        """Root mean square of ``Enc(x) − u₀`` over a latent's numbers: ``√(tr C / n)``."""
        return float((self.latent.square().sum() / self.latent[..., 0].numel()).sqrt())

    def displacement(self, a: Tensor) -> Tensor:
        """``C^{1/2} a``: whitened numbers ``(B, C, h, w)`` → what they add to a latent, same shape."""
        spectrum = torch.einsum("hwcd,bdhw->bchw", self.latent, a)
        return self.rows.T @ spectrum @ self.columns

    def whitened(self, displacement: Tensor) -> Tensor:
        """``C^{-1/2}``: the inverse of :meth:`displacement`."""
        spectrum = self.rows @ displacement @ self.columns.T
        solved = torch.linalg.solve_triangular(self.latent, spectrum.permute(2, 3, 1, 0), upper=False)
        return solved.permute(3, 2, 0, 1).contiguous()

    def whitener(self, index: int, noise: float | Tensor = 0.0, covariance: Tensor | None = None) -> Tensor:
        """``(R + diag σ²)^{-1/2}`` of one feature: ``(C, C)``, or ``(C,)`` of a feature with many channels.

        Args:
            index: which of the tensors that cross the split.
            noise: σ, standard deviation of independent noise that is known to be on the tapped feature (a
                defence, or quantisation), in the feature's own unit: one, or what broadcasts against features
                ``(K, …)``, of which the root mean square of each channel counts, since R is the same everywhere.
            covariance: of the noise between channels, ``(C, C)``, where it is not independent; in place of σ².
        """
        w, spec = self._whitener(index), self.specs[index]
        sigma = torch.as_tensor(noise).to(w)
        if not bool(sigma.any()) and covariance is None:
            return w
        variance = sigma.square()
        if sigma.ndim:
            frames = len(sigma) if sigma.ndim > len(spec.shape) else 1
            variance = spec.rows(variance.expand(frames, *spec.shape)).mean(0)
        if covariance is not None:
            variance = covariance.to(w).diagonal()
        if w.ndim == 1:
            return (w.square().reciprocal() + variance).rsqrt()
        precision = w.double().T @ w.double()
        added = torch.diag(variance.expand(len(w))) if covariance is None else covariance.to(w)
        total = torch.linalg.inv(precision) + added.double()
        return torch.linalg.cholesky(torch.linalg.inv(total)).T.float()
