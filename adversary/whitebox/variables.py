"""Variables: what an attack optimises, and how it becomes images.

Notation of "Unlocking Visual Secrets": ``D(v, e)`` sampler and decoder, ``Dec(u)`` the decoder alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from adversary.priors.prior import Prior, Text
from splitsight.devices import standard_normal

__all__ = ["Latent", "Noise", "Pixels", "Residual", "Variable", "normalised"]


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

    def project(self) -> None:  # noqa: B027 (most variables may take any value)
        """Move the value back into what it may be; solvers that take free steps call it after each."""


class Pixels(Variable):
    """Direct optimisation: ``x̂`` itself.

    Args:
        start: images to start from, ``(K, 3, H, W)``.
        box: keep every value in [0, 1].
    """

    def __init__(self, start: Tensor, *, box: bool = False) -> None:
        self.box = box
        self.value = start.detach().clone().requires_grad_()

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.value

    @torch.no_grad()
    def project(self) -> None:
        """Clamp to [0, 1] where asked for."""
        if self.box:
            self.value.clamp_(0, 1)


class Residual(Variable):
    """``x̂ = base + r``: what a generator cannot make, on top of what it made; starts at r = 0.

    Args:
        base: frozen images ``(K, 3, H, W)``.
    """

    def __init__(self, base: Tensor) -> None:
        self.base = base.detach()
        self.value = torch.zeros_like(self.base).requires_grad_()

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.base + self.value


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
        checkpoint: keep only the latents between sampling steps for the gradient, and compute each step and the
            decoder again on the way back: memory of one step instead of all, for about a third more time.
    """

    def __init__(
        self, prior: Prior, start: Tensor, text: Text | None = None, steps: int = 10, *, checkpoint: bool = False
    ) -> None:
        self.prior, self.text, self.steps, self.checkpoint = prior, text, steps, checkpoint
        self.value = start.detach().clone().requires_grad_()

    @staticmethod
    def draw(prior: Prior, frames: int, seed: int, *, shared: bool) -> Tensor:
        """Standard normal noise ``(frames, C, h, w)``: one draw for all frames, or one for each."""
        shape = (1 if shared else frames, *prior.latent_shape)
        return standard_normal(shape, [seed], prior.device)[0].expand(frames, -1, -1, -1).clone()

    @torch.no_grad()
    def latents(self) -> Tensor:
        """What the sampler makes of the noise, ``(K, C, h, w)``."""
        return self.prior.sample(normalised(self.value), self.text, self.steps)

    def images(self) -> Tensor:
        """Differentiable images ``(K, 3, H, W)``."""
        return self.prior.generate(normalised(self.value), self.text, self.steps, checkpoint=self.checkpoint)
