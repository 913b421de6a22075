"""Training the prior's denoiser and text encoder together: rectified flow on the autoencoder's latents.

Rectified flow (Liu et al., arXiv 2209.03003): ``x_t = (1 − t) u + t ε``, the network predicts ``ε − u``.
Nearly straight paths are what lets the sampler do with few steps. Times are logit-normal (Esser et al.,
arXiv 2403.03206). The text encoder is a small CLIP text model that learns with the denoiser.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adversary.priors._pictures import Pictures
from adversary.priors._settings import Count, Settings
from adversary.priors.prior import Prior
from splitsight.artifacts import digest, home
from splitsight.captions import build_tokenizer
from splitsight.errors import UserError
from splitsight.training import Budget, Run, Stateful, ema

__all__ = ["HeldOut", "Trained", "build_denoiser", "build_text_encoder", "build_unet", "train_denoiser"]


def build_denoiser(
    channels: int, sample_size: int, text_width: int, width: int = 160, layers: int = 5
) -> PixArtTransformer2DModel:
    """A small diffusion transformer with cross-attention to text (PixArt-α, arXiv 2310.00426), patch size 2.

    Its size is chosen for hours, not days, on a CPU: after four minutes of one core each, held-out velocity errors
    were 1.29 for width 128 × 4 layers, 1.35 for 224 × 6, and 1.33 and 1.46 for U-Nets of 2.3 and 5.8 M parameters.
    """
    return PixArtTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        cross_attention_dim=width,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=text_width,
        interpolation_scale=1,
        use_additional_conditions=False,
    )


def build_unet(
    channels: int, sample_size: int, text_width: int, widths: tuple[int, ...] = (64, 96, 128), layers: int = 1
) -> UNet2DConditionModel:
    """A convolutional U-Net with attention to itself and to text at half resolution and in the middle.

    Convolutional, so that the same weights denoise latents of any size. With the default widths (4.5 M parameters), on
    16 × 16 latents: convolutions at 16, 8 and 4, attention over 64 tokens at 8 and 16 at 4. One layer a block: a second
    one costs a third of the images that a core learns from in a minute.
    """
    plain = len(widths) - 2
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", *["DownBlock2D"] * plain),
        up_block_types=(*["UpBlock2D"] * plain, "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        # diffusers' name for the number of heads
        attention_head_dim=max(1, widths[1] // 32),
        norm_num_groups=math.gcd(32, *widths),
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast, width: int = 128) -> CLIPTextModel:
    """A two-layer CLIP text model over the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            # transformers computes these attributes by name, and annotates them as anything that a token may have
            pad_token_id=cast("int", tokenizer.pad_token_id),
            bos_token_id=cast("int", tokenizer.bos_token_id),
            eos_token_id=cast("int", tokenizer.eos_token_id),
        )
    )


@dataclass
class Trained:
    """What the denoiser's training yields, ready to be saved side by side."""

    denoiser: PixArtTransformer2DModel | UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: FlowMatchEulerDiscreteScheduler
    figures: dict[str, float | int | bool]


class _Pair(nn.Module):
    def __init__(self, denoiser: PixArtTransformer2DModel | UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.denoiser(
            x, timestep=t * 1000, encoder_hidden_states=text, encoder_attention_mask=mask, return_dict=False
        )[0]


@torch.no_grad()
def _encode(vae: AutoencoderDC, images: np.ndarray, *, mirrored: bool = False) -> Tensor:
    """``(B, H, W, 3)`` uint8, or its mirror images → scaled latents."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    x = x.to(next(vae.parameters()).device)
    return vae.encode(x.flip(-1) if mirrored else x, return_dict=False)[0] * vae.config["scaling_factor"]


class _Latents:
    """Scaled latents of images and of their mirror images, encoded when they are first asked for.

    They are kept in the cache, so that a run that is resumed on the same machine finds them.

    Args:
        vae: the autoencoder.
        images: ``(N, H, W, 3)`` uint8.
    """

    def __init__(self, vae: AutoencoderDC, images: np.ndarray) -> None:
        self.vae, self.images = vae, images
        key = hashlib.sha256(f"{digest(vae.state_dict())}{len(images)}{int(images[::1000].sum())}".encode())
        folder = home() / "latents" / key.hexdigest()[:24]
        folder.mkdir(parents=True, exist_ok=True)
        self.shape = tuple(_encode(vae, images[:1]).shape[1:])
        self._values = self._file(folder / "values.npy", np.float16, (2, len(images), *self.shape))
        self._known = self._file(folder / "known.npy", np.bool_, (2, len(images)))

    @staticmethod
    def _file(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(path, mode="r+" if path.is_file() else "w+", dtype=kind, shape=shape)

    def get(self, index: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Latents of the images meant, ``(B, C, h, w)`` float32.

        Args:
            index: which, ``(B,)``.
            mirrored: 1 where the mirror image is meant, ``(B,)``.
        """
        for side in (0, 1):
            missing = np.unique(index[(mirrored == side) & ~self._known[mirrored, index]])
            if len(missing):
                values = _encode(self.vae, self.images[missing], mirrored=bool(side))
                self._values[side, missing] = values.half().cpu().numpy()
                # only what is there is known, whenever the run is killed
                self._known[side, missing] = True
        return self._values[mirrored, index].astype(np.float32)


_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SHIFT = 2.0
"""How much denser the sampler's levels lie at high noise (Esser et al., equation 23)."""


class _Tokens:
    """Captions → ids and mask on a device."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)


@dataclass
class HeldOut:
    """Latents and captions that are never trained on."""

    latents: np.ndarray
    captions: list[str]

    @torch.no_grad()
    def loss(self, pair: nn.Module, tokens: _Tokens, level: float | None = None, count: int | None = None) -> float:
        """Mean squared velocity error with fixed noise: comparable between runs of the same autoencoder.

        Args:
            pair: denoiser and text encoder.
            tokens: of its tokenizer.
            level: the time t in [0, 1]; ``None`` draws it uniformly. ``t²`` times the value is the mean squared error
                of the denoised latents.
            count: of the first latents only; ``None`` for all.
        """
        generator = torch.Generator().manual_seed(1)
        ids, mask = tokens(self.captions)
        losses = []
        for i in range(0, min(count or len(self.latents), len(self.latents)), 100):
            u = torch.from_numpy(self.latents[i : i + 100].astype(np.float32)).to(ids.device)
            eps = torch.randn(u.shape, generator=generator).to(ids.device)
            t = torch.rand(len(u), generator=generator).to(ids.device)
            if level is not None:
                t = torch.full_like(t, level)
            at = t[:, None, None, None]
            out = pair((1 - at) * u + at * eps, t, ids[i : i + 100], mask[i : i + 100])
            losses.append((out - (eps - u)).square().mean((1, 2, 3)))
        return float(torch.cat(losses).mean())

    def by_level(self, pair: nn.Module, tokens: _Tokens) -> dict[str, float]:
        """Velocity errors of the first 500 at five fixed times, keys ``loss_t0.1``, …"""
        return {f"loss_t{level:g}": self.loss(pair, tokens, level, 500) for level in _LEVELS}


def _held_out(vae: AutoencoderDC, pictures: Pictures, rng: np.random.Generator) -> dict[str, HeldOut]:
    """``val``: a thousand held-out images; with photographs ``photos`` and ``large``: crops of held-out ones."""
    few = pictures.held[:1000]

    def encoded(images: np.ndarray) -> np.ndarray:
        return np.concatenate([_encode(vae, images[i : i + 50]).cpu().numpy() for i in range(0, len(images), 50)])

    sets = {"val": HeldOut(encoded(few), pictures.held_captions(len(few), rng))}
    if pictures.photos is not None:
        for name, size, count in (("photos", pictures.size, 200), ("large", pictures.large, 100)):
            draw = pictures.held_crops(count, size, rng)
            sets[name] = HeldOut(encoded(draw.crops), draw.crop_captions(rng))
    return sets


def _untrained(channels: int, size: int, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> _Pair:
    """Random weights, with a last layer of zeros."""
    if settings.network == "unet":
        denoiser = (
            build_unet(channels, size, 128, settings.widths) if settings.widths else build_unet(channels, size, 128)
        )
        nn.init.zeros_(denoiser.conv_out.weight)
        assert denoiser.conv_out.bias is not None
        nn.init.zeros_(denoiser.conv_out.bias)
    else:
        denoiser = build_denoiser(channels, size, 128)
        nn.init.zeros_(denoiser.proj_out.weight)
    return _Pair(denoiser, build_text_encoder(tokenizer))


def train_denoiser(
    vae: AutoencoderDC,
    pictures: Pictures,
    out: Path,
    budget: Budget,
    settings: Settings,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    start: Prior | None = None,
    reference: Prior | None = None,
) -> Trained:
    """Train, resuming from ``out``.

    Args:
        vae: the trained autoencoder, with its ``scaling_factor`` set.
        pictures: to train on, and held out.
        out: folder of the run.
        budget: when to stop.
        settings: kind of network, learning rate, precision; the default rate is 1.8e-3 for the transformer and 6e-4
            for the U-Net.
        seed: of weights and draws.
        device: where to train; CPU by default.
        start: an earlier prior, whose denoiser, text encoder and tokenizer are gone on from.
        reference: a prior of the same autoencoder, whose held-out errors are logged once to compare with.

    Raises:
        UserError: ``start`` has latents of another shape.
    """
    device = device or torch.device("cpu")
    # diffusers wraps Module.to in a way that hides its signature
    cast("nn.Module", vae).to(device).eval().requires_grad_(False)
    latents = _Latents(vae, pictures.images)
    torch.manual_seed(seed)
    if start is None:
        tokenizer = build_tokenizer(pictures.vocabulary)
        pair = _untrained(latents.shape[0], latents.shape[1], tokenizer, settings)
    elif start.latent_shape != latents.shape:
        raise UserError(f"prior '{start.name}' has latents of another shape: give another --start")
    else:
        tokenizer = start.tokenizer
        pair = _Pair(start.denoiser, start.text_encoder).train().requires_grad_(True)
    pair.to(device)
    tokens = _Tokens(tokenizer, device)
    peak = settings.lr or (1.8e-3 if isinstance(pair.denoiser, PixArtTransformer2DModel) else 6e-4)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    average, seen = ema(pair, settings.average), Count()
    held_out = _held_out(vae, pictures, np.random.default_rng(seed))

    def evaluate(pair: nn.Module, tokens: _Tokens) -> dict[str, float]:
        errors = {f"{name}_loss": one.loss(pair, tokens) for name, one in held_out.items()}
        return {**errors, **held_out["val"].by_level(pair, tokens)}

    parts: dict[str, Stateful] = {"pair": pair, "average": average, "optimizer": optimizer, "seen": seen}
    total, count = 0.0, 0
    with Run(out, budget, parts, title="train denoiser") as run:
        if reference is not None and run.step == 0:
            other = _Pair(reference.denoiser, reference.text_encoder).to(device).eval()
            run.log(reference=reference.name, **evaluate(other, _Tokens(reference.tokenizer, device)))
        rng = np.random.default_rng((seed, run.step))
        generator = torch.Generator().manual_seed(seed + run.step)
        evaluated = logged = run.seconds
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(fraction, peak)
            draw = pictures.draw(settings.batch, rng)
            captions = pictures.captions(draw.index, rng) + draw.crop_captions(rng)
            mirrored = rng.integers(2, size=len(draw.index))
            u = torch.from_numpy(latents.get(draw.index, mirrored)).to(device)
            if len(draw.crops):
                crops = _encode(vae, draw.crops)
                u = torch.cat([u, crops]) if len(u) else crops
            ids, mask = tokens(captions)
            eps = torch.randn(u.shape, generator=generator).to(device)
            t = torch.sigmoid(torch.randn(len(u), generator=generator)).to(device)
            at = t[:, None, None, None]
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.bfloat16):
                velocity = pair((1 - at) * u + at * eps, t, ids, mask)
            loss = (velocity.float() - (eps - u)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(pair)
            seen.images += len(u)
            total, count = total + float(loss.detach()), count + 1
            if run.seconds - logged >= settings.evaluate_every / 10:
                errors = {}
                if run.seconds - evaluated >= settings.evaluate_every:
                    errors = evaluate(average.module.eval(), tokens)
                    evaluated = run.seconds
                run.log(loss=total / count, images=seen.images, fraction=fraction, **errors)
                logged, total, count = run.seconds, 0.0, 0
    model = cast("_Pair", average.module.eval())
    errors = evaluate(model, tokens)
    run.log(images=seen.images, fraction=run.fraction(), **errors)
    figures: dict[str, float | int | bool] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "velocity_mse": errors.pop("val_loss"),
        **{f"velocity_mse_{name.replace('_loss', '').replace('loss_', '')}": error for name, error in errors.items()},
        "images_seen": seen.images,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
    return Trained(model.denoiser, model.text_encoder, tokenizer, FlowMatchEulerDiscreteScheduler(shift=SHIFT), figures)
