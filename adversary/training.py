"""``splitsight train prior|inversion``: from shards to embeddable folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC

from adversary.blackbox._train import train_inversion
from adversary.blackbox.inversion import WIDTH
from adversary.priors._train_autoencoder import train_autoencoder
from adversary.priors._train_denoiser import train_denoiser
from adversary.priors.captions import caption, measure, read_class_names
from adversary.priors.evaluate import frechet_distance
from adversary.priors.prior import EMBEDDED, Prior, load_prior
from splitsight import targets
from splitsight.cards import write_card
from splitsight.data import cached_images, shards_of
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.training import Budget, progress_of

__all__ = ["train_inversion_command", "train_prior_command"]

_SAMPLES = 2000


def _flags(minutes: float | None, steps: int | None) -> str:
    return (f" --minutes {minutes:g}" if minutes else "") + (f" --steps {steps}" if steps else "")


def train_prior_command(
    *,
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    part: str = "all",
    target: str = "resnet18",
    start: str | None = None,
    autoencoder: str | None = None,
    photos: Sequence[Path] = (),
    network: str = "transformer",
    schedule: str = "one-cycle",
    decay: float = 0.9995,
    bfloat16: bool = False,
) -> Path:
    """Train the prior, or one part of it, in ``out``; write it in diffusers layout to ``out/model``.

    Args:
        data: folder of Parquet shards with ``classes.tsv``; the last shard is held out.
        out: folder of the runs (``autoencoder``, ``denoiser``).
        minutes: time budget a part; ``all`` gives the autoencoder a third of it.
        steps: step budget a part.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and draws.
        threads: CPU threads.
        part: ``autoencoder``, ``denoiser`` (needs the former), or ``all``.
        target: network whose features measure the samples' Fréchet distance.
        start: name or folder of an earlier prior, whose denoiser and text encoder are gone on from.
        autoencoder: name or folder of a prior whose autoencoder is kept; its held-out errors are logged beside the new
            ones'. ``None`` takes the one trained in ``out``.
        photos: Parquet files of larger photographs for the denoiser.
        network: ``transformer`` or ``unet``.
        schedule: of the denoiser's learning rate, see :data:`adversary.priors._train_denoiser.SCHEDULES`.
        decay: of the denoiser's moving average.
        bfloat16: compute the denoiser's products in bfloat16.

    Returns:
        The prior's folder; for ``autoencoder`` alone, the autoencoder's.
    """
    if threads:
        torch.set_num_threads(threads)
    shards, classes = shards_of(data)
    where = pick_device(device)
    vae_folder = out / "autoencoder" / "model"
    folder = out / "model"
    if part in ("autoencoder", "all"):
        share = 1 / 3 if part == "all" else 1.0
        vae, figures = train_autoencoder(
            shards,
            out / "autoencoder",
            Budget(minutes * 60 * share if minutes else None, steps),
            seed=seed,
            device=where,
        )
        vae.save_pretrained(vae_folder)
        write_card(
            vae_folder,
            "autoencoder of the small prior",
            what=(
                "diffusers AutoencoderDC, 64 × 64 images ↔ 8 × 16 × 16 latents; all convolutions at "
                "half and quarter resolution."
            ),
            data=(
                f"{len(shards) - 1} shards of {data.name}, crops; the last shard was held out and gave "
                "the figures (PSNR in dB)."
            ),
            command=f"splitsight train prior --part autoencoder --data DIR{_flags(minutes, steps)}",
            figures=figures,
        )
        if part == "autoencoder":
            return vae_folder
    kept = load_prior(autoencoder) if autoencoder else None
    if kept is None and not vae_folder.is_dir():
        raise UserError(
            f"no autoencoder at {vae_folder}: train it first with `splitsight train prior --part "
            f"autoencoder --out {out}`"
        )
    vae = kept.vae if kept else AutoencoderDC.from_pretrained(vae_folder, low_cpu_mem_usage=False)
    if not isinstance(vae, AutoencoderDC):
        raise UserError(f"prior '{autoencoder}' has no AutoencoderDC: give another --autoencoder")
    share = 2 / 3 if part == "all" else 1.0
    trained = train_denoiser(
        vae,
        shards,
        classes,
        out / "denoiser",
        # of a CPU's time, so that what shares the machine takes none of it
        Budget(minutes * 60 * share if minutes else None, steps, computing=where.type == "cpu"),
        seed=seed,
        device=where,
        start=load_prior(start) if start else None,
        photos=photos,
        network=network,
        schedule=schedule,
        decay=decay,
        bfloat16=bfloat16,
        reference=kept,
    )
    prior = Prior(
        vae.cpu(), trained.denoiser.cpu(), trained.scheduler, trained.text_encoder.cpu(), trained.tokenizer, EMBEDDED
    )
    prior.save(folder)
    if not trained.figures["finished"]:
        print(f"interrupted: {folder} holds the averaged weights so far, without figures of samples", file=sys.stderr)
        return folder
    held, labels = cached_images(shards[-1:], prior.image_size)
    rng = np.random.default_rng(seed)
    names = read_class_names(classes)
    prompts = [caption(names[y], measure(x), rng) for x, y in zip(held[:_SAMPLES], labels[:_SAMPLES], strict=True)]
    figures = dict(trained.figures)
    for steps_ in (4, 8):
        with progress_of(f"samples of the prior, {steps_} steps each", _SAMPLES) as done:
            figures[f"frechet_distance_{steps_}_steps"], network = frechet_distance(
                prior, targets.load(target), held, prompts=prompts, steps=steps_, count=_SAMPLES, done=done
            )
    write_card(
        folder,
        "small text-conditional prior",
        what=(
            "Rectified flow in the latents of a small autoencoder: PixArt transformer (patch 2, 8 × 8 tokens), CLIP "
            "text model of two layers with a word-level tokenizer, flow-matching Euler sampler; 4–10 steps."
        ),
        data=(
            f"{len(shards) - 1} shards of {data.name}; captions from class names and measured "
            "words (adversary/priors/captions.py), "
            "dropped at random. The last shard was held out and gave the figures."
        ),
        command=f"splitsight train prior --data DIR{_flags(minutes, steps)}" + (" --start PRIOR" if start else ""),
        figures=figures,
        notes=(
            f"The Fréchet distance is taken in features of {network} ({_SAMPLES:,} samples, held-out "
            "captions); it is not an Inception FID. The autoencoder's own card is in vae/README.md."
        ),
    )
    card = vae_folder / "README.md"
    if card.is_file():
        (folder / "vae" / "README.md").write_text(card.read_text())
    return folder


def train_inversion_command(
    *,
    data: Path,
    out: Path,
    minutes: float | None,
    steps: int | None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    target: str = "resnet18",
    split: str = "L8",
    prior: str = EMBEDDED,
    start: Path | None = None,
    width: int | None = None,
) -> Path:
    """Train the preview network of one split point in ``out/run``; write it to ``out/TARGET-SPLIT-PRIOR.safetensors``.

    Args:
        data: folder of Parquet shards; the last shard is held out.
        out: folder of the run.
        minutes: time budget, summed over resumed runs.
        steps: step budget.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and crops.
        threads: CPU threads.
        target: attacked network.
        split: its split point.
        prior: name or folder of the prior whose decoder is used.
        start: file of an earlier network for the same features to go on from (made for any weights of the target).
        width: channels of the network; its default where not given.

    Raises:
        UserError: no such data, target, split or prior; ``start`` has another shape.
    """
    if threads:
        torch.set_num_threads(threads)
    shards, _ = shards_of(data)
    attacked, generator = targets.load(target), load_prior(prior)
    shapes = [tuple(s.shape) for s in attacked.feature_specs(split)]
    network, figures = train_inversion(
        attacked.head(split),
        shapes,
        generator,
        shards,
        out / "run",
        Budget(minutes * 60 if minutes else None, steps),
        seed=seed,
        device=pick_device(device),
        start=start,
        width=width or WIDTH,
    )
    file = out / f"{target}-{split}-{generator.name}.safetensors"
    network.cpu().save(
        file,
        target_digest=attacked.digest,
        prior_digest=generator.latent_digest,
        target=target,
        split=split,
        prior=generator.name,
    )
    write_card(
        out,
        f"inversion network, {target} at {split}, prior '{generator.name}'",
        what="Features → the prior's latent (residual convolutions), decoded by the prior; the live preview.",
        data=(
            f"{len(shards) - 1} shards of {data.name}; figures on 2,000 images of the held-out last shard (PSNR in dB)."
        ),
        command=f"splitsight train inversion --target {target} --split {split} --data DIR{_flags(minutes, steps)}"
        + (f" --width {width}" if width else "")
        + (" --start FILE" if start else ""),
        figures=figures,
    )
    return file
