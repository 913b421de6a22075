"""``splitsight train prior|inversion``: from shards to embeddable folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC

from adversary.blackbox._train import train_inversion
from adversary.blackbox.inversion import WIDTH, inversion_file, inversion_name
from adversary.priors._train_autoencoder import train_autoencoder
from adversary.priors._train_denoiser import train_denoiser
from adversary.priors.captions import caption, measure, read_class_names
from adversary.priors.evaluate import frechet_distance
from adversary.priors.prior import EMBEDDED, Prior, load_prior
from splitsight import targets
from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.names import printable
from splitsight.pipeline import EdgePipeline
from splitsight.training import Budget, progress_of
from splitsight.training_data import TrainingSet
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["MINUTES", "train_inversion_command", "train_prior_command"]

MINUTES = 30.0
"""Budget of an inversion network's training, where none is given."""
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
) -> Path:
    """Train the prior, or one part of it, in ``out``; write it in diffusers layout to ``out/model``.

    Args:
        data: Parquet file or folder of them, or folder of PNG/JPEG; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`). With labels and ``classes.tsv``, captions name the class.
        out: folder of the runs (``autoencoder``, ``denoiser``).
        minutes: time budget a part; ``all`` gives the autoencoder a third of it.
        steps: step budget a part.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and draws.
        threads: CPU threads.
        part: ``autoencoder``, ``denoiser`` (needs the former), or ``all``.
        target: network whose features measure the samples' Fréchet distance.
        start: name or folder of an earlier prior, whose denoiser and text encoder are gone on from.

    Returns:
        The prior's folder; for ``autoencoder`` alone, the autoencoder's.
    """
    if threads:
        torch.set_num_threads(threads)
    pictures = TrainingSet.open(data)
    if part != "autoencoder" and len(pictures.labels(64)[1]) < 2:  # worth knowing before the autoencoder is trained
        raise UserError(
            f"{printable(data)} leaves fewer than two images to measure samples with: give at least 20 different ones"
        )
    where = pick_device(device)
    vae_folder = out / "autoencoder" / "model"
    folder = out / "model"
    if part in ("autoencoder", "all"):
        share = 1 / 3 if part == "all" else 1.0
        vae, figures = train_autoencoder(
            pictures,
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
            data=f"{pictures.description} (PSNR in dB); trained on crops.",
            command=f"splitsight train prior --part autoencoder --data DIR{_flags(minutes, steps)}",
            figures=figures,
        )
        if part == "autoencoder":
            return vae_folder
    if not vae_folder.is_dir():
        raise UserError(
            f"no autoencoder at {vae_folder}: train it first with `splitsight train prior --part "
            f"autoencoder --out {out}`"
        )
    vae = AutoencoderDC.from_pretrained(vae_folder, low_cpu_mem_usage=False)
    share = 2 / 3 if part == "all" else 1.0
    trained = train_denoiser(
        vae,
        pictures,
        out / "denoiser",
        Budget(minutes * 60 * share if minutes else None, steps),
        seed=seed,
        device=where,
        start=load_prior(start) if start else None,
    )
    prior = Prior(
        vae.cpu(), trained.denoiser.cpu(), trained.scheduler, trained.text_encoder.cpu(), trained.tokenizer, EMBEDDED
    )
    prior.save(folder)
    held, labels = pictures.images(prior.image_size)[1], pictures.labels(prior.image_size)[1]
    rng = np.random.default_rng(seed)
    names = read_class_names(pictures.classes) if pictures.classes else []
    known = [names[y] if 0 <= y < len(names) else None for y in labels[:_SAMPLES]]
    prompts = [caption(name, measure(x), rng) for x, name in zip(held[:_SAMPLES], known, strict=True)]
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
            f"{pictures.description}; captions from {'class names and ' if names else ''}measured words "
            "(adversary/priors/captions.py), dropped at random."
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
    out: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    target: str = "resnet18",
    split: str | None = None,
    prior: str = EMBEDDED,
    weights: Path | None = None,
    defense: str = UNDEFENDED,
    start: Path | None = None,
    width: int | None = None,
) -> Path:
    """Train the preview network of one split point, and file it with a model card.

    Args:
        data: Parquet file or folder of them, or folder of PNG/JPEG; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`).
        out: folder of the run, and of the file; by default both are in the cache, where attacks find the network.
        minutes: time budget, summed over resumed runs; :data:`MINUTES` where neither is given.
        steps: step budget.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and crops.
        threads: CPU threads.
        target: attacked network.
        split: its split point; the middle one of those that it offers by default.
        prior: name or folder of the prior whose decoder is used.
        weights: of the target; the embedded ones by default.
        defense: what the edge does to the features.
        start: file of an earlier network for the same features to go on from (made for any weights of the target).
        width: channels of the network; its default where not given.

    Returns:
        The network's file.

    Raises:
        UserError: no such data, target, split, defence or prior; ``start`` has another shape.
    """
    if threads:
        torch.set_num_threads(threads)
    if minutes is None and steps is None:
        minutes = MINUTES
    pictures = TrainingSet.open(data)
    attacked, generator = targets.load(target, weights), load_prior(prior)
    if split is None:
        offered = attacked.points()
        split = offered[(len(offered) - 1) // 2]
    pipeline = EdgePipeline(attacked, split, defense)
    about = pipeline.description()
    digests = {"head_digest": about.head_digest, "prior_digest": generator.latent_digest}
    file = cached = inversion_file(target, split, generator.name, defense=about.defense, **digests)
    if out is not None:
        file = out / f"{inversion_name(target, split, generator.name, about.defense)}.safetensors"
    run = cached.parent / "runs" / cached.stem if out is None else out / "run"
    network, figures = train_inversion(
        pipeline,
        generator,
        pictures,
        run,
        Budget(minutes * 60 if minutes else None, steps),
        seed=seed,
        device=pick_device(device),
        start=start,
        width=width or WIDTH,
    )
    network.cpu().save(file, target=target, split=split, prior=generator.name, defense=about.defense, **digests)
    defended = f" against '{about.defense}'" if about.defense != UNDEFENDED else ""
    flags = (f" --prior {prior}" if prior != EMBEDDED else "") + (f" --weights {weights}" if weights else "")
    flags += f" --defense '{about.defense}'" if defended else ""
    write_card(
        run if out is None else out,
        f"inversion network, {target} at {split}{defended}, prior '{generator.name}'",
        what="Features → the prior's latent (residual convolutions), decoded by the prior; the live preview.",
        data=f"{pictures.description}, on 2,000 of them at most (PSNR in dB).",
        command=f"splitsight train inversion --target {target} --split {split}{flags} --data DIR"
        + _flags(minutes, steps)
        + (f" --width {width}" if width else "")
        + (" --start FILE" if start else ""),
        figures=figures,
    )
    return file
