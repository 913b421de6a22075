"""``splitsight train prior|inversion``: from shards to embeddable folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC

from adversary.blackbox._train import train_inversion
from adversary.blackbox.inversion import WIDTH, inversion_file, inversion_name, inversion_width
from adversary.fits import Fits, live_fits
from adversary.priors._pictures import Pictures
from adversary.priors._settings import Settings
from adversary.priors._train_autoencoder import train_autoencoder
from adversary.priors._train_denoiser import train_denoiser
from adversary.priors._train_pixels import train_pixels
from adversary.priors.evaluate import frechet_distance
from adversary.priors.pixels import SIGMAS, PixelDenoiser
from adversary.priors.prior import EMBEDDED, Prior, load_prior
from splitsight import targets
from splitsight.cards import write_card
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.files import write_json
from splitsight.names import printable
from splitsight.pipeline import EdgePipeline
from splitsight.training import Budget, learning_curve, progress_of
from splitsight.training_data import TrainingSet
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["MINUTES", "train_inversion_command", "train_prior_command"]

MINUTES = 30.0
"""Budget of an inversion network's training, where none is given."""
_SAMPLES = 2000
_SIZE = 64
"""Pixels of the prior's images."""


def _flags(minutes: float | None, steps: int | None) -> str:
    return (f" --minutes {minutes:g}" if minutes else "") + (f" --steps {steps}" if steps else "")


_SHARES = {"autoencoder": 0.3, "denoiser": 0.5, "pixels": 0.2}


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
    settings: Settings | None = None,
    fits: int | None = None,
) -> Path:
    """Train the prior, or one part of it, in ``out``; write it in diffusers layout to ``out/model``.

    Args:
        data: Parquet file or folder of them, or folder of PNG/JPEG; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`). With labels and ``classes.tsv``, captions name the class.
        out: folder of the runs (``autoencoder``, ``denoiser``, ``pixels``).
        minutes: time budget a part, of a CPU's own time; ``all`` divides it over the three.
        steps: step budget a part.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and draws.
        threads: CPU threads.
        part: ``autoencoder``, ``denoiser`` (needs an autoencoder), ``pixels``, or ``all``.
        target: network whose features measure the samples' Fréchet distance, and whose live fits are learnt from.
        start: name or folder of an earlier prior, whose denoisers and text encoder are gone on from.
        autoencoder: name or folder of a prior whose autoencoder is kept; its held-out errors are logged beside the new
            ones. ``None`` takes the one trained in ``out``.
        settings: of both denoisers; default: those of :class:`Settings`.
        fits: images a split of ``target`` whose live fits the denoiser of pixels learns from, too
            (:mod:`adversary.fits`), with the decoder and preview networks of ``start``; ``None``: white noise alone.

    Returns:
        The prior's folder; for ``autoencoder`` and ``pixels`` alone, theirs.

    Raises:
        UserError: there is no autoencoder, or it is given twice; data are missing; fits are wanted, and there is no
            ``start``, or one without a denoiser of pixels or preview networks.
    """
    earlier = load_prior(start) if start else None
    if fits and part not in ("pixels", "all"):
        raise UserError("--fits are what the denoiser of pixels learns from: give --part pixels, or leave --fits out")
    if fits and (earlier is None or earlier.pixel_denoiser is None):
        raise UserError("--fits goes on from a prior with a denoiser of pixels: name it with --start, such as small")
    if threads:
        torch.set_num_threads(threads)
    settings = settings or Settings()
    source = TrainingSet.open(data)
    if part != "autoencoder" and len(source.labels(_SIZE)[1]) < 2:  # worth knowing before the autoencoder is trained
        raise UserError(
            f"{printable(data)} leaves fewer than two images to measure samples with: give at least 20 different ones"
        )
    where = pick_device(device)
    chosen = list(_SHARES) if part == "all" else [part]
    kept = load_prior(autoencoder) if autoencoder else None
    if kept is not None and "autoencoder" in chosen:
        raise UserError("an autoencoder is either trained or kept: leave out --autoencoder, or give --part denoiser")

    def budget(of: str) -> Budget:
        share = _SHARES[of] if part == "all" else 1.0
        # of a CPU's own time, so that what shares the machine takes none of it
        return Budget(minutes * 60 * share if minutes else None, steps, computing=where.type == "cpu")

    made = _flags(minutes, steps)
    if "autoencoder" in chosen:
        answer = _autoencoder(source, out, budget("autoencoder"), made, seed, where)
        if part == "autoencoder":
            return answer
    pictures = Pictures(source, settings.photos, _SIZE)
    if "pixels" in chosen:
        learnt = None
        if fits and earlier is not None:
            learnt = live_fits(earlier, targets.load(target), pictures.images, fits, out / "fits", seed=seed)
        options = made + _choices(settings) + (f" --start {printable(start)}" if start else "")
        answer = _pixels(
            pictures,
            out,
            budget("pixels"),
            settings,
            seed,
            where,
            start=None if earlier is None else earlier.pixel_denoiser,
            fits=learnt,
            options=options + (f" --fits {fits}" if fits else ""),
        )
        if part == "pixels":
            return answer
    vae_folder = out / "autoencoder" / "model"
    if kept is None and not vae_folder.is_dir():
        raise UserError(
            f"no autoencoder at {vae_folder}: train it first with `splitsight train prior --part "
            f"autoencoder --out {out}`, or keep a prior's with --autoencoder"
        )
    vae = kept.vae if kept else AutoencoderDC.from_pretrained(vae_folder, low_cpu_mem_usage=False)
    if not isinstance(vae, AutoencoderDC):
        raise UserError(f"prior '{autoencoder}' has no AutoencoderDC: give another --autoencoder")
    folder = out / "model"
    trained = train_denoiser(
        vae,
        pictures,
        out / "denoiser",
        budget("denoiser"),
        settings,
        seed=seed,
        device=where,
        start=earlier,
        reference=kept,
    )
    prior = Prior(
        vae.cpu(), trained.denoiser.cpu(), trained.scheduler, trained.text_encoder.cpu(), trained.tokenizer, EMBEDDED
    )
    prior.save(folder)
    figures = dict(trained.figures)
    notes = "The autoencoder's own card is in vae/README.md."
    if figures["finished"]:
        prompts = pictures.held_captions(_SAMPLES, np.random.default_rng(seed))
        network = ""
        for steps_ in (4, 8):
            with progress_of(f"samples of the prior, {steps_} steps each", _SAMPLES) as done:
                figures[f"frechet_distance_{steps_}_steps"], network = frechet_distance(
                    prior, targets.load(target), pictures.held, prompts=prompts, steps=steps_, count=_SAMPLES, done=done
                )
        notes = (
            f"The Fréchet distance is taken in features of {network} ({_SAMPLES:,} samples, held-out captions); it is "
            f"not an Inception FID. {notes}"
        )
    else:
        notes = f"Interrupted before the budget's end, so its samples were not measured. {notes}"
    columns = ["images", "val_loss", *[f"{name}_loss" for name in ("photos", "large") if settings.photos]]
    curve = learning_curve(
        out / "denoiser", [*columns, "loss_t0.1", "loss_t0.3", "loss_t0.5", "loss_t0.7", "loss_t0.9"]
    )
    denoiser = prior.denoiser
    width = denoiser.config.get("block_out_channels") or denoiser.config["num_layers"]
    write_card(
        folder,
        "small text-conditional prior",
        what=(
            f"Rectified flow in the latents of a small autoencoder: diffusers {type(denoiser).__name__} ("
            f"{'layers' if isinstance(width, int) else 'channels'} {width}), CLIP text model of two layers with a "
            "word-level tokenizer, two-step Adams–Bashforth sampler; 4–10 steps."
        ),
        data=f"{_described(pictures)} Captions from {'class names and ' if pictures.vocabulary else ''}measured words "
        "(splitsight/captions.py), dropped at random.",
        command=f"splitsight train prior --part {part} --data DIR{made}{_choices(settings)}"
        + (" --start PRIOR" if start else "")
        + (" --autoencoder PRIOR" if autoencoder else ""),
        figures=figures,
        notes=f"{notes}\n\nHeld-out velocity errors during training, at uniform times and at fixed times t (t² times "
        f"the latter is the mean squared error of denoised latents):\n\n{curve}",
    )
    card = vae_folder / "README.md"
    if kept is None and card.is_file():
        (folder / "vae" / "README.md").write_text(card.read_text())
    return folder


def _described(pictures: Pictures) -> str:
    text = f"{pictures.data.description}; {len(pictures.images):,} images and their mirror images."
    if pictures.photos is None:
        return text
    count = len(pictures.photos.train)
    return f"{text} Crops of {count:,} larger photographs, a fifth of each batch; every tenth was held out."


def _choices(settings: Settings) -> str:
    return (
        f" --network {settings.network} --schedule {settings.schedule} --average {settings.average:g}"
        + " --photos FILE" * len(settings.photos)
        + " --bfloat16" * settings.bfloat16
    )


def _autoencoder(data: TrainingSet, out: Path, budget: Budget, made: str, seed: int, device: torch.device) -> Path:
    vae, figures = train_autoencoder(data, out / "autoencoder", budget, seed=seed, device=device)
    folder = out / "autoencoder" / "model"
    vae.save_pretrained(folder)
    write_card(
        folder,
        "autoencoder of the small prior",
        what=(
            "diffusers AutoencoderDC, 64 × 64 images ↔ 8 × 16 × 16 latents; all convolutions at "
            "half and quarter resolution."
        ),
        data=f"{data.description} (PSNR in dB); trained on crops.",
        command=f"splitsight train prior --part autoencoder --data DIR{made}",
        figures=figures,
    )
    return folder


def _pixels(
    pictures: Pictures,
    out: Path,
    budget: Budget,
    settings: Settings,
    seed: int,
    device: torch.device,
    *,
    start: PixelDenoiser | None,
    fits: Fits | None,
    options: str,
) -> Path:
    behind = "" if fits is None else fits.middle.target.name
    denoiser, figures = train_pixels(
        pictures, out / "pixels", budget, settings, seed=seed, device=device, start=start, fits=fits
    )
    folder = out / "model" / "pixel_denoiser"
    denoiser.cpu().save(folder)
    low, high = SIGMAS
    write_card(
        folder,
        "denoiser of pixels",
        what=(
            f"diffusers UNet2DModel on 2 × 2 blocks of pixels, convolutional, any size; predicts the noise of images "
            f"in [0, 1] at levels σ of {low:g} to {high:g} (time 1000 σ; input scaled to [−1, 1])."
        ),
        data=_described(pictures)
        + (f" Live fits of {len(fits):,} of the images, every tenth held out, behind {behind}." if fits else ""),
        command=f"splitsight train prior --part pixels --data DIR{options}",
        figures=figures,
        notes="Gains are in dB of the mean squared error on held-out images, against the noisy ones, by σ"
        + ("; fit_gain is that over live fits, the preview's measured error being σ" if fits else "")
        + ".\n\n"
        + learning_curve(out / "pixels", ["images", "gain_0.06", *(["fit_gain"] if fits else [])]),
    )
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
    computing: bool = False,
    also: Path | None = None,
    features_weight: float = 0.0,
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
        width: channels of the network; where not given those of ``start``, or its default.
        computing: count only minutes in which the training's thread computes, for networks that are compared.
        also: further pictures, read at the prior's own size and enlarged, which make up half of each batch; the part
            of them that would be held out is left out.
        features_weight: of the answers' features in the loss (:func:`adversary.blackbox._train.train_inversion`).

    Returns:
        The network's file; its figures are in the run's folder as ``figures.json``, too.

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
    small = None if also is None else TrainingSet.open(also).images(generator.image_size)[0]
    generator = generator.sized(attacked.input_size)
    pipeline = EdgePipeline(attacked, split, defense)
    about = pipeline.description()
    digests = {"head_digest": about.head_digest, "prior_digest": generator.latent_digest}
    file = cached = inversion_file(about.target, split, generator.name, defense=about.defense, **digests)
    if out is not None:
        file = out / f"{inversion_name(about.target, split, generator.name, about.defense)}.safetensors"
    run = cached.parent / "runs" / cached.stem if out is None else out / "run"
    network, figures = train_inversion(
        pipeline,
        generator,
        pictures,
        run,
        Budget(minutes * 60 if minutes else None, steps, computing=computing),
        seed=seed,
        device=pick_device(device),
        start=start,
        width=width or (WIDTH if start is None else inversion_width(start)),
        also=small,
        features_weight=features_weight,
    )
    write_json(run / "figures.json", figures)
    network.cpu().save(file, target=about.target, split=split, prior=generator.name, defense=about.defense, **digests)
    defended = f" against '{about.defense}'" if about.defense != UNDEFENDED else ""
    flags = (f" --prior {prior}" if prior != EMBEDDED else "") + (f" --weights {weights}" if weights else "")
    flags += f" --defense '{about.defense}'" if defended else ""
    write_card(
        run if out is None else out,
        f"inversion network, {about.target} at {split}{defended}, prior '{generator.name}'",
        what="Features → the prior's latent (residual convolutions), decoded by the prior; the live preview.",
        data=f"{pictures.description}, on 2,000 of them at most (PSNR in dB)."
        + (f" Half of each batch is enlarged pictures of {also.name}." if also is not None else ""),
        command=f"splitsight train inversion --target {target} --split {split}{flags} --data DIR"
        + (" --also DIR" if also is not None else "")
        + _flags(minutes, steps)
        + (f" --width {width}" if width else "")
        + (f" --features-weight {features_weight:g}" if features_weight else "")
        + (" --start FILE" if start else ""),
        figures=figures,
    )
    return file
