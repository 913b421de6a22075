"""A generative prior: the map ``D(v, e)`` from noise and text to an image, and its parts.

The parts are models in diffusers layout, so Stable Diffusion and the small embedded prior go through the
same class:

* a decoder ``Dec: u → x`` (``AutoencoderKL``, ``AutoencoderDC``, or ``AutoencoderTiny`` in its place),
* a denoiser with a *deterministic* diffusers scheduler: flow matching on a velocity (``x_t = (1 − t) u + t ε``), whose
  ODE is integrated by the two-step Adams–Bashforth method, or DDIM on ε or v (``x_t = √ᾱ u + √(1 − ᾱ) ε``),
* optionally a text encoder ``E`` with its tokenizer.

Everything here is differentiable with respect to noise and latents; weights are frozen.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import diffusers  # which loads a class when it is first asked for: most commands need a prior's type alone
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from adversary.priors import PRIORS, prior_options
from adversary.priors.pixels import PixelDenoiser
from splitsight.artifacts import digest
from splitsight.errors import UserError, unknown_name

__all__ = ["EMBEDDED", "Prior", "Text", "load_prior"]

EMBEDDED = "small"
"""Name of the prior that ships with the package."""


@dataclass(frozen=True)
class Text:
    """An embedded prompt: ``states`` ``(1 or B, L, D)`` and ``mask`` ``(1 or B, L)`` (1 = a token)."""

    states: Tensor
    mask: Tensor

    def expand(self, batch: int) -> Text:
        """The same prompt for ``batch`` images."""
        if len(self.states) == batch:
            return self
        return Text(self.states.expand(batch, -1, -1), self.mask.expand(batch, -1))

    def first(self, count: int) -> Text:
        """Of prompts for images, those of the first ``count``; one prompt stays that of all."""
        return Text(self.states[:count], self.mask[:count])


class Prior(nn.Module):
    """``D``, ``Dec``, ``E`` of one latent diffusion model; latents are scaled to about unit variance.

    Args:
        vae: autoencoder.
        denoiser: predicts what ``scheduler`` expects. With flow matching, and in a transformer, padding of a prompt is
            masked.
        scheduler: deterministic sampler; also fixes the kind of diffusion.
        text_encoder: ``E``; ``None`` makes every prompt an error except the denoiser's own null states.
        tokenizer: goes with ``text_encoder``.
        name: shown in summaries.
        pixel_denoiser: a second diffusion model, of pixels at low noise; ``None`` where the prior has none.
    """

    def __init__(
        self,
        vae: diffusers.AutoencoderDC | diffusers.AutoencoderKL | diffusers.AutoencoderTiny,
        denoiser: diffusers.PixArtTransformer2DModel | diffusers.UNet2DConditionModel,
        scheduler: diffusers.FlowMatchEulerDiscreteScheduler | diffusers.DDIMScheduler,
        text_encoder: transformers.CLIPTextModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        name: str = "prior",
        pixel_denoiser: PixelDenoiser | None = None,
    ) -> None:
        super().__init__()
        self.vae, self.denoiser, self.text_encoder = vae, denoiser, text_encoder
        self.scheduler, self.tokenizer, self.name = scheduler, tokenizer, name
        self.pixel_denoiser = pixel_denoiser
        self.flow = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)
        self.scaling = float(vae.config["scaling_factor"])
        # Stable Diffusion's U-Net was trained to attend to padding too
        self.masked = self.flow or isinstance(denoiser, diffusers.PixArtTransformer2DModel)
        self.evaluations = 0
        self.cells = size = int(denoiser.config["sample_size"])
        self.latent_shape = (int(denoiser.config["in_channels"]), size, size)
        channels = vae.config.get("encoder_block_out_channels") or vae.config["block_out_channels"]
        self.image_size = size * 2 ** (len(channels) - 1)
        self.eval().requires_grad_(False)
        # a sixth less time for a decode and its gradient on a CPU
        # (diffusers wraps Module.to in a way that hides its signature)
        cast("nn.Module", self.vae).to(memory_format=torch.channels_last)
        self._empty: Text | None = None

    @classmethod
    def from_folder(cls, folder: Path, name: str | None = None) -> Prior:
        """Load a prior in diffusers layout (sub-folders ``vae``, ``transformer`` or ``unet``, ``scheduler``, …).

        A sub-folder ``pixel_denoiser`` is optional.

        Args:
            folder: where it is.
            name: shown in summaries; the folder's by default.

        Raises:
            UserError: a part is missing, unreadable, or of a kind that is not supported.
        """
        if not folder.is_dir():
            raise UserError(f"no prior at {folder}: give a folder in diffusers layout or '{EMBEDDED}'")
        kinds: dict[str, tuple[type[Any], ...]] = {
            "vae": (diffusers.AutoencoderDC, diffusers.AutoencoderTiny, diffusers.AutoencoderKL),
            "transformer" if (folder / "transformer").is_dir() else "unet": (
                diffusers.PixArtTransformer2DModel,
                diffusers.UNet2DConditionModel,
            ),
            "scheduler": (diffusers.FlowMatchEulerDiscreteScheduler, diffusers.DDIMScheduler),
        }
        parts: dict[str, Any] = {}
        diffusers.utils.logging.get_verbosity()
        diffusers.utils.logging.set_verbosity_error()
        # neither library's bars belong into a user's terminal for files that load in milliseconds
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        try:
            for part, options in kinds.items():
                config = options[0].load_config(folder / part)
                # Stable Diffusion names PNDM or DDIM here; both describe the same noise schedule
                kind = next((k for k in options if k.__name__ == config.get("_class_name")), options[-1])
                how: dict[str, Any] = {"low_cpu_mem_usage": False} if part != "scheduler" else {}
                if kind is diffusers.DDIMScheduler:
                    # its default, for images in [-1, 1], where PNDM's configuration has no such key; latents go beyond
                    how["clip_sample"] = False
                loaded = kind.from_pretrained(folder / part, **how)
                parts["denoiser" if part in ("transformer", "unet") else part] = (
                    loaded.float() if isinstance(loaded, nn.Module) else loaded
                )
            text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").float()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the prior at {folder} cannot be loaded ({reason}): restore its folder or retrain it"
            ) from error
        second = folder / "pixel_denoiser"
        pixels = PixelDenoiser.from_folder(second) if second.is_dir() else None
        name = name or folder.name
        return cls(parts["vae"], parts["denoiser"], parts["scheduler"], text_encoder, tokenizer, name, pixels)

    def save(self, folder: Path) -> None:
        """Write the folder that :meth:`from_folder` reads; weights as float16 safetensors."""
        # copies, because .half() works in place
        copy.deepcopy(self.vae).half().save_pretrained(folder / "vae")
        part = "transformer" if isinstance(self.denoiser, diffusers.PixArtTransformer2DModel) else "unet"
        copy.deepcopy(self.denoiser).half().save_pretrained(folder / part)
        copy.deepcopy(self.text_encoder).half().save_pretrained(folder / "text_encoder")
        if self.pixel_denoiser is not None:
            self.pixel_denoiser.save(folder / "pixel_denoiser")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        for file in folder.glob("*/config.json"):
            # where a part was loaded from is nobody else's business
            config = json.loads(file.read_text())
            if config.pop("_name_or_path", None) is not None:
                file.write_text(json.dumps(config, indent=2) + "\n")

    def sized(self, side: int) -> Prior:
        """This prior for images of another size, on the same weights.

        A convolutional autoencoder (``AutoencoderDC``) serves larger images than it was trained on, where the denoiser
        sees overlapping tiles of the size that it knows (:meth:`tiled`). Stable Diffusion's serves its own size alone,
        and nothing is made smaller: images are then resized.

        Args:
            side: of the images, in pixels; rounded up to whole cells of the latent.
        """
        stride = self.image_size // self.latent_shape[-1]
        cells = max(self.cells, math.ceil(side / stride))
        if not isinstance(self.vae, diffusers.AutoencoderDC) or cells == self.latent_shape[-1]:
            return self
        other = copy.copy(self)
        other.latent_shape, other.image_size = (self.latent_shape[0], cells, cells), cells * stride
        return other

    def lean(self, options: Collection[str]) -> Prior:
        """Switch on what a large prior may need; returns itself.

        Args:
            options: out of :data:`adversary.priors.OPTIONS`.
        """
        if "half" in options:
            for part in (self.vae, self.denoiser, self.text_encoder):
                cast("nn.Module", part).half()
        for part in (self.vae, self.denoiser):
            # not every architecture has both
            if "slicing" in options and hasattr(part, "set_attention_slice"):
                part.set_attention_slice("auto")
            if "slicing" in options and hasattr(part, "enable_slicing"):
                part.enable_slicing()
            if "checkpointing" in options:
                part.enable_gradient_checkpointing()
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.text_encoder.device

    @property
    def digest(self) -> str:
        """SHA-256 over all weights."""
        return digest(self.state_dict())

    @property
    def generator_digest(self) -> str:
        """SHA-256 over what makes an image of noise and text: all weights but those of the denoiser of pixels."""
        return digest({k: v for k, v in self.state_dict().items() if not k.startswith("pixel_denoiser.")})

    @property
    def latent_digest(self) -> str:
        """SHA-256 over the autoencoder's weights: what fixes the meaning of a latent."""
        return digest(self.vae.state_dict())

    def decode(self, u: Tensor) -> Tensor:
        """``Dec``: latents ``(B, C, h, w)`` → images ``(B, 3, H, W)``, nominally in [0, 1], not clamped."""
        # diffusers asks for a FloatTensor, which is the type of no tensor
        scaled = (u / self.scaling).to(self.vae.dtype)
        return self.vae.decode(cast("torch.FloatTensor", scaled), return_dict=False)[0].to(u.dtype).add(1).div(2)

    def encode(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] → scaled latents ``(B, C, h, w)`` (the mean, where there is one)."""
        out = self.vae.encode((2 * x - 1).to(self.vae.dtype), return_dict=False)[0]
        u = out if isinstance(out, Tensor) else out.mean
        return u.to(x.dtype) * self.scaling

    def embed_text(self, prompts: list[str]) -> Text:
        """``E``: prompts → embeddings; the empty prompt is the unconditional one."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        states = self.text_encoder(input_ids=ids, attention_mask=mask if self.masked else None).last_hidden_state
        return Text(states, mask if self.masked else torch.ones_like(mask))

    def empty(self) -> Text:
        """The empty prompt, embedded once."""
        if self._empty is None or self._empty.states.device != self.device:
            self._empty = self.embed_text([""])
        return self._empty

    def _predict(self, x: Tensor, timestep: Tensor | float, text: Text | None) -> Tensor:
        self.evaluations += len(x)
        if x.shape[-1] > self.cells:
            return self.tiled(x, timestep, text)
        return self._predicted(x, timestep, text)

    def tiled(self, x: Tensor, timestep: Tensor | float, text: Text | None) -> Tensor:
        """The denoiser on overlapping tiles of latents ``(B, C, h, w)``, its answers averaged (MultiDiffusion, Bar-Tal
        et al., 2023, arXiv 2302.08113, equation 5).

        Tiles overlap by half at least; each answer counts the more the nearer it is to the middle of its tile.
        """
        n = self.cells
        starts = [_starts(size, n) for size in x.shape[-2:]]
        places = [(i, j) for i in starts[0] for j in starts[1]]
        tiles = torch.cat([x[..., i : i + n, j : j + n] for i, j in places])
        if text is not None and len(text.states) > 1:
            text = Text(text.states.repeat(len(places), 1, 1), text.mask.repeat(len(places), 1))
        ramp = 1 - (torch.arange(n, device=x.device) - (n - 1) / 2).abs() / (n / 2 + 0.5)
        weight = ramp[:, None] * ramp
        total, norm = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for (i, j), answer in zip(places, self._predicted(tiles, timestep, text).chunk(len(places)), strict=True):
            total[..., i : i + n, j : j + n] += weight * answer
            norm[..., i : i + n, j : j + n] += weight
        return total / norm

    def _predicted(self, x: Tensor, timestep: Tensor | float, text: Text | None) -> Tensor:
        text = (text or self.empty()).expand(len(x))
        t = torch.full((len(x),), float(timestep), device=x.device)
        mask = text.mask if self.masked else None
        half = self.denoiser.dtype
        return self.denoiser(
            x.to(half),
            timestep=t,
            encoder_hidden_states=text.states.to(half),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0].to(x.dtype)

    def sample(self, v: Tensor, text: Text | None = None, steps: int = 10, *, checkpoint: bool = False) -> Tensor:
        """The sampler: noise ``(B, C, h, w)`` → scaled latents, in ``steps`` deterministic steps.

        With ``checkpoint`` a gradient keeps only the latents between steps and computes each step again, which
        counts as a second evaluation.
        """
        predict = partial(recomputed, self._predict, use_reentrant=False) if checkpoint else self._predict
        if self.flow:
            levels = self.levels(steps)
            return _adams_bashforth(lambda x, t: predict(x, t * 1000, text), v, levels)
        self.scheduler.set_timesteps(steps, device=v.device)
        step = cast("Callable[..., tuple[Tensor, ...]]", self.scheduler.step)
        x = v
        for t in cast("Tensor", self.scheduler.timesteps):
            x = step(predict(x, t, text), t, x, return_dict=False)[0]
        return x

    def levels(self, steps: int) -> list[float]:
        """Flow matching: the noise levels that the sampler goes through, falling from 1 to 0, ``steps + 1`` of them.

        Evenly spaced but for the scheduler's ``shift``. They are given to the scheduler, whose own ones end with a step
        from .001 to 0: of four evaluations one would change nothing.
        """
        # diffusers annotates the levels as a list of numbers and computes with an array
        even: Any = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy()
        cast("diffusers.FlowMatchEulerDiscreteScheduler", self.scheduler).set_timesteps(sigmas=even)
        return cast("Tensor", self.scheduler.sigmas).tolist()

    def generate(self, v: Tensor, text: Text | None = None, steps: int = 10, *, checkpoint: bool = False) -> Tensor:
        """``D(v, e)``: noise → images, nominally in [0, 1]; ``checkpoint`` as for :meth:`sample`."""
        u = self.sample(v, text, steps, checkpoint=checkpoint)
        return recomputed(self.decode, u, use_reentrant=False) if checkpoint else self.decode(u)

    def invert(self, u: Tensor, text: Text | None = None, steps: int = 10) -> Tensor:
        """The noise from which :meth:`sample` arrives at latents ``u``, by running the ODE backwards.

        Explicit from clean to noise, exact in the limit of many steps: the sampler's own method for flow matching, DDIM
        inversion (Dhariwal and Nichol, 2021, arXiv 2105.05233, appendix F; Mokady et al., 2022, arXiv 2211.09794,
        equation 3) otherwise.
        """
        if not self.flow:
            self.scheduler.set_timesteps(steps, device=u.device)
            return self._ddim_inverse(u, text)
        levels = self.levels(steps)[::-1]
        # no denoiser is trained to see noise in latents that have none
        first = (levels[0] + levels[1]) / 2
        return _adams_bashforth(lambda x, t: self._predict(x, t * 1000, text), u, levels, first)

    def _ddim_inverse(self, u: Tensor, text: Text | None) -> Tensor:
        scheduler: Any = self.scheduler
        alpha, x = float(scheduler.final_alpha_cumprod), u
        for t in cast("Tensor", scheduler.timesteps).flip(0).tolist():
            clean, eps = self._parted(x, self._predict(x, t, text), alpha)
            alpha = float(scheduler.alphas_cumprod[t])
            x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * eps
        return x

    def _parted(self, x: Tensor, out: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """DDIM: latents at ᾱ and what the denoiser says of them → clean latents and noise."""
        a, s = alpha**0.5, (1 - alpha) ** 0.5
        if self.scheduler.config["prediction_type"] == "v_prediction":
            return a * x - s * out, a * out + s * x
        return (x - s * out) / a, out

    def _alpha(self, t: float) -> tuple[float, int]:
        """DDIM: the training step whose noise level √(1 − ᾱ) is nearest to ``t``, and its ᾱ."""
        level = (1 - self.scheduler.alphas_cumprod).sqrt()
        index = int((level - t).abs().argmin())
        return float(self.scheduler.alphas_cumprod[index]), index

    def noised(self, u: Tensor, eps: Tensor, t: float) -> Tensor:
        """Latents ``u`` at noise level ``t`` in [0, 1] with noise ``eps`` of the same shape."""
        if self.flow:
            return (1 - t) * u + t * eps
        alpha, _ = self._alpha(t)
        return alpha**0.5 * u + (1 - alpha) ** 0.5 * eps

    def denoise(self, x: Tensor, t: float, text: Text | None = None) -> Tensor:
        """The prior's estimate ``E[u | x_t]`` of clean latents from latents at noise level ``t``."""
        if self.flow:
            return x - t * self._predict(x, t * 1000, text)
        alpha, index = self._alpha(t)
        return self._parted(x, self._predict(x, float(index), text), alpha)[0]


def _adams_bashforth(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, levels: Sequence[float], first: float | None = None
) -> Tensor:
    """``dx/dt = v(x, t)`` by the explicit two-step Adams–Bashforth method (Hairer, Nørsett and Wanner, Solving ordinary
    differential equations I, section III.5, variable steps), the first step by Euler's: of second order, for one
    evaluation a step.

    Args:
        velocity: v.
        x: at the first level.
        levels: to step through.
        first: the time at which v is asked in the first step; that step's beginning where not given.
    """
    last, before = None, 0.0
    for low, high in pairwise(levels):
        v, step = velocity(x, low if last is not None or first is None else first), high - low
        x = x + step * (v if last is None else v + step / before / 2 * (v - last))
        last, before = v, step
    return x


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin that cover ``size`` and overlap by half at least."""
    count = 1 + math.ceil(2 * (size - tile) / tile)
    return [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]


def load_prior(name: str) -> Prior:
    """A prior by name (``splitsight list priors``), or any folder in diffusers layout by path, with its options.

    Raises:
        UserError: neither such a name nor such a folder, or the folder is damaged.
    """
    name, options = prior_options(name)
    if name in PRIORS.names():
        return Prior.from_folder(PRIORS.get(name), name).lean(options)
    if "/" in name or Path(name).is_dir():
        return Prior.from_folder(Path(name)).lean(options)
    raise unknown_name("prior", name, PRIORS.names())
