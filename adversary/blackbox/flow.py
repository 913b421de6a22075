"""FIA-Flow (Ren et al., "What Your Features Reveal", arXiv 2511.15316), built from the paper's description: net-flow.

* **Alignment** (LFSAM): features are unfolded onto the latent's grid by learnt pixel shuffles, pass through a U with
  skips and self-attention, and what the encoder's levels hold is gathered once more by 1 × 1 convolutions (FAN):
  ``z_s = Conv_out(F_d + F_fan)`` (its equation 2).
* **Refinement** (DIFM): a vector field v moves the distribution of aligned latents to that of the encoder's along
  ``z_t = t z_x + (1 − t) z_s``, by one Euler step: ``ẑ_x = z_s + v(z_s, 0)`` (its equation 4).

v is the prior's own denoiser, frozen, with low-rank adaptations (LoRA) of its linear layers. The paper does not say
how its time relates to the denoiser's; here an aligned latent counts as a latent of noise level τ₀ (:data:`LEVEL`),
``τ = τ₀ (1 − t)`` and ``v(z, t) = (E[u | z, τ] − z) τ₀ / τ``. So the untrained v is the prior's own estimate, and for a
rectified flow it is the denoiser's velocity times −τ₀.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from adversary.blackbox.layouts import Standardised, entry, side_of
from adversary.priors.prior import Prior, Text
from splitsight.features import FeatureSpec

__all__ = ["LEVEL", "Aligned", "Flow", "FlowInversion"]

LEVEL = 0.3
"""τ₀: the noise level that an aligned latent is taken for."""
_ADAPTER = "default"
"""peft's name of the one adapter that there is."""
_LAST = 0.05
"""Least noise level that is asked of the denoiser: at zero there is nothing to predict."""


def _conv(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class _Attention(nn.Module):
    """Self-attention over the positions of a map, added to it."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).movedim(1, 2)
        found = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return x + found.movedim(1, 2).unflatten(2, x.shape[2:])


def _spatial(spec: FeatureSpec, width: int, grid: int) -> nn.Module:
    """A tensor onto the latent's grid: unfolded by learnt pixel shuffles, or folded by strided convolutions."""
    side = side_of(spec)
    parts: list[nn.Module] = [entry(spec, width)]
    while 2 * side <= grid:
        parts += [nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2), nn.ReLU()]
        side *= 2
    while side >= 2 * grid:
        parts.append(_conv(width, width, 2))
        side = (side + 1) // 2
    if side != grid or (spec.grid is not None and spec.grid[0] != spec.grid[1]):
        parts.append(nn.Upsample((grid, grid), mode="bilinear", align_corners=False))
    return nn.Sequential(*parts)


class Aligned(nn.Module):
    """LFSAM: features of one split point → latents of one prior.

    Args:
        features: the tensors that cross the split.
        latent: ``(C, h, w)`` of the prior.
        width: channels at the latent's resolution, a multiple of 4; twice as many below.
    """

    def __init__(self, features: Sequence[FeatureSpec], latent: tuple[int, int, int], width: int = 64) -> None:
        super().__init__()
        w = width
        self.standard = Standardised(features)
        self.entries = nn.ModuleList(_spatial(spec, w, latent[1]) for spec in features)
        self.encode = nn.ModuleList(
            [
                nn.Sequential(_conv(w, w), _conv(w, w)),
                nn.Sequential(_conv(w, 2 * w, 2), _conv(2 * w, 2 * w), _Attention(2 * w)),
                nn.Sequential(_conv(2 * w, 2 * w, 2), _conv(2 * w, 2 * w), _Attention(2 * w)),
            ]
        )
        self.decode = nn.ModuleList(
            [
                nn.Sequential(_conv(4 * w, 2 * w), _Attention(2 * w)),
                nn.Sequential(_conv(3 * w, w), _conv(w, w)),
            ]
        )
        self.gather = nn.ModuleList(nn.Conv2d(c, w, 1) for c in (w, 2 * w, 2 * w))
        self.fuse = nn.Conv2d(3 * w, w, 3, padding=1)
        self.exit = nn.Conv2d(w, latent[0], 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each ``(B, …)`` → aligned latents ``z_s``, ``(B, C, h, w)``."""
        standard = self.standard(features)
        h = torch.stack([e(z) for e, z in zip(self.entries, standard, strict=True)]).sum(0)
        levels = []
        for stage in self.encode:
            h = stage(h)
            levels.append(h)
        for stage, skip in zip(self.decode, (levels[1], levels[0]), strict=True):
            h = stage(torch.cat([_sized(h, skip), skip], 1))
        gathered = torch.cat([_sized(g(e), h) for g, e in zip(self.gather, levels, strict=True)], 1)
        return self.exit(h + self.fuse(gathered))


def _sized(maps: Tensor, like: Tensor) -> Tensor:
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return nn.functional.interpolate(maps, like.shape[-2:], mode="nearest")


class Flow(nn.Module):
    """DIFM on a prior: its state is the adaptations alone, the prior's weights are shared with the prior.

    The adaptations are peft's LoRA (Hu et al., arXiv 2106.09685) at a scaling of 1: ``W x + b + B A x``, B zero at the
    beginning.

    Args:
        prior: whose denoiser is adapted.
        rank: of the adaptations.
        everywhere: adapt every linear layer, not only those of the attention.
    """

    def __init__(self, prior: Prior, rank: int = 4, *, everywhere: bool = False) -> None:
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        # the structure is copied, the frozen weights are not
        shared = {id(t): t for t in (*prior.denoiser.parameters(), *prior.denoiser.buffers())}
        denoiser = copy.deepcopy(prior.denoiser, shared)
        linear = (name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear))
        chosen = [name for name in linear if everywhere or _of_attention(name)]
        # from a generator of its own: a network is built again whenever it is copied or loaded
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen), denoiser)
        self.adaptations = nn.ParameterDict()
        generator = torch.Generator().manual_seed(0)
        for name, layer in denoiser.named_modules():
            if isinstance(layer, LoraLayer):
                down, up = (cast(nn.Linear, part[_ADAPTER]).weight for part in (layer.lora_A, layer.lora_B))
                with torch.no_grad():
                    down.copy_(torch.randn(down.shape, generator=generator) / math.sqrt(down.shape[1]))
                key = name.replace(".", "/")
                self.adaptations[f"{key}/down"], self.adaptations[f"{key}/up"] = down, up
        adapted = Prior(prior.vae, denoiser, prior.scheduler, prior.text_encoder, prior.tokenizer, prior.name)
        self.adaptations.requires_grad_(True)
        # in a list, so that it is no part of this module's state
        self._adapted = [adapted]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flow:
        super()._apply(fn, recurse)
        # buffers of the copy are its own
        for module in self._adapted[0].denoiser.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fn(buffer)
        return self

    @property
    def evaluations(self) -> int:
        """Passes of one latent through the adapted denoiser so far."""
        return self._adapted[0].evaluations

    def velocity(self, z: Tensor, t: float, text: Text | None = None) -> Tensor:
        """``v(z, t)``: latents ``(B, C, h, w)`` at time t in [0, 1] → the same shape."""
        level = max(LEVEL * (1 - t), _LAST)
        return (self._adapted[0].denoise(z, level, text) - z) * (LEVEL / level)

    def forward(self, aligned: Tensor, text: Text | None = None) -> Tensor:
        """One Euler step: ``z_s`` → ``ẑ_x``, ``(B, C, h, w)``."""
        return aligned + self.velocity(aligned, 0.0, text)


def _of_attention(name: str) -> bool:
    return name.endswith(("to_q", "to_k", "to_v", "to_out.0"))


class FlowInversion(nn.Module):
    """Both parts: features → latents.

    Args:
        features: the tensors that cross the split.
        prior: whose latents they become, and whose denoiser is adapted.
        width: of the alignment.
        rank: of the adaptations.
        everywhere: adapt every linear layer, not only those of the attention.

    Attributes:
        refines: whether the flow's step is taken; the alignment is trained without.
    """

    def __init__(
        self, features: Sequence[FeatureSpec], prior: Prior, width: int, rank: int, *, everywhere: bool
    ) -> None:
        super().__init__()
        self.aligned = Aligned(features, prior.latent_shape, width)
        self.flow = Flow(prior, rank, everywhere=everywhere)
        self.refines = True

    @property
    def standard(self) -> Standardised:
        """What standardises the features."""
        return self.aligned.standard

    def forward(self, features: Sequence[Tensor], text: Text | None = None) -> Tensor:
        """Features, each ``(B, …)`` → latents ``(B, C, h, w)``."""
        value = self.aligned(features)
        return self.flow(value, text) if self.refines else value
