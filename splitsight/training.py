"""What every training run shares: a budget, resumable checkpoints, a log, progress with an estimate.

Learning-rate schedules here are functions of the *fraction of the budget that is spent*, so a run that is
given an hour anneals within that hour whatever the machine; resumed with a larger budget it goes on from
the same weights at the rate that the new fraction asks for.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from splitsight.errors import UserError
from splitsight.numerics import subnormals_flushed

__all__ = [
    "Best",
    "Budget",
    "Run",
    "Stateful",
    "ema",
    "feature_distance",
    "flattened",
    "gradient_distance",
    "learning_curve",
    "one_cycle",
    "progress_of",
    "random_crops",
    "warmup_stable_decay",
]


class Stateful(Protocol):
    """Anything with a state dict: modules, optimisers, averaged models."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """From a checkpoint."""
        ...


class Budget:
    """When a run is finished: after so many seconds of training, or after so many steps.

    Args:
        seconds: of training, summed over resumed runs; ``None`` for no limit.
        steps: optimiser steps; ``None`` for no limit. At least one of the two must be given.
        computing: count only seconds in which the training's thread computes, so that runs whose results are compared
            get the same however busy the machine is. For CPUs: who waits for a GPU does not compute.
    """

    def __init__(self, seconds: float | None = None, steps: int | None = None, *, computing: bool = False) -> None:
        if seconds is None and steps is None:
            raise UserError("a training run needs a budget: give --minutes or --steps")
        if (seconds is not None and seconds <= 0) or (steps is not None and steps <= 0):
            raise UserError("a training budget must be positive")
        self.seconds, self.steps = seconds, steps
        self.now: Callable[[], float] = time.thread_time if computing else time.monotonic

    def fraction(self, seconds: float, steps: int) -> float:
        """Spent part of the budget, in [0, 1]."""
        parts = []
        if self.seconds is not None:
            parts.append(seconds / self.seconds)
        if self.steps is not None:
            parts.append(steps / self.steps)
        return min(1.0, max(parts))


class Best:
    """Weights that did best on data put aside: early stopping for a run that goes on to the end of its budget.

    A part of a run's checkpoint, so that a resumed run remembers them.

    Attributes:
        value: how far they were off; infinite before the first.
        weights: state dict; ``None`` before the first.
    """

    def __init__(self) -> None:
        self.value = math.inf
        self.weights: dict[str, Tensor] | None = None

    def offer(self, value: float, module: nn.Module) -> None:
        """Keep a copy of a module's weights if their value, less being better, is the least so far."""
        if value < self.value:
            self.value = value
            self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            KeyError: it holds something else.
        """
        self.value, self.weights = state["value"], state["weights"]


def _bar(console: Console) -> Progress:
    """A bar with an estimate on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not sys.stderr.isatty())


@contextmanager
def progress_of(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of what follows a training, on standard error: a line when it begins, and on a terminal a bar.

    Args:
        title: what is going on.
        total: pieces of work.

    Yields:
        Takes how many more pieces are done.
    """
    console = Console(stderr=True)
    console.print(f"{title}: {total:,} to go", highlight=False)
    with _bar(console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda more: bar.advance(task, more)


class Run(AbstractContextManager["Run"]):
    """One training run in a folder: ``checkpoint.pt`` (resumable), ``log.jsonl``.

    Use as a context manager; iterate :meth:`steps` for the loop. SIGINT and SIGTERM finish the step, save,
    and end the loop with :attr:`interrupted` set, so nothing that was learnt is lost.

    Args:
        folder: where the run lives; created. An existing checkpoint there is resumed.
        budget: when to stop.
        parts: named stateful objects that make up the checkpoint.
        title: word for the progress line.
        save_every: seconds between checkpoints.
    """

    def __init__(
        self, folder: Path, budget: Budget, parts: dict[str, Stateful], *, title: str, save_every: float = 120.0
    ) -> None:
        self.folder, self.budget, self.parts, self.title = folder, budget, parts, title
        self.step = 0
        self.seconds = 0.0
        self.interrupted = False
        self._save_every = save_every
        self._console = Console(stderr=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._resume()

    def _resume(self) -> None:
        try:
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(saved["parts"][name])
            self.step, self.seconds = saved["step"], saved["seconds"]
        except (RuntimeError, LookupError, ValueError, TypeError, EOFError, OSError, UnpicklingError) as error:
            raise UserError(
                f"{self.checkpoint} does not fit this run ({type(error).__name__}): "
                "give another --out, or remove the file to start anew"
            ) from error
        self._console.print(f"{self.title}: resumed at step {self.step} after {self.seconds / 60:.1f} min")

    def save(self) -> None:
        """Write the checkpoint; the old one stays valid until the new one is complete."""
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "step": self.step,
                "seconds": self.seconds,
            },
            partial,
        )
        os.replace(partial, self.checkpoint)

    def log(self, **values: float | int | str) -> None:
        """Append a line to ``log.jsonl`` and show it."""
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        self._console.print(f"{self.title}: {shown}", highlight=False)

    def __enter__(self) -> Run:
        self._mode = subnormals_flushed()
        self._mode.__enter__()
        self._handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _stop(self, *_: object) -> None:
        self.interrupted = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._mode.__exit__(None, None, None)
        if kind is None:
            self.save()

    def fraction(self) -> float:
        """Spent part of the budget, in [0, 1]."""
        return self.budget.fraction(self.seconds, self.step)

    def steps(self) -> Iterator[float]:
        """Yield the spent fraction before each step until the budget is used up or a signal came."""
        last_save = time.monotonic()
        with _bar(self._console) as bar:
            # rich counts in floats, but annotates this one as int
            task = bar.add_task(self.title, total=1.0, completed=self.fraction())  # pyright: ignore[reportArgumentType]
            while (fraction := self.fraction()) < 1.0 and not self.interrupted:
                start = self.budget.now()
                yield fraction
                self.step += 1
                self.seconds += self.budget.now() - start
                bar.update(task, completed=self.fraction())
                if time.monotonic() - last_save > self._save_every:
                    self.save()
                    last_save = time.monotonic()


def learning_curve(folder: Path, columns: Sequence[str], rows: int = 12) -> str:
    """A Markdown table of a run's log: the rows that have all columns, thinned evenly, the last one among them.

    Args:
        folder: of the run.
        columns: what is shown beside ``minutes``.
        rows: at most.
    """
    log = folder / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    entries = [entry for entry in entries if all(column in entry for column in columns)]
    entries = [
        entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, min(rows, len(entries))).round().astype(int))
    ]
    lines = [[f"{entry['minutes']:.0f}", *(f"{entry[column]:.4g}" for column in columns)] for entry in entries]
    table = [["minutes", *columns], ["---"] * (len(columns) + 1), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def one_cycle(fraction: float, peak: float, warmup: float = 0.05, floor: float = 0.002) -> float:
    """Learning rate at a spent fraction: linear warm-up to ``peak``, then a cosine down to ``floor · peak``."""
    if fraction < warmup:
        return peak * max(fraction / warmup, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))
    return peak * (floor + (1 - floor) * cosine)


def warmup_stable_decay(
    fraction: float, peak: float, warmup: float = 0.003, decay: float = 0.15, floor: float = 0.002
) -> float:
    """Learning rate at a spent fraction: linear warm-up, constant ``peak``, at the end a line down to ``floor · peak``.

    Hu et al., arXiv 2404.06395. Until the last part begins the rate does not depend on the budget's end, so a run may
    be given a longer budget on the way, or a shorter one to anneal at once.
    """
    if fraction < warmup:
        return peak * max(fraction / warmup, 0.01)
    return peak * (1 - (1 - floor) * max(0.0, (fraction - (1 - decay)) / decay))


def ema(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of parameters and buffers (evaluated instead of the raw weights).

    The decay grows as ``min(decay, (1 + n) / (10 + n))`` with the number of updates n, so that a short run
    does not end with a share of its first weights.
    """

    def update(
        averaged: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], n: Tensor | int
    ) -> None:
        count = float(n)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, n)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def random_crops(images: Tensor, size: int, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random square crops, flipped at random, resampled to ``size`` (one bilinear gather for the batch).

    Args:
        images: ``(B, 3, H, H)`` float.
        size: output side in pixels.
        scale: range of the crop's side as a part of H; above 1 the border is reflected.
        generator: source of the draws.

    Returns:
        ``(B, 3, size, size)``.
    """
    b = len(images)
    draw = torch.rand(4, b, generator=generator).to(images.device)
    side = scale[0] + (scale[1] - scale[0]) * draw[0]
    room = (1 - side).abs()
    theta = torch.zeros(b, 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(draw[1] < 0.5, side, -side)
    theta[:, 1, 1] = side
    theta[:, 0, 2] = (2 * draw[2] - 1) * room
    theta[:, 1, 2] = (2 * draw[3] - 1) * room
    grid = nn.functional.affine_grid(theta, [b, 3, size, size], align_corners=False)
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def flattened(images: np.ndarray, share: float, generator: torch.Generator) -> np.ndarray:
    """Make some photographs look like video: flat surfaces with sharp edges, by bilateral filters of random strength.

    Frames of a camera that are scaled down to the models' size are flatter than photographs that were stored as small
    JPEG files (median difference of neighbours 0.008 instead of 0.039); a network that has only seen the latter adds
    grain to the former.

    Args:
        images: ``(B, H, W, 3)`` uint8.
        share: of the images that are filtered, in [0, 1].
        generator: of the draws.

    Returns:
        A new array.
    """
    out = np.array(images)
    chosen = torch.rand(len(out), generator=generator) < share
    draws = torch.rand(len(out), 2, generator=generator)
    for i in chosen.nonzero().flatten().tolist():
        strength, again = draws[i].tolist()
        for _ in range(1 if again < 0.5 else 2):
            out[i] = cv2.bilateralFilter(out[i], 7, 30 + 60 * strength, 3)
    return out


def gradient_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of two images' gradients (Mathieu et al., ICLR 2016): what a blur is charged for.

    Args:
        a: images ``(B, C, H, W)``.
        b: likewise.

    Returns:
        One number: the mean over vertical neighbours plus that over horizontal ones.
    """
    difference = a - b
    return difference.diff(dim=-2).abs().mean() + difference.diff(dim=-1).abs().mean()


def feature_distance(found: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Relative squared distance of features, as perceptual losses take it (Johnson et al. 2016, arXiv 1603.08155).

    Args:
        found: each ``(B, …)``.
        truth: likewise.

    Returns:
        One number: ``‖found − truth‖² / ‖truth‖²`` of each tensor of each image, their mean.
    """
    parts = [
        (a - b).flatten(1).square().sum(1) / b.flatten(1).square().sum(1).clamp_min(1e-12)
        for a, b in zip(found, truth, strict=True)
    ]
    return torch.stack(parts).mean()
