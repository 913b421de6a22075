"""Training an inversion network on images and the features that F1 gives for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from adversary.blackbox.inversion import WIDTH, InversionNetwork
from adversary.priors.prior import Prior
from splitsight.artifacts import load_weights
from splitsight.data import to_tensor
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import shapes_of
from splitsight.pipeline import EdgePipeline, resized
from splitsight.training import (
    Budget,
    Run,
    ema,
    feature_distance,
    flattened,
    gradient_distance,
    one_cycle,
    random_crops,
)
from splitsight.training_data import TrainingSet

__all__ = ["inversion_quality", "measure_errors", "train_inversion"]


_MEASURED = 1 / 10
"""Part of a budget of time that each measurement after the training may take, so that a large F1 does not exceed it."""
_USUAL, _LEAST = 64, 4
_AT_ONCE = 64
"""Pixels a side for which batches are meant, and images of a batch at least."""
_LEAST_MEASURED = 500
"""Images whose errors are measured: 2,000 of 64 pixels, fewer of larger ones, which have as many pixels in all."""


def _batches(images: np.ndarray, budget: Budget | None, size: int = 50) -> Iterator[Tensor]:
    """Images in [0, 1], batch by batch, as many as there is time for: one batch at least."""
    begin = 0.0 if budget is None else budget.now()
    for i in range(0, len(images), size):
        if i and budget is not None and budget.seconds and budget.now() - begin > _MEASURED * budget.seconds:
            return
        yield to_tensor(images[i : i + size])


@torch.no_grad()
def inversion_quality(
    network: nn.Module, pipeline: EdgePipeline, prior: Prior, images: np.ndarray, budget: Budget | None = None
) -> dict[str, float]:
    """Mean ``psnr`` (dB) and ``ssim`` of decoded answers over ``(N, H, W, 3)`` uint8 images, in the prior's size, and
    ``feature_error``, how far their features are from the images'.

    With a budget of time, over as many of the first images as take a tenth of it.
    """
    psnr, ssim, features = [], [], []
    device, draws = next(network.parameters()).device, Draws.stream(0)
    for part in _batches(images, budget):
        whole = part.to(device)
        x, y = resized(whole, prior.image_size), prior.decode(network(pipeline(whole, draws))).clamp(0, 1)
        psnr.append(-10 * (x - y).square().mean((1, 2, 3)).clamp_min(1e-10).log10())
        ssim.append(structural_similarity_index_measure(y, x, data_range=1.0, reduction="none"))
        features.append(feature_distance(pipeline.expected(y), pipeline.expected(whole)))
    return {
        "psnr": float(torch.cat(psnr).mean()),
        "ssim": float(torch.cat(ssim).mean()),
        "feature_error": float(torch.stack(features).mean()),
    }


@torch.no_grad()
def measure_errors(
    network: InversionNetwork, pipeline: EdgePipeline, prior: Prior, images: np.ndarray, budget: Budget | None = None
) -> int:
    """Measure what the network does not know (:mod:`adversary.gaussian`) and keep it with the network.

    Args:
        network: trained.
        pipeline: the edge.
        prior: gives encoder and decoder.
        images: ``(N, H, W, 3)`` uint8, none of them to be attacked later; some thousand.
        budget: with one of time, as many of the first images are measured as take a tenth of it.

    Returns:
        How many images were measured.
    """
    device, draws = next(network.parameters()).device, Draws.stream(0)
    latent: list[Tensor] = []
    features: list[list[Tensor]] = []
    pixels: list[Tensor] = []
    for part in _batches(images, budget):
        whole = part.to(device)
        x = resized(whole, prior.image_size)
        u, answer = prior.encode(x), network(pipeline(whole, draws))
        latent.append((u - answer).cpu())
        pixels.append((x - prior.decode(answer).clamp(0, 1)).cpu())
        # without the defence's noise, which an attack accounts for by itself
        found, z = pipeline.expected(prior.decode(u)), pipeline.expected(whole)
        features.append([(a - b).cpu() for a, b in zip(found, z, strict=True)])
    network.expect_errors().measure(torch.cat(latent), [torch.cat(parts) for parts in zip(*features, strict=True)])
    network.expect_pixels(prior.image_size).measure(torch.cat(pixels), [])
    return sum(map(len, pixels))


def _loss(pipeline: EdgePipeline, y: Tensor, x: Tensor, wanted: Sequence[Tensor] | None, weight: float) -> Tensor:
    """Of decoded answers ``(B, 3, H, W)``, given the images and, where they count, the images' features."""
    loss = (y - x).abs().mean() + 4 * (y - x).square().mean() + 0.25 * gradient_distance(y, x)
    return loss if wanted is None else loss + weight * feature_distance(pipeline.expected(y), wanted)


@torch.no_grad()
def _worse(
    one: nn.Module, other: nn.Module, pipeline: EdgePipeline, prior: Prior, images: np.ndarray, weight: float
) -> bool:
    """Whether one network's answers have a larger loss than the other's, or are none."""
    x = to_tensor(images).to(next(one.parameters()).device)
    z, wanted = pipeline(x, Draws.stream(0)), pipeline.expected(x) if weight else None
    x = resized(x, prior.image_size)
    a, b = (float(_loss(pipeline, prior.decode(network(z)), x, wanted, weight)) for network in (one, other))
    return not a <= b


@torch.no_grad()
def _gains(pipeline: EdgePipeline, images: Tensor) -> list[float]:
    """Factors that bring what a defence sends to the size of undefended features, or of 1 where the shapes differ."""
    # drawn alike each time, so that a run that is gone on with has the same
    sent = pipeline(images, Draws(range(len(images))))
    clean = pipeline.cut.head(resized(images, pipeline.input_size))
    wanted, found = ([float(z.square().mean().sqrt()) for z in side] for side in (clean, sent))
    if shapes_of(pipeline.specs) != shapes_of(pipeline.cut.specs):
        wanted = [1.0] * len(found)
    return [a / max(b, 1e-12) for a, b in zip(wanted, found, strict=True)]


def train_inversion(
    pipeline: EdgePipeline,
    prior: Prior,
    data: TrainingSet,
    out: Path,
    budget: Budget,
    *,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    device: torch.device | None = None,
    start: Path | None = None,
    width: int = WIDTH,
    also: np.ndarray | None = None,
    features_weight: float = 0.0,
) -> tuple[InversionNetwork, dict[str, float | int | bool]]:
    """Train, resuming from ``out``; a part of ``data`` is held out.

    The loss is taken on the decoded image (absolute and squared error, and its gradients) with a small
    share on the latent itself, which keeps the answer on the autoencoder's range (for a quarter of each batch,
    because encoding costs as much as the network). With ``features_weight`` answers are drawn to the features that they
    were made from, too, which a mean of all likely images is far from. Half of the images are made to look like video
    (:func:`splitsight.training.flattened`). At the end the network's errors are measured.

    Args:
        pipeline: the edge, with its defence.
        prior: gives decoder and latent; its images may be of another size than those that F1 takes.
        data: images.
        out: folder of the run.
        budget: when to stop.
        batch: images a step, of 64 pixels; fewer of larger ones.
        lr: peak learning rate.
        seed: of weights and crops.
        device: where to train; CPU by default.
        start: weights of an earlier network to go on from, which is kept where the training ends behind it.
        width: channels at the latent's resolution.
        also: further pictures ``(N, H, W, 3)`` uint8 of any size, enlarged to make up half of each batch.
        features_weight: of :func:`splitsight.training.feature_distance` beside the other terms; 0 leaves it out.

    Raises:
        UserError: ``start`` does not fit.
    """
    device = device or torch.device("cpu")
    # features are those of images as sharp as the edge has them
    size = max(pipeline.input_size, prior.image_size)
    batch = min(batch, max(_LEAST, round(batch * (_USUAL / size) ** 2)))
    images, held = data.images(size)
    torch.manual_seed(seed)
    gains = _gains(pipeline, to_tensor(images[:_AT_ONCE])) if pipeline.defense else ()
    network = InversionNetwork(pipeline.specs, prior.latent_shape, width, gains=gains)
    first = None
    if start is not None:
        state = {k: v for k, v in load_weights(start).items() if not k.startswith(("errors.", "pixels."))}
        first = InversionNetwork(pipeline.specs, prior.latent_shape, width).eval()
        try:
            network.load_state_dict(state)
            first.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{start} has another shape than this network: give another --start, or none") from error
    network = network.to(device).to(memory_format=torch.channels_last)
    pipeline.to(device)
    prior.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = ema(network, 0.998)
    generator = torch.Generator().manual_seed(seed)
    total, count = 0.0, 0
    with Run(
        out, budget, {"network": network, "average": average, "optimizer": optimizer}, title="train inversion"
    ) as run:
        generator.manual_seed(seed + run.step)
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(fraction, lr)
            index = torch.randint(len(images), (batch,), generator=generator).sort().values.numpy()
            own = index[: len(index) - len(index) // 2] if also is not None else index
            parts = [images[own]]
            if also is not None:
                parts.append(also[torch.randint(len(also), (batch - len(own),), generator=generator).numpy()])
            crops = [
                random_crops(to_tensor(flattened(part, 0.5, generator)).to(device), size, (0.6, 1.0), generator)
                for part in parts
            ]
            x = torch.cat(crops)
            with torch.no_grad():
                draws = Draws.stream(int(torch.randint(2**31, (), generator=generator))) if pipeline.defense else None
                z = pipeline(x, draws)
                wanted = pipeline.expected(x) if features_weight else None
                x = resized(x, prior.image_size)
                truth = prior.encode(x[: batch // 4])
            network.train()
            u = network(z)
            y = prior.decode(u)
            loss = _loss(pipeline, y, x, wanted, features_weight)
            loss = loss + 0.02 * (u[: len(truth)] - truth).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            total, count = total + float(loss.detach()), count + 1
            if run.step % 250 == 249:
                extra = {}
                if run.step % 1000 == 999:
                    extra = {
                        f"val_{k}": v
                        for k, v in inversion_quality(
                            average.module.eval(), pipeline, prior, held[:300], budget
                        ).items()
                    }
                run.log(loss=total / count, fraction=fraction, **extra)
                total, count = 0.0, 0
    network = cast(InversionNetwork, average.module.eval())
    kept = first is not None and _worse(network, first.to(device), pipeline, prior, held[:_AT_ONCE], features_weight)
    if kept and first is not None:
        network = first
    figures = inversion_quality(network, pipeline, prior, held[:2000], budget)
    # as trained, so that they hold for photographs and for video
    most = max(_LEAST_MEASURED, round(2000 * min(1, _USUAL / size) ** 2))
    seen = flattened(images[-most:], 0.5, generator.manual_seed(seed))
    measured = measure_errors(network, pipeline, prior, seen, budget)
    run.log(**{f"val_{k}": v for k, v in figures.items()})
    return network, {
        **figures,
        "errors_measured_on": measured,
        "images_seen": run.step * batch,
        "minutes": round(run.seconds / 60, 1),
        "finished": run.fraction() >= 1.0,
        **({} if first is None else {"start_kept": kept}),
    }
