"""How good an attack is after how much time and how many model evaluations: ``splitsight bench attack``.

All methods attack the same images in one run, on the same threads, in turn for each batch, so that whatever else the
machine does falls on all of them. Each shows its best images so far to a :class:`~adversary.callback.Callback`,
which scores them now and then without counting the time that takes. What a method needed before it had the features
(training a prior or an inversion network) is not counted either.

**Curves.** The quality of one image is a step function of its own seconds (or evaluations): that of its last look.
A method's curve is the mean of these over images, from when the last of them had been looked at once.

**The claim that is measured**: a subject's mean PSNR and SSIM first reach the reference's *final* ones in a twentieth
of the reference's time and of its evaluations. A reference that is cut short by ``iterations`` proves nothing about a
whole one; its figures are reported as they are, the verdict is left open.

``OUT`` holds ``curves.parquet`` (a row a look, written after each method and batch and gone on with from there) and
``summary.json``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversary.attacks import ATTACKS, Attack, Callback, Problem
from adversary.priors.prior import EMBEDDED
from scenarios.ledger import Ledger
from scenarios.stills import Stills
from scenarios.workbench import Workbench
from splitsight.devices import device_name
from splitsight.errors import UserError
from splitsight.metrics import image_metrics
from splitsight.numerics import subnormals_flushed
from splitsight.specification import target_name
from splitsight.summary import Environment, MethodSummary, Reached, SpeedSummary, Summary, environment, write_summary

__all__ = ["CONTENDERS", "REFERENCE", "SUBJECT", "Curve", "bench_attack", "curve", "speed"]

CONTENDERS = ("do:paper", "db:paper", "dmb:paper", "do:tuned", "db:tuned", "dmb:tuned", "best:faithful")
"""Methods and settings that are measured by default."""
REFERENCE = "dmb paper"
"""Whose final quality is to be reached."""
SUBJECT = "best faithful"
"""Who is to reach it."""
GOAL = 1 / 20
"""Part of the reference's time and evaluations within which that is claimed."""

_WARM_S = 0.5

Progress = Callable[[int, int, str], None]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Contender:
    """One method in one setting, with its values and the iterations it would have had."""

    attack: Attack
    whole: int | None

    @property
    def name(self) -> str:
        return f"{self.attack.name} {self.attack.setting}"

    @property
    def cut(self) -> list[int] | None:
        """Iterations, and those that the setting has; ``None`` for a whole run."""
        return None if self.whole is None else [self.attack.settings.iterations, self.whole]


def _contender(given: str, target: str, split: str, iterations: int | None) -> _Contender:
    method, _, setting = given.partition(":")
    attack = ATTACKS.get(method)
    if attack.windowed or "pipeline" not in attack.needs:
        raise UserError(f"{method} does not solve single images with F1 at hand: leave it out of --method")
    entire = attack.configured(setting or None, target=target, split=split)
    whole = getattr(entire.settings, "iterations", None)
    if iterations is None or whole is None or whole <= iterations:
        return _Contender(entire, None)
    cut = attack.configured(setting or None, target=target, split=split, changes={"iterations": iterations})
    return _Contender(cut, whole)


class _Watch:
    """Collects looks: what a callback shows.

    Args:
        lab: scores them.
        index: of the images.
        problem: counts model evaluations.
    """

    def __init__(self, lab: Stills, index: list[int], problem: Problem) -> None:
        self.lab, self.index, self.problem = lab, index, problem
        self.looks: list[tuple[float, float, list[dict[str, float]]]] = []

    def __call__(self, seconds: float, images: Tensor) -> None:
        found = self.lab.score(images, self.index)
        self.looks.append((seconds / self.problem.frames, self.problem.evaluations, found))


def _run(
    lab: Stills, who: _Contender, split: str, index: list[int], seed: int, growth: float
) -> Iterator[dict[str, Any]]:
    """Attack one batch; yields a row a look and image, the answer itself last."""
    problem = lab.problem(who.attack, split, index, seed=seed)
    watch = _Watch(lab, index, problem)
    # made last: whatever came before is not the attack's own time
    callback = Callback(look=watch, growth=growth)
    answer = who.attack.reconstruct(problem, callback=callback)
    seconds = callback.seconds
    watch(seconds, answer.images)
    for number, (at, evaluations, qualities) in enumerate(watch.looks):
        for i, quality in zip(index, qualities, strict=True):
            yield {
                "contender": who.name,
                "index": i,
                "name": lab.names[i],
                "seconds": at,
                "model_evaluations": float(evaluations),
                **quality,
                "final": number == len(watch.looks) - 1,
                "iterations": answer.iterations,
            }


def _warm(lab: Stills, who: _Contender, split: str, index: list[int], seed: int) -> None:
    """A short attack that nobody times: memory, kernels and networks are there afterwards."""
    problem = lab.problem(who.attack, split, index, seed=seed)
    who.attack.reconstruct(problem, callback=Callback(time.monotonic() + _WARM_S))


@dataclass(frozen=True)
class Curve:
    """Mean quality of a method over its images, from left to right.

    Attributes:
        x: seconds or evaluations an image.
        psnr: dB.
        ssim: at most 1.
    """

    x: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def curve(rows: Rows, contender: str, axis: str) -> Curve:
    """The curve of one method.

    Args:
        rows: of ``curves.parquet``.
        contender: its name there.
        axis: ``seconds`` or ``model_evaluations``.
    """
    images: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["contender"] == contender:
            images.setdefault(row["index"], []).append(row)
    at = [np.array([row[axis] for row in own]) for own in images.values()]
    grid = np.unique(np.concatenate(at))
    grid = grid[grid >= max(x[0] for x in at)]
    means = {}
    for measure in ("psnr", "ssim"):
        seen = []
        for x, own in zip(at, images.values(), strict=True):
            y = np.array([row[measure] for row in own])
            seen.append(y[np.searchsorted(x, grid, side="right") - 1])
        means[measure] = np.mean(seen, 0)
    return Curve(grid, **means)


def _first(x: np.ndarray, there: np.ndarray) -> float | None:
    return float(x[there.argmax()]) if there.any() else None


def _reached(rows: Rows, who: str, psnr: float, ssim: float, wanted: Sequence[str]) -> dict[str, float | None]:
    """Seconds and evaluations at which a curve first has the wanted measures."""
    found = {}
    for axis in ("seconds", "model_evaluations"):
        own = curve(rows, who, axis)
        there = np.ones(len(own.x), bool)
        if "psnr" in wanted:
            there &= own.psnr >= psnr
        if "ssim" in wanted:
            there &= own.ssim >= ssim
        found[axis] = _first(own.x, there)
    return found


def _part(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def speed(
    rows: Rows, *, reference: str, subject: str, cut: Mapping[str, list[int]], batch: int, threads: int
) -> SpeedSummary:
    """When the subject first had the reference's final mean quality.

    Args:
        rows: of ``curves.parquet``, with both.
        reference: name.
        subject: name.
        cut: methods that did fewer iterations than their setting has: (done, of).
        batch: images side by side.
        threads: of the computation.
    """
    ends = [row for row in rows if row["contender"] == reference and row["final"]]
    psnr, ssim = (float(np.mean([row[m] for row in ends])) for m in ("psnr", "ssim"))
    whole = {axis: float(np.mean([row[axis] for row in ends])) for axis in ("seconds", "model_evaluations")}

    def reached(wanted: Sequence[str]) -> Reached:
        own = _reached(rows, subject, psnr, ssim, wanted)
        first = _reached(rows, reference, psnr, ssim, wanted)
        parts = {axis: _part(own[axis], whole[axis]) for axis in own}
        return Reached(
            **own,
            part_of_seconds=parts["seconds"],
            part_of_evaluations=parts["model_evaluations"],
            reference_first_seconds=first["seconds"],
            reference_first_evaluations=first["model_evaluations"],
        )

    both = reached(("psnr", "ssim"))
    met = None
    if not {reference, subject} & set(cut):
        parts = (both.part_of_seconds, both.part_of_evaluations)
        met = all(part is not None and part <= GOAL for part in parts)
    return SpeedSummary(
        reference=reference,
        subject=subject,
        psnr=psnr,
        ssim=ssim,
        **whole,
        reached_psnr=reached(("psnr",)),
        reached_ssim=reached(("ssim",)),
        reached=both,
        goal=GOAL,
        met=met,
        cut={name: list(pair) for name, pair in cut.items()},
        batch=batch,
        threads=threads,
        sittings=len({row["sitting"] for row in rows}),
    )


def _summary(lab: Stills, split: str, rows: Rows, digests: dict[str, str], found: SpeedSummary | None) -> Summary:
    methods = {}
    for name in dict.fromkeys(row["contender"] for row in rows):
        ends = [row for row in rows if row["contender"] == name and row["final"]]
        means = {
            key: float(np.mean([row[key] for row in ends])) for key in ("seconds", "iterations", "model_evaluations")
        }
        methods[name] = MethodSummary.model_validate(
            {
                "n": len(ends),
                **{metric.name: metric.interval(row.get(metric.name) for row in ends) for metric in image_metrics()},
                "seconds_per_image": means["seconds"],
                "iterations": means["iterations"],
                "model_evaluations": means["model_evaluations"],
            }
        )
    return Summary(
        target=lab.models.target.name,
        split=split,
        methods=methods,
        speed=found,
        environment=Environment.model_validate(environment(digests, device_name(lab.models.device))),
    )


@subnormals_flushed()
def bench_attack(
    *,
    images: Path,
    out: Path,
    split: str = "L8",
    limit: int = 8,
    tail: bool = False,
    methods: Sequence[str] = CONTENDERS,
    reference: str = REFERENCE,
    subject: str = SUBJECT,
    iterations: int | None = None,
    batch: int = 1,
    growth: float = 0.05,
    seed: int = 0,
    target: str = "resnet18",
    weights: Path | None = None,
    prior: str = EMBEDDED,
    inversions: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[Summary, list[dict[str, Any]]]:
    """Attack what ``out`` does not hold yet, and summarise all of it.

    Args:
        images: as for ``splitsight attack``.
        out: folder; created.
        split: split point.
        limit: images.
        tail: take the last ones instead of the first.
        methods: ``METHOD:SETTING`` each, or ``METHOD`` in its default setting.
        reference: whose final quality is to be reached; names are ``METHOD SETTING``.
        subject: who is to reach it. The comparison is left out where one of the two is not among ``methods``.
        iterations: at most so many optimiser steps, for a trial; the summary says which methods that cut.
        batch: images solved side by side; the time is shared out among them.
        growth: a look is due when this part of the time so far has passed again.
        seed: of all draws.
        target: attacked network.
        weights: its weights.
        prior: name or folder of the generative prior.
        inversions: file or folder of inversion networks; the package's and the cache's by default.
        threads: compute threads.
        device: where the attacks compute: ``auto``, ``cpu``, ``cuda``.
        progress: called with (done, planned, what is going on).

    Returns:
        What ``summary.json`` holds, and the rows of ``curves.parquet``.

    Raises:
        UserError: unknown names, images or networks that are not there, or ``out`` holds another measurement.
    """
    if limit < 1 or batch < 1 or not methods or (iterations is not None and iterations < 1):
        raise UserError("a measurement needs at least one method, one image and one iteration")
    if threads:
        torch.set_num_threads(threads)
    entries = [_contender(given, target_name(target), split, iterations) for given in dict.fromkeys(methods)]
    models = Workbench(target, weights=weights, prior=prior, inversion=inversions, device=device)
    lab, session = Stills(models, images, limit, tail=tail), models.pipeline(split).description()
    digests = models.digests([session])
    where = environment(digests, device_name(models.device))
    about: dict[str, Any] = {
        "images": lab.names,
        "split": split,
        "contenders": {who.name: who.attack.settings.dump() for who in entries},
        "batch": batch,
        "growth": growth,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "environment": where,
    }
    groups = [list(range(i, min(i + batch, len(lab)))) for i in range(0, len(lab), batch)]
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / "curves.parquet", about)
    done = {(row["contender"], row["index"]) for row in ledger.rows}
    sitting = 1 + max((row["sitting"] for row in ledger.rows), default=0)
    plan = [(who, group) for group in groups for who in entries]
    warm: set[str] = set()
    for number, (who, group) in enumerate(plan):
        if (who.name, group[0]) in done:
            continue
        if progress is not None:
            progress(number, len(plan), f"{who.name}, image {group[0] + 1} of {len(lab)}")
        if who.name not in warm:
            warm.add(who.name)
            _warm(lab, who, split, group, seed)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = _run(lab, who, split, group, seed, growth)
        ledger.add([{**row, "sitting": sitting, "started": started} for row in rows])
    if progress is not None:
        progress(len(plan), len(plan), "done")
    found = None
    if {reference, subject} <= set(about["contenders"]):
        cut = {who.name: who.cut for who in entries if who.cut is not None}
        found = speed(
            ledger.rows,
            reference=reference,
            subject=subject,
            cut=cut,
            batch=batch,
            threads=torch.get_num_threads(),
        )
    summary = _summary(lab, split, ledger.rows, digests, found)
    write_summary(out / "summary.json", summary)
    return summary, ledger.rows
