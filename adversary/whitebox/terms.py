"""Terms: the weighted summands of an attack's loss, each next to its equation.

Every term maps the optimised value ``(K, …)`` and its images ``(K, 3, H, W)`` to one loss a frame, ``(K,)``;
frames only meet in :class:`TemporalSmoothing`. Equation numbers are those of "Unlocking Visual Secrets".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn

from adversary.whitebox.variables import normalised
from splitsight.defenses import Scale
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = [
    "MODEL",
    "BatchNormStatistics",
    "FeatureMatch",
    "Negentropy",
    "Proximal",
    "TemporalSmoothing",
    "Term",
    "Told",
    "TotalVariation",
    "agreement",
]


MODEL = 0.1
"""What no image fits exactly, as a part of the features' own spread: standard deviation of a fit's error without
noise."""


class Term(Protocol):
    """One summand. ``weight`` multiplies what :meth:`__call__` returns."""

    weight: float

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        ...


def _rows(z: Tensor) -> Tensor:
    """``(K, …)`` → ``(K, N)``, N = 1 for one number a frame."""
    return z.reshape(len(z), -1)


class Told(TypedDict):
    """What a feature loss takes of a defence; see :class:`FeatureMatch`."""

    noise: list[Scale]
    support: list[Tensor | None] | None
    laplace: bool
    covariances: Sequence[Tensor | None] | None


class FeatureMatch:
    """``L_re = ‖F1(x̂) − z_mid‖²``, summed over all tensors that cross the split.

    Told what a defence does, it is the negative logarithm of the likelihood instead, up to a factor: with σ_i the noise
    on number i, and m_i = 0 where the defence let nothing through,

        Σ m_i (r_i / v_i)² v̄²          r = F1(x̂) − z_mid,  v_i² = σ_i² + (κ s)²
        Σ m_i 2√2 σ_i |r_i| v̄² / v_i²  for Laplace noise, |r| being smoothed to √(r² + (κ s)²) − κ s

    with κ s, a part of the features' spread s, for what no image fits exactly, and v̄² the mean of v_i². Noise of one
    strength leaves all weights at 1.

    Args:
        head: F1, from images in [0, 1] to a tuple of features.
        features: the tapped ones, each ``(K, …)``.
        weight: factor.
        relative: divide by ‖z_mid‖², so that other weights mean the same at every split.
        noise: standard deviation of the noise on each tensor; ``None`` for none.
        support: where a defence let numbers through, ``(K, …)`` of 0 and 1 a tensor, or ``None``; matched only there.
        laplace: whether the noise is Laplace's.
        covariances: of noise that is not independent, ``(C, C)`` between a tensor's channels, or ``None``; then
            ``(Σ + (κ s)² I)^{-1/2} r`` takes the place of ``r / v``.
        specs: what the tensors are; needed with ``covariances``.
    """

    def __init__(
        self,
        head: nn.Module,
        features: Sequence[Tensor],
        weight: float = 1.0,
        *,
        relative: bool = False,
        noise: Sequence[Scale] | None = None,
        support: Sequence[Tensor | None] | None = None,
        laplace: bool = False,
        covariances: Sequence[Tensor | None] | None = None,
        specs: Sequence[FeatureSpec] = (),
    ) -> None:
        self.head, self.features, self.weight, self.laplace = head, tuple(features), weight, laplace
        self.evaluations = 0
        energy = torch.stack([_rows(z).square().sum(1) for z in self.features]).sum(0)
        self.scale = 1 / energy.clamp_min(1e-12) if relative else torch.ones_like(energy)
        self.noise = [torch.as_tensor(s).to(z) for s, z in zip(noise or [0.0] * len(features), features, strict=True)]
        self.support = list(support or [None] * len(features))
        self.floors = [MODEL * z.std() if z.numel() > 1 else z.new_zeros(()) for z in self.features]
        self.specs = tuple(specs)
        self.factors = (
            [None] * len(features) if covariances is None else list(map(self._factor, covariances, self.floors))
        )
        self.weights = self._weights()

    def _weights(self) -> list[Tensor]:
        """``v̄² / v²`` of each tensor, times m; broadcasts against its features."""
        if all(bool((s == 0).all()) for s in self.noise):
            weights = [z.new_ones(()) for z in self.features]
        else:
            variances = [(s.square() + f.square()) for s, f in zip(self.noise, self.floors, strict=True)]
            sizes = [z[0].numel() for z in self.features]
            mean = sum(float(v.mean()) * n for v, n in zip(variances, sizes, strict=True)) / sum(sizes)
            weights = [
                mean / v.clamp_min(1e-12) if f is None else mean * torch.ones_like(v)
                for v, f in zip(variances, self.factors, strict=True)
            ]
        return [w if m is None else w * m for w, m in zip(weights, self.support, strict=True)]

    @staticmethod
    def _factor(covariance: Tensor | None, floor: Tensor) -> Tensor | None:
        """``L^{-1}`` of ``L Lᵀ = Σ + (κ s)² I``."""
        if covariance is None:
            return None
        eye = torch.eye(len(covariance)).to(covariance)
        lower = torch.linalg.cholesky(covariance + floor.square().clamp_min(1e-12) * eye)
        return torch.linalg.solve_triangular(lower, eye, upper=False)

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        self.evaluations += len(images)
        rests = [a - b for a, b in zip(self.head(images), self.features, strict=True)]
        rests = [
            r if w is None else self._whitened(i, r, w)
            for i, (r, w) in enumerate(zip(rests, self.factors, strict=True))
        ]
        losses = [
            _rows(self._loss(r, s, f) * w).sum(1)
            for r, s, f, w in zip(rests, self.noise, self.floors, self.weights, strict=True)
        ]
        return torch.stack(losses).sum(0) * self.scale

    def _whitened(self, index: int, rest: Tensor, factor: Tensor) -> Tensor:
        spec = self.specs[index]
        return spec.from_channels_last(spec.channels_last(rest) @ factor.T)

    def _loss(self, rest: Tensor, noise: Tensor, floor: Tensor) -> Tensor:
        if not self.laplace or bool((noise == 0).all()):
            return rest.square()
        floor = floor.clamp_min(1e-6)
        return 2 * math.sqrt(2) * noise * ((rest.square() + floor.square()).sqrt() - floor)

    @property
    def noise_share(self) -> float:
        """Energy of the noise over that of what it was added to, about its mean: ``Σ σ² / (Σ (z − z̄)² − Σ σ²)``."""
        noise = sum(float(s.square().expand_as(z).sum()) for s, z in zip(self.noise, self.features, strict=True))
        whole = sum(float((z - z.mean()).square().sum()) for z in self.features)
        return noise / max(whole - noise, 0.01 * whole, 1e-12)


class TotalVariation:
    """Equation 7: ``TV(x) = 1/(MN) Σ (x[i+1,j] − x[i,j])² + (x[i,j+1] − x[i,j])²``, summed over channels."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        down = (images[..., 1:, :] - images[..., :-1, :]).flatten(1).square().sum(1)
        right = (images[..., :, 1:] - images[..., :, :-1]).flatten(1).square().sum(1)
        return (down + right) / (images.shape[-1] * images.shape[-2])


class Negentropy:
    """Equations 8 and 9: ``L_txt = −E[ (1/α²) log cosh²(α v_n) ]``, the mean over one image's noise.

    ``log cosh²`` is the logarithm of the square, ``2 log cosh``, and ``v_n`` the normalised noise. It goes with a
    text prior; its weight λ_txt is 10 in the paper, 3 in black-box.

    Args:
        weight: λ_txt.
        alpha: α, 1 … 2.

    Raises:
        UserError: α out of range.
    """

    def __init__(self, weight: float = 10.0, alpha: float = 1.0) -> None:
        if not 1 <= alpha <= 2:
            raise UserError(f"alpha is {alpha:g} but the negentropy of equation 9 takes 1 to 2: give --alpha in there")
        self.weight, self.alpha = weight, alpha

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``; ``value`` is the noise before it is normalised."""
        y = (self.alpha * normalised(value)).abs()
        # cosh overflows at 89 in float32, this nowhere
        log_cosh = y + nn.functional.softplus(-2 * y) - math.log(2)
        return -(2 / self.alpha**2) * log_cosh.flatten(1).mean(1)


class TemporalSmoothing:
    """The last summand of equation 10: ``‖v_k − v̄‖²``, ``v̄ = mean_k v_k``.

    Args:
        weight: λ_c.
        agreement: optional ``(K, 1, h, w)`` in [0, 1] from :func:`agreement`: where the tapped features of a
            frame moved, the term is lifted. The mean is weighted likewise.
        windows: how many windows of equal length are stacked along the first dimension.
    """

    def __init__(self, weight: float, agreement: Tensor | None = None, windows: int = 1) -> None:
        self.weight, self.agreement, self.windows = weight, agreement, windows

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        groups = value.unflatten(0, (self.windows, -1))
        if self.agreement is None:
            return (groups - groups.mean(1, keepdim=True)).flatten(2).square().sum(2).flatten()
        w = self.agreement.unflatten(0, (self.windows, -1))
        mean = (w * groups).sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp_min(1e-6)
        return (w * (groups - mean).square()).flatten(2).sum(2).flatten()


class Proximal:
    """``‖value − target‖²``: stay near what a denoiser or an inversion network answered (a proximal term).

    Args:
        target: same shape as the value.
        weight: factor.
    """

    def __init__(self, target: Tensor, weight: float) -> None:
        self.target, self.weight = target, weight

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        return (value - self.target).flatten(1).square().sum(1)


class BatchNormStatistics:
    """How far an image's statistics inside F1 are from those that its batch norms saw in training.

    With μ and σ² over the positions of one image, ``mean_l mean_c [ (μ − m)²/s² + (σ²/s² − 1)² ]`` for the
    running mean m and variance s² of layer l: the regulariser of DeepInversion (Yin et al., CVPR 2020), made free
    of scale. White-box attackers hold m and s², since they are weights of F1.

    Terms that run F1 on the same images should use :attr:`head`, which remembers its last pass; without one
    this term runs F1 itself.

    Args:
        head: F1, images in [0, 1] → tuple of features.
        weight: factor.

    Raises:
        UserError: F1 has no batch norm.
    """

    def __init__(self, head: nn.Module, weight: float = 1.0) -> None:
        self.weight = weight
        self.head = _Recording(head)
        if not self.head.norms:
            raise UserError("this split has no batch norm before it: leave the batch-norm statistics out")

    def __call__(self, value: Tensor, images: Tensor) -> Tensor:
        """One loss a frame, ``(K,)``."""
        if self.head.images is not images:
            self.head(images)
        losses = []
        for norm, x in zip(self.head.norms, self.head.inputs, strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            x = x.flatten(2)
            mean, variance = x.mean(2), x.var(2, unbiased=False)
            shift = (mean - norm.running_mean).square() / (norm.running_var + norm.eps)
            spread = (variance / (norm.running_var + norm.eps) - 1).square()
            losses.append((shift + spread).mean(1))
        return torch.stack(losses).mean(0)


class _Recording(nn.Module):
    """F1, which keeps what its batch norms took in during the last pass."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        self.images: Tensor | None = None
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the head's own."""
        self.images, self.inputs = images, []
        # only for this pass: the modules belong to the target, and others use them
        hooks = [m.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0])) for m in self.norms]
        try:
            return self.head(images)
        finally:
            for hook in hooks:
                hook.remove()


def coupling(
    features: Sequence[Tensor], specs: Sequence[FeatureSpec], weight: float, size: int, windows: int = 1
) -> TemporalSmoothing | None:
    """The temporal term on maps of ``size``, lifted where the tapped features moved.

    Args:
        features: of one window, each ``(K, …)``.
        specs: what they are.
        weight: λ_c.
        size: side of the maps that are coupled.
        windows: copies of the window that are solved side by side.

    Returns:
        ``None`` where there is nothing to couple: a single frame, or no weight.
    """
    if weight <= 0 or len(features[0]) < 2:
        return None
    return TemporalSmoothing(weight, agreement(features, specs, size).repeat(windows, 1, 1, 1), windows)


def agreement(features: Sequence[Tensor], specs: Sequence[FeatureSpec], size: int, softness: float = 0.15) -> Tensor:
    """Where a window's features agree: near 1 where nothing moved, near 0 where the scene changed.

    Per position, the squared distance to the window's median feature over the mean energy, ``d``, becomes
    ``exp(−d / softness)``; maps are resized to the latent's grid, features without a grid give one number.

    Args:
        features: tapped tensors, each ``(K, …)``.
        specs: what they are.
        size: side of the latent's grid.
        softness: relative squared distance at which agreement has fallen to 1/e.

    Returns:
        ``(K, 1, size, size)``.
    """
    maps = []
    for z, spec in zip(features, specs, strict=True):
        grid = spec.as_map(z)
        middle = grid.median(0, keepdim=True).values
        distance = (grid - middle).square().mean(1, keepdim=True) / middle.square().mean().clamp_min(1e-12)
        maps.append(
            nn.functional.interpolate(
                torch.exp(-distance / softness), (size, size), mode="bilinear", align_corners=False
            )
        )
    return torch.stack(maps).mean(0)
