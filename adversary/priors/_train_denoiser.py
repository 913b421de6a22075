"""Training the prior's denoiser and text encoder together: rectified flow on the autoencoder's latents.

Rectified flow (Liu et al., arXiv 2209.03003): ``x_t = (1 − t) u + t ε``, the network predicts ``ε − u``.
Nearly straight paths are what lets the sampler do with few steps. Times are logit-normal (Esser et al.,
arXiv 2403.03206). The text encoder is a small CLIP text model that learns with the denoiser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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

from adversary.priors._pictures import Photographs
from adversary.priors.captions import build_tokenizer, caption, measure, read_class_names
from adversary.priors.prior import Prior
from splitsight.artifacts import home
from splitsight.data import cached_images
from splitsight.errors import UserError
from splitsight.training import Budget, Run, ema, one_cycle, warmup_stable_decay

__all__ = ["SCHEDULES", "Trained", "build_denoiser", "build_text_encoder", "build_unet", "train_denoiser"]


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
    channels: int, sample_size: int, text_width: int, widths: tuple[int, ...] = (96, 128, 128), layers: int = 2
) -> UNet2DConditionModel:
    """A convolutional U-Net with attention to itself and to text at half resolution and in the middle.

    Convolutional, so that the same weights denoise latents of any size. With the default widths, on 16 × 16 latents:
    convolutions at 16, 8 and 4, attention over 64 tokens at 8 and 16 at 4.
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
        norm_num_groups=min(32, widths[0] // 2),
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
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@dataclass
class Trained:
    """What the denoiser's training yields, ready to be saved side by side."""

    denoiser: PixArtTransformer2DModel | UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
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
def _encode_all(vae: AutoencoderDC, images: np.ndarray, batch: int = 100) -> np.ndarray:
    """Scaled latents of all images and of their mirror images, ``(2, N, C, h, w)`` float16, kept in the cache."""
    key = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        key.update(name.encode() + value.cpu().numpy().tobytes())
    key.update(f"{len(images)}{int(images[::1000].sum())}".encode())
    folder = home() / "latents"
    folder.mkdir(exist_ok=True)
    file = folder / f"{key.hexdigest()[:24]}.npy"
    if not file.is_file():
        device = next(vae.parameters()).device
        chunks: list[list[np.ndarray]] = [[], []]
        for i in range(0, len(images), batch):
            x = (
                torch.from_numpy(np.ascontiguousarray(images[i : i + batch]))
                .permute(0, 3, 1, 2)
                .float()
                .div(127.5)
                .sub(1)
                .to(device)
            )
            for flip in (0, 1):
                u = vae.encode(x.flip(-1) if flip else x).latent * vae.config.scaling_factor
                chunks[flip].append(u.half().cpu().numpy())
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.stack([np.concatenate(c) for c in chunks]))
        partial.replace(file)
    return np.load(file)


def _measured(images: np.ndarray) -> np.ndarray:
    file = home() / "latents" / f"words-{hashlib.sha256(images[::500].tobytes()).hexdigest()[:16]}-{len(images)}.npy"
    if not file.is_file():
        np.save(file, np.array([measure(image) for image in images], np.int64))
    return np.load(file)


_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


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


@torch.no_grad()
def _encode(vae: AutoencoderDC, images: np.ndarray) -> Tensor:
    """``(B, H, W, 3)`` uint8 → scaled latents."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return vae.encode(x.to(next(vae.parameters()).device)).latent * vae.config.scaling_factor


class _Count:
    """How many images were trained on; part of a checkpoint."""

    def __init__(self) -> None:
        self.images = 0

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = state["images"]


SCHEDULES = {"one-cycle": partial(one_cycle, warmup=0.03), "stable": warmup_stable_decay}
"""Learning rate by spent fraction and peak: for short runs, and for long ones whose end is open."""


def train_denoiser(
    vae: AutoencoderDC,
    shards: list[Path],
    classes: Path,
    out: Path,
    budget: Budget,
    *,
    photos: Sequence[Path] = (),
    network: str = "transformer",
    widths: tuple[int, ...] = (96, 128, 128),
    size: int = 64,
    batch: int = 32,
    lr: float | None = None,
    schedule: str = "one-cycle",
    decay: float = 0.9995,
    bfloat16: bool = False,
    seed: int = 0,
    device: torch.device | None = None,
    start: Prior | None = None,
    reference: Prior | None = None,
    evaluate_every: float = 1200.0,
) -> Trained:
    """Train, resuming from ``out``; the last shard and every tenth photograph are held out.

    With photographs, a fifth of each batch are crops of them at many scales, and every sixteenth step takes crops of
    ``1.75 · size`` pixels alone, so that the network is used to other sizes than one.

    Args:
        vae: the trained autoencoder, with its ``scaling_factor`` set.
        shards: Parquet files in Hugging Face image format with labels.
        classes: table of class names (see :func:`adversary.priors.captions.read_class_names`).
        out: folder of the run.
        budget: when to stop.
        photos: Parquet files of larger photographs (see :class:`adversary.priors._pictures.Photographs`).
        network: ``transformer`` or ``unet``.
        widths: channels of the U-Net, finest first.
        size: pixels.
        batch: latents a step.
        lr: peak learning rate; default: 1.8e-3 for the transformer, 6e-4 for the U-Net.
        schedule: name in :data:`SCHEDULES`.
        decay: of the weights' moving average.
        bfloat16: compute the network's products in bfloat16 (weights stay float32): half as fast again on a CPU with
            AVX-512 BF16, slower on one without.
        seed: of weights and draws.
        device: where to train; CPU by default.
        start: an earlier prior, whose denoiser and text encoder are gone on from.
        reference: a prior of the same autoencoder, whose held-out errors are logged once to compare with.
        evaluate_every: seconds of training between held-out errors.

    Raises:
        UserError: ``start`` has another shape, or the photographs cannot be read.
    """
    device = device or torch.device("cpu")
    images, labels = cached_images(shards[:-1], size)
    held, held_labels = cached_images(shards[-1:], size)
    vae.to(device).eval().requires_grad_(False)
    latents = _encode_all(vae, images)
    held_latents = _encode_all(vae, held[:1000])[0]
    words, held_words = _measured(images), _measured(held[:1000])
    names = read_class_names(classes)
    larger = Photographs(list(photos)) if photos else None
    tokenizer = build_tokenizer(names + (larger.classes if larger else []))
    tokens = _Tokens(tokenizer, device)

    torch.manual_seed(seed)
    if network == "unet":
        denoiser = build_unet(latents.shape[2], latents.shape[3], 128, widths)
        nn.init.zeros_(denoiser.conv_out.weight), nn.init.zeros_(denoiser.conv_out.bias)
    else:
        denoiser = build_denoiser(latents.shape[2], latents.shape[3], 128)
        nn.init.zeros_(denoiser.proj_out.weight)
    pair = _Pair(denoiser, build_text_encoder(tokenizer)).to(device)
    if start is not None:
        try:
            pair.denoiser.load_state_dict(start.denoiser.state_dict())
            pair.text_encoder.load_state_dict(start.text_encoder.state_dict())
        except RuntimeError as error:
            raise UserError(f"prior '{start.name}' has a denoiser of another shape: give another --start") from error
    peak = lr or (6e-4 if network == "unet" else 1.8e-3)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    average = ema(pair, decay)
    rng = np.random.default_rng(seed)
    sets = {
        "val": HeldOut(
            held_latents, [caption(names[y], w, rng) for y, w in zip(held_labels[:1000], held_words, strict=True)]
        )
    }

    def captioned(crops: np.ndarray, kinds: list[list[str] | None], rng: np.random.Generator) -> list[str]:
        return [caption(kind, measure(crop), rng) for crop, kind in zip(crops, kinds, strict=True)]

    large = 7 * size // 4
    if larger:
        for name, side, count in (("photos", size, 200), ("large", large, 100)):
            crops, kinds = larger.crops(larger.held, count, side, rng)
            encoded = np.concatenate([_encode(vae, crops[i : i + 50]).cpu().numpy() for i in range(0, count, 50)])
            sets[name] = HeldOut(encoded, captioned(crops, kinds, rng))

    def evaluate(pair: nn.Module, tokens: _Tokens) -> dict[str, float]:
        errors = {f"{name}_loss": held_out.loss(pair, tokens) for name, held_out in sets.items()}
        return {**errors, **sets["val"].by_level(pair, tokens)}

    seen = _Count()
    parts = {"pair": pair, "average": average, "optimizer": optimizer, "seen": seen}
    total, count = 0.0, 0
    with Run(out, budget, parts, title="train denoiser") as run:
        if reference is not None and run.step == 0:
            other = _Pair(reference.denoiser, reference.text_encoder).to(device).eval()
            sets_of_old = {name: held_out for name, held_out in sets.items() if name != "large"}
            old = _Tokens(reference.tokenizer, device)
            run.log(
                reference=reference.name,
                **{f"{name}_loss": held_out.loss(other, old) for name, held_out in sets_of_old.items()},
                **sets["val"].by_level(other, old),
            )
        rng = np.random.default_rng((seed, run.step))
        generator = torch.Generator().manual_seed(seed + run.step)
        evaluated, logged = run.seconds, run.seconds
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = SCHEDULES[schedule](fraction, peak)
            if larger and rng.random() < 1 / 16:
                crops, kinds = larger.crops(larger.train, max(1, batch * size**2 // large**2), large, rng)
                u, captions = _encode(vae, crops), captioned(crops, kinds, rng)
            else:
                few = batch // 5 if larger else 0
                index = rng.integers(len(images), size=batch - few)
                u = torch.from_numpy(latents[rng.integers(2, size=len(index)), index].astype(np.float32)).to(device)
                captions = [caption(names[labels[i]], int(words[i]), rng) for i in index]
                if larger and few:
                    crops, kinds = larger.crops(larger.train, few, size, rng)
                    u = torch.cat([u, _encode(vae, crops)])
                    captions += captioned(crops, kinds, rng)
            ids, mask = tokens(captions)
            eps = torch.randn(u.shape, generator=generator).to(device)
            t = torch.sigmoid(torch.randn(len(u), generator=generator)).to(device)
            at = t[:, None, None, None]
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                velocity = pair((1 - at) * u + at * eps, t, ids, mask)
            loss = (velocity.float() - (eps - u)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(pair)
            seen.images += len(u)
            total, count = total + float(loss.detach()), count + 1
            if run.seconds - logged >= evaluate_every / 10:
                extra = {}
                if run.seconds - evaluated >= evaluate_every:
                    extra = evaluate(average.module.eval(), tokens)
                    evaluated = run.seconds
                run.log(loss=total / count, images=seen.images, fraction=fraction, **extra)
                logged = run.seconds
                total, count = 0.0, 0
    model = average.module.eval()
    errors = evaluate(model, tokens)
    run.log(**errors)
    figures: dict[str, float | int | bool] = {
        "velocity_mse": errors["val_loss"],
        "images_seen": seen.images,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
    }
    return Trained(model.denoiser, model.text_encoder, tokenizer, FlowMatchEulerDiscreteScheduler(shift=1.0), figures)
