"""How a denoiser is trained, of latents or of pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splitsight.training import one_cycle, warmup_stable_decay

__all__ = ["SCHEDULES", "Count", "Settings"]

SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "one-cycle": partial(one_cycle, warmup=0.03),
    "stable": warmup_stable_decay,
}
"""Learning rate by spent fraction and peak: for short runs, and for long ones whose end is open."""


@dataclass(frozen=True)
class Settings:
    """What may be chosen.

    Attributes:
        photos: Parquet files of larger photographs (see :class:`adversary.priors._pictures.Photographs`).
        network: kind of the denoiser of latents, ``transformer`` or ``unet``; that of pixels is a U-Net.
        widths: channels of the U-Net, finest first; ``None`` for its builder's.
        schedule: name in :data:`SCHEDULES`.
        lr: peak learning rate; ``None`` for the network's own.
        average: decay of the weights' moving average.
        batch: pictures a step.
        bfloat16: compute the network's products in bfloat16 (weights stay float32): half as fast again on a CPU with
            AVX-512 BF16, slower on one without.
        evaluate_every: seconds of training between held-out errors.
    """

    photos: Sequence[Path] = ()
    network: str = "unet"
    widths: tuple[int, ...] | None = None
    schedule: str = "one-cycle"
    lr: float | None = None
    average: float = 0.9995
    batch: int = 32
    bfloat16: bool = False
    evaluate_every: float = 1200.0

    def rate(self, fraction: float, peak: float) -> float:
        """Learning rate at a spent fraction of the budget."""
        return SCHEDULES[self.schedule](fraction, peak)


class Count:
    """How many images were trained on; part of a checkpoint."""

    def __init__(self) -> None:
        self.images = 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.images = state["images"]
