"""Variables: what an attack optimises, and how it becomes images.

Notation of "Unlocking Visual Secrets": ``D(v, e)`` sampler and decoder, ``Dec(u)`` the decoder alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from adversary.priors.prior import Prior, Text

__all__ = ["Latent", "Noise", "Variable", "normalised"]


def normalised(v: Tensor) -> Tensor:
    """``v_n = (v − mean v) / std v``, for each image: ``(K, C, h, w)`` → the same shape."""
    flat = v.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(v)


class Variable(ABC):
    """A set of K optimised tensors that stand for K images.

    Attributes:
        value: the leaf tensor, first dimension K, that a solver moves.
    """

    value: Tensor

    @abstractmethod
    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``, nominally in [0, 1]."""


class Latent(Variable):
    """Decoder-based: ``x̂ = Dec(u)``.

    Args:
        prior: its decoder is used.
        start: latents to start from, ``(K, C, h, w)``.
    """

    def __init__(self, prior: Prior, start: Tensor) -> None:
        self.prior = prior
        self.value = start.detach().clone().requires_grad_()

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.prior.decode(self.value)


class Noise(Variable):
    """Generator-based, Algorithms 1 and 2: ``x̂ = D(v_n, e)``, through every step of the sampler.

    Args:
        prior: the generator.
        start: noise to start from, ``(K, C, h, w)``.
        text: embedded prompt; the empty one by default.
        steps: sampling steps.
    """

    def __init__(self, prior: Prior, start: Tensor, text: Text | None = None, steps: int = 10) -> None:
        self.prior, self.text, self.steps = prior, text, steps
        self.value = start.detach().clone().requires_grad_()

    @staticmethod
    def draw(prior: Prior, frames: int, seed: int, *, shared: bool) -> Tensor:
        """Standard normal noise ``(frames, C, h, w)``: one draw for all frames, or one for each."""
        generator = torch.Generator().manual_seed(seed)
        if shared:
            return torch.randn(1, *prior.latent_shape, generator=generator).repeat(frames, 1, 1, 1)
        return torch.randn(frames, *prior.latent_shape, generator=generator)

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.prior.generate(normalised(self.value), self.text, self.steps)
