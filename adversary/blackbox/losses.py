"""Losses of black-box networks over pairs (x, z) of pictures and features.

Equation 11, with D the prior's part that the network aims at:

    min_θ  E ‖D(F_u(z)) − x‖² + λ_s TV(D(F_u(z)))

and equation 12, with e = E(t) of each picture's caption in D, ``+ λ_txt L_txt(F_u(z))``.

The setting ``paper`` is as published. ``tuned`` adds what training with few pairs on a CPU is better for: absolute
differences and those of gradients, a learning rate that falls to zero, averaged weights, and for latents and noise a
share of the loss on the value itself, whose truth the prior's encoder (and its sampler, run backwards) gives. ``part``
of each batch is decoded; the value's loss is over all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from adversary.attacks.base import option
from adversary.blackbox._batches import Batch
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.training import Loss, Training
from adversary.priors.prior import Prior
from adversary.whitebox.terms import Negentropy, TotalVariation
from splitsight.errors import UserError
from splitsight.metrics.perceptual import lpips_distance, lpips_missing
from splitsight.training import gradient_distance

__all__ = ["PAPER", "PERCEPTUAL", "PairLoss", "Perceptual", "check_perceptual", "pair_loss"]


class PairLoss(Training):
    """Values of equations 11 and 12, and of what is added to them."""

    epochs: int = option(96, "times that each pair is seen, without another budget", ge=1)
    summed: bool = option(False, "sum the squared error over an image, as published, instead of its mean")
    squared: float = option(4.0, "weight of the squared error", ge=0)
    absolute: float = option(1.0, "weight of the absolute error", ge=0)
    gradient: float = option(0.25, "weight of the images' gradients", ge=0)
    tv: float = option(0.0, "λ_s, weight of total variation", ge=0)
    value: float = option(0.1, "weight of the error of latents or noise", ge=0)
    part: float = option(1.0, "share of a batch that is decoded", gt=0, le=1)
    lambda_txt: float = option(3.0, "λ_txt, for a network with text", ge=0)
    alpha: float = option(1.0, "α of the text's term", ge=1, le=2)

    def length(self, per_epoch: int) -> int:
        """See :class:`Training`."""
        return self.epochs * per_epoch


PAPER = {
    "batch": 128,
    "lr": 0.1,
    "schedule": "constant",
    "decay": 0.0,
    "average": 0.0,
    "clip": 0.0,
    "early_stopping": False,
    "summed": True,
    "squared": 1.0,
    "absolute": 0.0,
    "gradient": 0.0,
    "tv": 1.0,
    "value": 0.0,
}
"""The published training."""


def pair_loss(s: PairLoss, truths: Tensor | None) -> Loss:
    """Equations 11 and 12.

    Args:
        s: weights.
        truths: what the network should answer ``(N, …)``; ``None`` leaves its loss out.
    """
    variation, negentropy = TotalVariation(), Negentropy(s.lambda_txt, s.alpha)

    def loss(network: AttackNetwork, batch: Batch) -> Tensor:
        x, text = batch.x, batch.text
        value = network(batch.z, text)
        truth_loss = value.new_zeros(())
        if truths is not None:
            truth_loss = s.value * (value - truths[batch.index.to(truths.device)]).square().mean()
        # what comes behind the network, the sampler above all, costs many times as much
        some = max(1, round(s.part * len(x)))
        value, x, text = value[:some], x[:some], None if text is None else text.first(some)
        y = network.images(value, text)
        squares = (y - x).square().flatten(1)
        total = s.squared * (squares.sum(1) if s.summed else squares.mean(1)).mean()
        if s.absolute:
            total = total + s.absolute * (y - x).abs().mean()
        if s.gradient:
            total = total + s.gradient * gradient_distance(y, x)
        if s.tv:
            total = total + s.tv * variation(value, y).mean()
        if network.made.text:
            total = total + negentropy.weight * negentropy(value, y).mean()
        return total + truth_loss

    return loss


Perceptual = Literal["autoencoder", "lpips", "none"]


def _by_autoencoder(prior: Prior, y: Tensor, x: Tensor) -> Tensor:
    """Mean squared distance in the latents of the prior's encoder, which have about unit variance."""
    with torch.no_grad():
        truth = prior.encode(x)
    return (prior.encode(y) - truth).square().mean()


PERCEPTUAL: dict[str, Callable[[Prior, Tensor, Tensor], Tensor]] = {
    "lpips": lambda prior, y, x: lpips_distance(y.clamp(0, 1), x).mean(),
    "autoencoder": _by_autoencoder,
    "none": lambda prior, y, x: y.new_zeros(()),
}
"""Perceptual distances by name, of images ``(B, 3, H, W)`` and pictures; one number."""


def check_perceptual(name: str) -> None:
    """Whether a perceptual distance can be computed here.

    Raises:
        UserError: its weights are not there.
    """
    if name == "lpips" and (missing := lpips_missing()) is not None:
        raise UserError(f"{missing}; or train with --set perceptual=autoencoder")
