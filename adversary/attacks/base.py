"""What every attack shares: the problem it gets, the answer it gives, its named settings, the registry."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adversary.blackbox.inversion import InversionNetwork
from adversary.priors.prior import Prior, Text
from adversary.whitebox.clock import Clock
from adversary.whitebox.solvers import Progress
from adversary.whitebox.terms import Proximal, Pull
from splitsight.errors import UserError, unknown_name
from splitsight.registry import Registry

if TYPE_CHECKING:
    from adversary.blackbox.networks import AttackNetwork

__all__ = ["ATTACKS", "TUNED", "Attack", "Problem", "Reconstruction", "check_features"]

TUNED = Path(__file__).with_name("tuned.json")
"""Settings that ``splitsight bench tune`` chose on validation images: method → setting → split (or "any")."""


class _Counted(nn.Module):
    """F1, which counts the images that pass."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.passed = head, 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the head's own."""
        self.passed += len(images)
        return self.head(images)


@dataclass
class Problem:
    """What an attack knows.

    Attributes:
        prior: the generative prior.
        head: F1, images in [0, 1] → tuple of features; ``None`` for attacks that must do without.
        features: tapped tensors, each ``(K, …)``.
        inversion: makes the inversion network when asked; raises ``UserError`` where there is none.
        text: prompt; ``None`` for the empty one.
        seed: of all draws; frame i of the whole run draws from ``seed + first + i``.
        first: index of the first frame within the run.
        deadline: value of ``clock.now()`` (``time.monotonic()`` unless somebody looks on) to finish by.
        progress: called with (done, planned, mean loss a frame).
        clock: keeps the attack's time, and may look at its images.
        proximal: makes the term that keeps a fit near the inversion network's answer.
        network: gives the network of a black-box attack; raises ``UserError`` where there is none.

    Raises:
        UserError: the features are not finite, or do not fit ``head``; one sentence.
    """

    prior: Prior
    head: nn.Module | None
    features: list[Tensor]
    inversion: Callable[[], InversionNetwork]
    text: Text | None = None
    seed: int = 0
    first: int = 0
    deadline: float | None = None
    progress: Progress | None = None
    clock: Clock = field(default_factory=Clock)
    proximal: Proximal = Pull
    network: Callable[[], AttackNetwork] | None = None

    def __post_init__(self) -> None:
        if self.head is None:
            check_finite(self.features)
        else:
            check_features(self.features, self.head, self.prior.image_size)
            # the same numbers in another order: a fifth less time for features and their gradient on a CPU
            self.head = _Counted(self.head.to(memory_format=torch.channels_last))
        self._before = self.prior.evaluations

    @property
    def frames(self) -> int:
        """K."""
        return len(self.features[0])

    @property
    def device(self) -> torch.device:
        """Where the attack computes: that of the features. Draws do not depend on it."""
        return self.features[0].device

    @property
    def seeds(self) -> list[int]:
        """One a frame."""
        return [self.seed + self.first + i for i in range(self.frames)]

    @property
    def evaluations(self) -> float:
        """Passes of one image through F1 or of one latent through the denoiser so far, a frame."""
        passed = self.head.passed if isinstance(self.head, _Counted) else 0
        return (passed + self.prior.evaluations - self._before) / self.frames


def check_finite(features: Sequence[Tensor]) -> None:
    """Whether there are features, each ``(K, …)``, and all their numbers are finite.

    Raises:
        UserError: there are none, or some are not.
    """
    if not features or len(features[0]) == 0:
        raise UserError("there are no features to attack: give at least one frame")
    for i, z in enumerate(features):
        bad = (~z.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"the features of frame {bad[0]} hold NaN or infinity (tensor {i}, {len(bad)} of {len(z)} frames): "
                "leave these frames out or record them again"
            )


@torch.no_grad()
def check_features(features: Sequence[Tensor], head: nn.Module, size: int) -> None:
    """Whether tapped features can be attacked at all.

    Args:
        features: each ``(K, …)``.
        head: F1.
        size: side of its images, pixels.

    Raises:
        UserError: none, numbers that are not finite, or shapes other than those that F1 makes.
    """
    check_finite(features)
    wanted = [tuple(z.shape[1:]) for z in head(torch.zeros(1, 3, size, size).to(features[0]))]
    given = [tuple(z.shape[1:]) for z in features]
    if wanted != given or len({len(z) for z in features}) > 1:
        raise UserError(
            f"features of shape {_shapes(given)} do not fit this split, which makes {_shapes(wanted)}: "
            "give the target and split they were tapped at"
        )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join("×".join(map(str, shape)) or "one number" for shape in shapes)


@dataclass
class Reconstruction:
    """An attack's answer.

    Attributes:
        images: ``(K, 3, H, W)`` in [0, 1], where the attack computed.
        loss: final loss a frame, mean; NaN where the method has none.
        iterations: optimiser steps.
        model_evaluations: passes of one image through F1 or of one latent through the denoiser, a frame.
        seconds: wall-clock time a frame.
        losses: final loss of each frame ``(K,)``, where the method has one.
        curve: mean loss a frame, one an optimiser step.
        about: what a reader of the result should know, e.g. where the search started.
    """

    images: Tensor
    loss: float
    iterations: int
    model_evaluations: float
    seconds: float
    losses: Tensor | None = None
    curve: list[float] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


class Attack(ABC):
    """One method with named settings.

    Attributes:
        name: on the command line.
        summary: one line for ``splitsight list attacks``.
        settings: named settings; the first one is the default.
        variants: further settings, by name: which one they start from, and what they change.
        choices: the names that a value may be, or be made of, by key.
        limits: the smallest and the largest number that a value may be, by key; 0 and any for all others.
        space: values that ``splitsight bench tune`` may choose from, for keys of the setting ``tuned``.
        tunes: the setting that tuning starts from and replaces.
        windowed: whether frames of a window are reconstructed together.
        text: whether a prompt changes anything.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    settings: ClassVar[Mapping[str, Mapping[str, Any]]]
    variants: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}
    space: ClassVar[Mapping[str, Sequence[Any]]] = {}
    tunes: ClassVar[str] = "tuned"
    windowed: ClassVar[bool] = False
    text: ClassVar[bool] = False

    @classmethod
    def setting(
        cls,
        name: str | None,
        split: str | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        tuned: bool = True,
    ) -> tuple[str, dict[str, Any]]:
        """Look a setting up.

        Args:
            name: ``None`` is the default.
            split: what tuning found best there is laid over the setting; without one, what it found best over all.
            changes: values laid over both.
            tuned: whether to lay anything that tuning found over the setting; not for tuning itself, which must not
                depend on what an earlier one found.

        Returns:
            The setting's name and values.

        Raises:
            UserError: no such setting, or a change to what the setting does not have, or to what it cannot be.
        """
        chosen = name or next(iter(cls.settings))
        base, varied = cls.variants.get(chosen, (chosen, {}))
        if base not in cls.settings:
            raise unknown_name(f"setting of {cls.name}", chosen, [*cls.settings, *cls.variants])
        values = dict(cls.settings[base])
        found = _tuned().get(cls.name, {}).get(base, {}) if tuned else {}
        values |= found.get(split or "any", found.get("any", {}))
        values |= varied
        for key, value in (changes or {}).items():
            if key not in values:
                raise unknown_name(f"value of {cls.name}'s setting {chosen}", key, list(values))
            values[key] = cls._checked(key, value, values[key])
        return chosen, values

    @classmethod
    def _checked(cls, key: str, value: Any, before: Any) -> Any:
        """A changed value, if it is of the kind of the one before."""
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a name", tuple: "a list"}
        kind = type(before)
        if kind is tuple and isinstance(value, list | tuple):
            value = tuple(value)
        elif kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"{cls.name}'s {key} takes {kinds[kind]}, like {json.dumps(before)}, not {value!r}")
        for name in value if kind is tuple else (value,):
            if key in cls.choices and name not in cls.choices[key]:
                raise unknown_name(f"{key} of {cls.name}", str(name), list(cls.choices[key]))
        low, high = cls.limits.get(key, (0, math.inf))
        if kind in (int, float) and not (math.isfinite(value) and low <= value <= high):
            range_ = f"from {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{cls.name}'s {key} takes numbers {range_}, not {value:g}")
        return value

    @abstractmethod
    def solve(self, problem: Problem, **settings: Any) -> Reconstruction:
        """Reconstruct a problem's frames."""


@cache
def _tuned() -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    return json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}


ATTACKS: Registry[type[Attack]] = Registry("attack", "adversary.attacks")
