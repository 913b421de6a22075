"""What back-propagation through the sampler keeps in memory, counted without weights and without a large machine.

An attack on the noise differentiates ``F1(Dec(sampler(v)))``. Plain back-propagation keeps the activations of every
sampling step until the way back: ``steps · A + B``, with A bytes for a pass of the denoiser and B for the decoder.
With checkpoints (``dmb``'s setting ``checkpoint``; Chen et al., arXiv:1604.06174) only the latents between the steps
stay, and one step or the decoder is computed again at a time: ``steps · L + max(A, B)``, L being one latent.

A and B are counted by running the networks on shapes alone and adding up the storages that autograd saves, parameters
left out (:func:`saved_bytes`). That takes neither weights nor memory, so Stable Diffusion's architecture is counted at
its own size. The same count on a case that fits is held against the most that a process really took
(:func:`measured`):

    python -m adversary.memory

Not counted: F1, the scratch space of kernels, the gradients on the way (a few of the largest tensors), the framework.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint as recomputed

__all__ = ["SMALL", "STABLE_2_1", "Kept", "Shape", "kept", "measured", "saved_bytes"]

_TOKENS = 77


@dataclass(frozen=True)
class Shape:
    """An architecture of Stable Diffusion's kind.

    Attributes:
        unet: arguments of ``UNet2DConditionModel``.
        vae: arguments of ``AutoencoderKL``.
        pixels: side of the image.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    pixels: int

    def build(self) -> tuple[UNet2DConditionModel, nn.Module]:
        """Denoiser, and decoder with what stands before it; random weights, frozen."""
        unet, vae = UNet2DConditionModel(**self.unet), AutoencoderKL(**self.vae)
        assert vae.post_quant_conv is not None
        decoder = nn.Sequential(vae.post_quant_conv, vae.decoder)
        return unet.eval().requires_grad_(False), decoder.eval().requires_grad_(False)

    def latent(self) -> Tensor:
        """Noise for one image, a leaf with gradient."""
        side = self.pixels // 2 ** (len(self.vae["block_out_channels"]) - 1)
        return torch.randn(1, 4, side, side, requires_grad=True)

    def text(self) -> Tensor:
        """An embedded prompt."""
        return torch.randn(1, _TOKENS, self.unet["cross_attention_dim"])


def _stable(widths: tuple[int, ...], heads: tuple[int, ...], text: int, decoder: tuple[int, ...], pixels: int) -> Shape:
    unet = {
        "sample_size": pixels // 8,
        "block_out_channels": widths,
        "attention_head_dim": heads,
        "cross_attention_dim": text,
        "use_linear_projection": True,
    }
    vae = {
        "block_out_channels": decoder,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return Shape(unet, vae, pixels)


STABLE_2_1 = _stable((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), 512)
"""Stable Diffusion 2.1 (huggingface.co/stabilityai/stable-diffusion-2-1-base, its ``config.json`` files)."""
SMALL = _stable((32, 64, 128, 128), (1, 2, 4, 4), 64, (32, 32, 64, 64), 256)
"""The same architecture with a tenth of the channels and a quarter of the pixels: fits anywhere."""


@dataclass(frozen=True)
class Kept:
    """Bytes for one image.

    Attributes:
        step: A, of one pass of the denoiser.
        decoder: B.
        latent: L.
        weights: of denoiser and decoder.
    """

    step: int
    decoder: int
    latent: int
    weights: int

    def plain(self, steps: int) -> int:
        """Activations of so many sampling steps and the decoder."""
        return steps * self.step + self.decoder

    def checkpointed(self, steps: int) -> int:
        """The latents, and the activations of one step or of the decoder."""
        return steps * self.latent + max(self.step, self.decoder)


def saved_bytes(run: Callable[[], Tensor], *models: nn.Module) -> int:
    """Bytes of the storages that autograd saves while ``run`` computes, each once; the models' parameters not at all.

    Args:
        run: computes something differentiable.
        models: whose parameters are there anyway.
    """
    own = {_storage(p) for model in models for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            found[_storage(tensor)] = tensor  # held, so that no later storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _weights(*models: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made in ``dtype``; what shapes alone stand for cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def kept(shape: Shape, dtype: torch.dtype = torch.float32) -> Kept:
    """Count an architecture on shapes alone.

    Args:
        shape: what to count.
        dtype: of weights and activations.
    """
    with FakeTensorMode(), _default(dtype):
        unet, decoder = shape.build()
        latent, text = shape.latent(), shape.text()
        return Kept(
            saved_bytes(lambda: unet(latent, 500, text, return_dict=False)[0], unet),
            saved_bytes(lambda: decoder(latent), decoder),
            latent.numel() * latent.element_size(),
            _weights(unet, decoder),
        )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _differentiate(shape: Shape, steps: int, checkpoint: bool) -> int:
    """Bytes by which this process's highest mark grew in a pass through the sampler and back."""
    torch.manual_seed(0)
    unet, decoder = shape.build()
    latent, text = shape.latent(), shape.text()

    def step(x: Tensor) -> Tensor:
        return x - unet(x, 500, text, return_dict=False)[0] / steps

    def call(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return recomputed(part, x, use_reentrant=False) if checkpoint else part(x)

    with torch.no_grad():
        decoder(step(latent))
    before = _peak()
    x = latent
    for _ in range(steps):
        x = call(step, x)
    call(decoder, x).square().sum().backward()
    return _peak() - before


def measured(steps: int, checkpoint: bool) -> int:
    """Bytes that a process of its own took for :data:`SMALL`'s activations, through the sampler and back.

    Args:
        steps: of the sampler.
        checkpoint: as for :class:`~adversary.whitebox.variables.Noise`.
    """
    arguments = [sys.executable, "-m", "adversary.memory", str(steps), str(int(checkpoint))]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print counts for :data:`STABLE_2_1` and :data:`SMALL`, and measurements of the latter, as JSON (GiB)."""

    def gib(size: int) -> float:
        return round(size / 2**30, 3)

    steps, found = 20, {}
    cases = {
        "small, float32": (SMALL, torch.float32),
        "stable diffusion 2.1, float32": (STABLE_2_1, torch.float32),
        "stable diffusion 2.1, float16": (STABLE_2_1, torch.float16),
    }
    for name, (shape, dtype) in cases.items():
        count = kept(shape, dtype)
        found[name] = {
            "weights": gib(count.weights),
            "a step": gib(count.step),
            "decoder": gib(count.decoder),
            f"{steps} steps, all kept": gib(count.plain(steps)),
            f"{steps} steps, checkpoints": gib(count.checkpointed(steps)),
        }
    found["small, float32"] |= {
        f"{steps} steps, all kept, measured": gib(measured(steps, False)),
        f"{steps} steps, checkpoints, measured": gib(measured(steps, True)),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(_differentiate(SMALL, int(sys.argv[1]), sys.argv[2] == "1"))
    else:
        main()
