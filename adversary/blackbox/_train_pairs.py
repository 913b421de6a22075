"""Training black-box networks on query pairs alone: what an oracle answered, and the attacker's own prior.

Equation 11, over pairs (x, z) of pictures and features, with D the prior's part that the network aims at:

    min_θ  E ‖D(F_u(z)) − x‖² + λ_s TV(D(F_u(z)))

and equation 12, with e = E(t) of each picture's caption in D, ``+ λ_txt L_txt(F_u(z))``. FIA-Flow trains its two parts
one after the other, with its own losses (its equations 5 to 10); net-best, too, see
:mod:`adversary.blackbox._train_best`.

The setting ``paper`` is as published. ``tuned`` adds what training with few pairs on a CPU is better for: absolute
differences and those of gradients, a learning rate that falls to zero, averaged weights, and for latents and noise a
share of the loss on the value itself, whose truth the prior's encoder (and its sampler, run backwards) gives. ``part``
of each batch is decoded; the value's loss is over all of it. Networks, and net-best's student, know a few hundred pairs
by heart long before five minutes are over, so that each part of a training stops early: some pairs are put aside, and
it ends with the averaged weights that did best on those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adversary.blackbox._batches import Batch, Batches, Captions, held_out
from adversary.blackbox._train_best import Loss, Pictures, choose, follow, following, invert
from adversary.blackbox._truths import true_values
from adversary.blackbox.networks import METHODS, AttackNetwork
from adversary.blackbox.queries import Pairs
from adversary.priors.prior import Prior
from adversary.whitebox.terms import Negentropy, TotalVariation
from splitsight.errors import UserError, unknown_name
from splitsight.metrics import image_quality
from splitsight.metrics.perceptual import lpips_distance, lpips_missing
from splitsight.training import Best, Budget, Run, ema, gradient_distance, one_cycle

__all__ = ["PERCEPTUAL", "SETTINGS", "pair_quality", "setting_of", "train_pairs"]

Settings = Mapping[str, Any]

_TUNED: Settings = {
    "epochs": 96,
    "batch": 32,
    "lr": 2e-3,
    "schedule": "one_cycle",
    "decay": 0.01,
    "average": 0.998,
    "clip": 1.0,
    "summed": False,
    "squared": 4.0,
    "absolute": 1.0,
    "gradient": 0.25,
    "tv": 0.0,
    "value": 0.1,
    "part": 1.0,
    "lambda_txt": 3.0,
    "alpha": 1.0,
    "steps": 4,
    "early_stopping": True,
    "width": 48,
}
_PAPER: Settings = {
    **_TUNED,
    "batch": 128,
    "lr": 0.1,
    "schedule": "constant",
    "decay": 0.0,
    "average": 0.0,
    "clip": 0.0,
    "summed": True,
    "squared": 1.0,
    "absolute": 0.0,
    "gradient": 0.0,
    "tv": 1.0,
    "value": 0.0,
    "steps": 20,
    "early_stopping": False,
}
_FLOW: Settings = {
    "iterations": 24000,
    "batch": 16,
    "lr": 2e-3,
    "flow_lr": 5e-4,
    "schedule": "one_cycle",
    "decay": 0.01,
    "average": 0.998,
    "clip": 1.0,
    "perceptual": "autoencoder",
    "width": 64,
    "rank": 16,
    "everywhere": True,
    "early_stopping": True,
}
_FLOW_PAPER: Settings = {
    **_FLOW,
    "iterations": 128000,
    "batch": 8,
    "lr": 1e-4,
    "flow_lr": 1e-4,
    "schedule": "constant",
    "decay": 0.0,
    "average": 0.0,
    "clip": 0.0,
    "perceptual": "lpips",
    "rank": 4,
    "everywhere": False,
    "early_stopping": False,
}
_BEST: Settings = {
    "iterations": 20000,
    "batch": 16,
    "lr": 2e-3,
    "student_lr": 2e-3,
    "student_share": 0.3,
    "schedule": "one_cycle",
    "decay": 0.02,
    "average": 0.998,
    "clip": 1.0,
    "squared": 4.0,
    "absolute": 1.0,
    "gradient": 0.25,
    "value": 3.0,
    "perceptual": "autoencoder",
    "perceptual_weight": 0.05,
    "pictures": 0.5,
    "fresh": 6.0,
    "crop": 0.6,
    "early_stopping": True,
    "width": 48,
}
SETTINGS: dict[str, dict[str, Settings]] = {
    "net-do": {"tuned": _TUNED, "paper": _PAPER},
    "net-db": {"tuned": {**_TUNED, "lr": 4e-3, "value": 1.0}, "paper": _PAPER},
    # the sampler costs four times the rest: with a quarter of each batch decoded it sees three times the batches
    "net-dmb": {"tuned": {**_TUNED, "lr": 1e-3, "part": 0.25}, "paper": _PAPER},
    "net-flow": {"tuned": _FLOW, "paper": _FLOW_PAPER},
    "net-best": {"tuned": _BEST},
}
"""Named settings of each method; the first one is the default. ``iterations`` are those of all parts together."""

_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda fraction, lr: lr,
    "one_cycle": one_cycle,
}


def setting_of(method: str, name: str | None, changes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """A named setting with changes laid over it.

    Raises:
        UserError: no such method, setting or value, or one that cannot be.
    """
    if method not in SETTINGS:
        raise unknown_name("black-box method", method, list(SETTINGS))
    chosen = name or next(iter(SETTINGS[method]))
    if chosen not in SETTINGS[method]:
        raise unknown_name(f"setting of {method}", chosen, list(SETTINGS[method]))
    values = dict(SETTINGS[method][chosen])
    for key, value in (changes or {}).items():
        if key not in values:
            raise unknown_name(f"value of {method}'s setting {chosen}", key, list(values))
        if type(values[key]) is not type(value) and not (isinstance(values[key], float) and type(value) is int):
            raise UserError(f"{key} of {method} takes values like {values[key]!r}, not {value!r}")
        values[key] = value
    counts = ("epochs", "iterations", "batch", "steps", "width", "rank")
    for key in (*counts, "lr", "flow_lr", "student_lr", "crop", "part"):
        if key in values and not values[key] > 0:
            raise UserError(f"{key} of {method} must be more than 0, not {values[key]}")
    for key, most in (("student_share", 0.9), ("pictures", 0.9), ("crop", 1.0), ("part", 1.0)):
        if key in values and not 0 <= values[key] <= most:
            raise UserError(f"{key} of {method} must be from 0 to {most:g}, not {values[key]}")
    if values.get("fresh", 0.0) < 0:
        raise UserError(f"fresh of {method} must be 0 or more, not {values['fresh']}")
    if values["schedule"] not in _SCHEDULES:
        raise unknown_name("schedule", values["schedule"], list(_SCHEDULES))
    if "perceptual" in values:
        if values["perceptual"] not in PERCEPTUAL:
            raise unknown_name("perceptual loss", values["perceptual"], list(PERCEPTUAL))
        if values["perceptual"] == "lpips" and (missing := lpips_missing()) is not None:
            raise UserError(f"{missing}; or train with --set perceptual=autoencoder")
    return chosen, values


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


@torch.no_grad()
def pair_quality(network: AttackNetwork, pairs: Pairs, batch: int = 32) -> dict[str, float]:
    """Mean ``psnr``, ``psnr_eq14`` and ``ssim`` of a network's answers over pairs that it was not trained on."""
    device = next(network.parameters()).device
    captions = Captions(network.prior, pairs.captions) if network.made.text else None
    batches = Batches(pairs, network.made.frames, batch, device=device, captions=captions)
    found: dict[str, list[Tensor]] = {}
    for part in batches.in_order():
        answers = network.images(network(part.z, part.text), part.text)
        for name, values in image_quality(answers, part.x).items():
            found.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


_LOOKED_AT = 32
"""Pairs put aside, at most, that tell which weights are best."""
_LOOKS = 20
"""Times, at most, that weights are looked at: as seldom as this, it costs the slowest network a few per cent."""
_Stage = tuple[str, float, float]
"""Name, learning rate, share of the budget."""


def _equation_11(s: Settings, truths: Tensor | None) -> Loss:
    variation, negentropy = TotalVariation(), Negentropy(s["lambda_txt"], s["alpha"])

    def loss(network: AttackNetwork, batch: Batch) -> Tensor:
        x, text = batch.x, batch.text
        value = network(batch.z, text)
        truth_loss = value.new_zeros(())
        if truths is not None:
            truth_loss = s["value"] * (value - truths[batch.index.to(truths.device)]).square().mean()
        # what comes behind the network, the sampler above all, costs many times as much
        some = max(1, round(s["part"] * len(x)))
        value, x, text = value[:some], x[:some], None if text is None else text.first(some)
        y = network.images(value, text)
        squares = (y - x).square().flatten(1)
        total = s["squared"] * (squares.sum(1) if s["summed"] else squares.mean(1)).mean()
        if s["absolute"]:
            total = total + s["absolute"] * (y - x).abs().mean()
        if s["gradient"]:
            total = total + s["gradient"] * gradient_distance(y, x)
        if s["tv"]:
            total = total + s["tv"] * variation(value, y).mean()
        if network.made.text:
            total = total + negentropy.weight * negentropy(value, y).mean()
        return total + truth_loss

    return loss


def _align(truths: Tensor) -> Loss:
    """Stage 1 of FIA-Flow: ``‖z_s − z_x‖² + ‖Dec(z_s) − x‖₁``, means over their numbers."""

    def loss(network: AttackNetwork, batch: Batch) -> Tensor:
        aligned = network(batch.z, batch.text)
        truth = truths[batch.index.to(truths.device)]
        return (aligned - truth).square().mean() + (network.images(aligned) - batch.x).abs().mean()

    return loss


def _refine(s: Settings, truths: Tensor, generator: torch.Generator) -> Loss:
    """Stage 2: ``‖v(z_t, t) − (z_x − z_s)‖² + perceptual(x', x) + ‖x' − x‖₁``; one t a batch."""
    perceptual = PERCEPTUAL[s["perceptual"]]

    def loss(network: AttackNetwork, batch: Batch) -> Tensor:
        assert network.flow is not None
        x, text = batch.x, batch.text
        with torch.no_grad():
            aligned = network.core.eval()(batch.z)
        truth = truths[batch.index.to(truths.device)]
        t = float(torch.rand(1, generator=generator))
        moved = network.flow.velocity(t * truth + (1 - t) * aligned, t, text)
        y = network.images(network.flow(aligned, text))
        flow = (moved - (truth - aligned)).square().mean()
        return flow + perceptual(network.prior, y, x) + (y - x).abs().mean()

    return loss


def train_pairs(
    network: AttackNetwork,
    train: Pairs,
    test: Pairs,
    out: Path,
    settings: Settings,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    unasked: np.ndarray | None = None,
    computing: bool = False,
) -> tuple[AttackNetwork, dict[str, float | int | bool]]:
    """Train on pairs, resuming from ``out``.

    Args:
        network: fresh, for these pairs' features; its prior is moved to ``device``.
        train: pairs to learn from.
        test: pairs to measure with, none of their pictures among the others.
        out: folder of the run, or runs.
        settings: values as :func:`setting_of` gives them.
        seconds: time budget over resumed runs; net-flow gives each part half of it, net-best its ``student_share`` to
            the student.
        steps: optimiser steps; likewise. Without either, the setting's epochs or iterations.
        seed: of shuffling and draws.
        device: where to train; CPU by default.
        unasked: for net-best, further pictures of the attacker, ``(N, S, S, 3)`` uint8, none of them in ``test``.
        computing: on a CPU, count only seconds in which the training's thread computes.

    Returns:
        The network, in eval mode on the CPU, and its figures: quality on ``test``, pictures seen, minutes,
        whether the budget was used up.

    Raises:
        UserError: pictures in both sets, no captions for a network with text, or a run in ``out`` that does not fit.
    """
    if set(train.hashes) & set(test.hashes):
        raise UserError("training and test queries share pictures: collect them again with other --pairs")
    made, device = network.made, device or torch.device("cpu")
    if made.text and not any(train.captions):
        raise UserError("a network with text needs captions: give --data with classes.tsv, or leave --text out")
    learnt, held = train, train
    if made.student:
        learnt, held = held_out(train)
    elif settings["early_stopping"]:
        learnt, held = held_out(train, _LOOKED_AT, made.frames)
    shown = held[:_LOOKED_AT]
    network.standard.measure(learnt.features)
    if network.student is not None:
        network.student.measure(learnt.features)
    network.prior.to(device)
    network.to(device, memory_format=torch.channels_last)
    captions = Captions(network.prior, train.captions) if made.text else None
    batches = Batches(learnt, made.frames, settings["batch"], seed=seed, device=device, captions=captions)
    if steps is None and seconds is None:
        steps = settings["iterations"] if "iterations" in settings else settings["epochs"] * batches.per_epoch
    stages = _stages(METHODS[made.method], settings)
    values = None
    noise = METHODS[made.method] == "noise"
    if noise and settings["value"] and not network.prior.flow:
        raise UserError("only a flow-matching prior can tell the noise of a picture: train with --set value=0")
    if METHODS[made.method] != "pixels" and settings.get("value", 1.0):
        text = None if captions is None else captions.text
        values = true_values(network.prior, learnt, device, steps=made.steps if noise else None, text=text)
    seen, minutes, finished = 0, 0.0, True
    more: dict[str, float] = {}
    for name, lr, share in stages:
        generator = torch.Generator().manual_seed(seed)
        trained: nn.Module = network
        measure = partial(_distance, network, shown)
        if name == "":
            loss = _equation_11(settings, values)
        elif name == "student":
            assert network.student is not None
            trained, loss, measure = network.student, follow, partial(following, network, shown)
        elif name == "invert":
            assert values is not None
            own = learnt.images if unasked is None else np.concatenate([learnt.images, unasked])
            pictures = Pictures(
                network,
                own,
                held,
                share=settings["pictures"],
                crop=settings["crop"],
                generator=generator,
                fresh=settings["fresh"],
            )
            more["student_r2"] = round(pictures.r2, 4)
            trained, loss = network.core, invert(settings, values, pictures, PERCEPTUAL[settings["perceptual"]])
        else:
            assert values is not None and network.flow is not None
            network.refines = name == "flow"
            trained = network.core if name == "align" else network.flow.adaptations
            loss = _align(values) if name == "align" else _refine(settings, values, generator)
        budget = Budget(
            None if seconds is None else seconds * share,
            None if steps is None else max(1, round(steps * share)),
            computing=computing and device.type == "cpu",
        )
        run = _run(
            network,
            trained,
            loss,
            batches,
            test,
            out / f"run{name and '-'}{name}",
            budget,
            settings,
            lr,
            generator,
            measure if settings["early_stopping"] else None,
        )
        seen, minutes = seen + run.step * batches.size, minutes + run.seconds / 60
        finished = finished and run.fraction() >= 1.0
        if not finished:
            break
    network.refines = True
    network.made = replace(made, curve=_curve(run.folder / "log.jsonl"))
    network.eval()
    figures: dict[str, float | int | bool] = {**pair_quality(network, test)}
    figures |= {"queries": len(train), "test_queries": len(test), "images_seen": seen}
    network.prior.cpu()
    network.cpu()
    if network.student is not None:
        figures |= {**more, **choose(network, held, more["student_r2"])}
    return network, figures | {"minutes": round(minutes, 2), "finished": finished}


def _distance(network: AttackNetwork, pairs: Pairs) -> float:
    """Of its answers: dB below a PSNR of 0."""
    return -pair_quality(network, pairs)["psnr"]


def _curve(log: Path) -> tuple[float, ...]:
    """Loss at each hundredth of a training, between the points that were logged; empty where none was."""
    found = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        row = json.loads(line)
        if "loss" in row:
            found[float(row["fraction"])] = float(row["loss"])
    at = sorted(found)
    return tuple(np.interp(np.arange(1, 101) / 100, at, [found[x] for x in at]).tolist()) if at else ()


def _stages(aim: str, s: Settings) -> list[_Stage]:
    """The parts that are trained one after the other."""
    if aim == "flow":
        return [("align", s["lr"], 0.5), ("flow", s["flow_lr"], 0.5)]
    if aim == "refined":
        return [("student", s["student_lr"], s["student_share"]), ("invert", s["lr"], 1 - s["student_share"])]
    return [("", s["lr"], 1.0)]


def _run(
    network: AttackNetwork,
    trained: nn.Module,
    loss: Loss,
    batches: Batches,
    test: Pairs,
    folder: Path,
    budget: Budget,
    s: Settings,
    lr: float,
    generator: torch.Generator,
    measure: Callable[[], float] | None,
) -> Run:
    """Train one part of a network to the end of its budget; it has its averaged weights then.

    With a measure of how far off it is on pairs put aside, those averaged weights that were best. They are looked at
    in the end, and before that :data:`_LOOKS` times, though not twice in an epoch.
    """
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=s["decay"])
    average = ema(trained, s["average"]) if s["average"] else None
    parts: dict[str, Any] = {"network": trained, "optimizer": optimizer}
    if average is not None:
        parts["average"] = average
    best = Best()
    if measure is not None:
        parts["best"] = best
    schedule = _SCHEDULES[s["schedule"]]
    title = f"train {network.made.method}{'' if trained is network else ' ' + folder.name.removeprefix('run-')}"
    total, count = 0.0, 0
    with Run(folder, budget, parts, title=title) as run:

        def look() -> dict[str, float]:
            if measure is None or run.interrupted:
                return {}
            own = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
            if average is not None:
                trained.load_state_dict(average.module.state_dict())
            network.eval()
            value = measure()
            best.offer(value, trained)
            trained.load_state_dict(own)
            return {"held_out": value}

        begun, logged, looked = run.step, -1.0, (run.step, run.fraction())
        generator.manual_seed(batches.seed + run.step)
        for fraction in run.steps():
            for group in optimizer.param_groups:
                group["lr"] = schedule(fraction, lr)
            batch = batches.at(run.step)
            trained.train()
            value = loss(network, batch)
            if not torch.isfinite(value):
                raise UserError(
                    f"training {network.made.method} diverged at step {run.step}: give a lower lr with --set lr=…",
                    code=1,
                )
            optimizer.zero_grad()
            value.backward()
            if s["clip"]:
                nn.utils.clip_grad_norm_(parameters, s["clip"])
            optimizer.step()
            if average is not None:
                average.update_parameters(trained)
            total, count = total + float(value.detach()), count + 1
            # the first one, and then as fine as the curve that is kept
            if fraction - logged >= 0.01:
                found = {}
                if run.step - looked[0] >= batches.per_epoch and fraction - looked[1] >= 1 / _LOOKS:
                    found, looked = look(), (run.step, fraction)
                run.log(loss=total / count, fraction=fraction, **found)
                total, count, logged = 0.0, 0, fraction
        if run.step > begun:
            found = look()
            if count:
                found["loss"] = total / count
            run.log(fraction=run.fraction(), **found)
    if best.weights is not None:
        trained.load_state_dict(best.weights)
    elif average is not None and run.step:
        trained.load_state_dict(average.module.state_dict())
    network.eval()
    if run.step > begun and not run.interrupted and trained is not network.student:
        run.log(**{f"test_{k}": v for k, v in pair_quality(network, test).items()})
    return run
