"""Two numbers of F1's Jacobian J = ∂z/∂x at an image, by products with J and Jᵀ alone.

* ``tr(JᵀJ) / d``, d the numbers of the image: ``E ‖Jᵀ v‖²`` over random signs v (Hutchinson 1990).
* ``(1/2r) log det``: half the mean logarithm of the r eigenvalues of JᵀJ, or of JJᵀ where that is the smaller matrix,
  by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. 2017). Units that a rectifier holds at
  zero make JJᵀ singular: eigenvalues below a floor, 1e-6 of the largest, count as the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from splitsight.defenses._base import Features

__all__ = ["energy", "half_log_determinant"]

_FLOOR = 1e-6


def _flat(head: Callable[[Tensor], Features], shape: torch.Size) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([z.flatten() for z in head(x.view(1, *shape))])


def _pull(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """``f(x)``, and v ↦ Jᵀv there."""
    z, pull = torch.func.vjp(f, x)[:2]
    return z, lambda v: pull(v)[0]


def energy(head: Callable[[Tensor], Features], image: Tensor, *, probes: int = 16, seed: int = 0) -> float:
    """``tr(JᵀJ) / d`` at an image ``(3, S, S)``.

    Args:
        head: images → features, differentiable.
        image: where.
        probes: random vectors that it is estimated with.
        seed: of them.
    """
    generator = torch.Generator().manual_seed(seed)
    z, pull = _pull(_flat(head, image.shape), image.flatten())
    total = 0.0
    for _ in range(probes):
        signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
        total += float(pull(signs).square().sum())
    return total / probes / image.numel()


def half_log_determinant(
    head: Callable[[Tensor], Features], image: Tensor, *, probes: int = 4, steps: int = 24, seed: int = 0
) -> float:
    """``(1/2r) log det`` of JᵀJ or JJᵀ at an image, r being the side of the smaller one.

    Args:
        head: images → features, differentiable in both directions.
        image: where.
        probes: random vectors.
        steps: of Lanczos for each.
        seed: of the vectors.
    """
    x, f = image.flatten(), _flat(head, image.shape)
    z, pull = _pull(f, x)

    # Jᵀu is linear in u, and the derivative of that, transposed, is J: no forward mode is needed
    push = _pull(pull, torch.zeros_like(z))[1]
    small = x if x.numel() <= z.numel() else z
    product = (lambda v: pull(push(v))) if small is x else (lambda v: push(pull(v)))
    generator = torch.Generator().manual_seed(seed)
    nodes, weights = [], []
    for _ in range(probes):
        start = torch.randint(0, 2, small.shape, generator=generator).to(small) * 2 - 1
        values, vectors = torch.linalg.eigh(_lanczos(product, start / start.norm(), min(steps, small.numel())))
        nodes.append(values)
        weights.append(vectors[0].square())
    largest = max(float(values[-1]) for values in nodes)
    if largest <= 0:
        return -math.inf
    logs = [w @ v.clamp_min(_FLOOR * largest).log() for w, v in zip(weights, nodes, strict=True)]
    return 0.5 * float(torch.stack(logs).mean())


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The tridiagonal matrix of a symmetric product in the Krylov space of a unit vector, reorthogonalised."""
    basis, diagonal, beside = [start], [], []
    for i in range(steps):
        v = product(basis[-1])
        diagonal.append(v @ basis[-1])
        for _ in range(2):  # once loses orthogonality again
            known = torch.stack(basis)
            v = v - known.T @ (known @ v)
        length = v.norm()
        if i + 1 == steps or length < 1e-6 * diagonal[0].abs().clamp_min(1e-30):
            break
        beside.append(length)
        basis.append(v / length)
    matrix = torch.diag(torch.stack(diagonal)).double()
    if beside:
        offset = torch.stack(beside).double()
        matrix += torch.diag(offset, 1) + torch.diag(offset, -1)
    return matrix
