"""What ``splitsight defend`` computes, as a scenario: an attack, a defence, and whether the attacker was told of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversary.attacks import ATTACKS
from splitsight.errors import UserError
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["ATTACKERS", "FULL", "QUICK", "Attacker", "Sizes", "attackers", "cells"]


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        images: for attacks that are one pass of a network.
        limit: for attacks that optimise.
        gallery: images among which an original is to be found.
        utility: images that utility is measured on.
        others: pictures that attackers learn from, at most.
        initial_minutes: of the inversion network of each defence.
        minutes: of the black-box network of each defence; ``None`` trains none.
        queries: pictures that a black-box attacker asks about.
        static: T of a static scene.
    """

    images: int
    limit: int
    gallery: int
    utility: int
    others: int
    initial_minutes: float
    minutes: float | None
    queries: int
    static: int = 16


FULL = Sizes(256, 32, 1000, 1000, 8192, 4.0, 4.0, 4096)
QUICK = Sizes(64, 4, 200, 200, 2048, 0.1, None, 512)


@dataclass(frozen=True)
class Attacker:
    """An attack in one of its settings.

    Attributes:
        method: its name.
        setting: its named setting; ``None`` for its own default.
        options: values laid over it.
        still: whether it is also tried on a static scene.
        untold: whether it is also tried by somebody who was not told of the defence.
    """

    method: str
    setting: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    still: bool = False
    untold: bool = True

    @property
    def name(self) -> str:
        """How reports call it."""
        return " ".join(filter(None, (self.method, self.setting)))

    @property
    def black_box(self) -> bool:
        """Whether it has only asked an oracle."""
        return "network" in ATTACKS.get(self.method).needs

    @property
    def passes(self) -> bool:
        """Whether it is one pass of a network: milliseconds an image, where others take seconds."""
        return self.method == "preview" or (self.black_box and self.setting in ("one-pass", None))


_BRIEF = (("pixel_samples", 4), ("pixel_evaluations", 40), ("fit_samples", 4), ("fit_evaluations", 20))
_BRIEFER = (("pixel_samples", 2), ("pixel_evaluations", 30), ("fit_samples", 2), ("fit_evaluations", 12))
ATTACKERS = (
    Attacker("preview", still=True),
    Attacker("best", "faithful", _BRIEF, still=True),
    Attacker("best", "sharp", (*_BRIEFER, ("samples", 2)), untold=False),
    Attacker("net-best", "one-pass"),
)
"""The strongest for their time: a network's answer, posterior samples around it, the denoiser's rounds; black-box."""
_QUICK = (ATTACKERS[0], Attacker("best", "faithful", _BRIEFER, still=True), ATTACKERS[3])


def attackers(wanted: Sequence[str], *, quick: bool) -> list[Attacker]:
    """Attackers out of ``NAME[:SETTING]``; the standard ones where none is named.

    Raises:
        UserError: no such attack or setting, or one that solves windows.
    """
    if not wanted:
        return list(_QUICK if quick else ATTACKERS)
    found = []
    for text in wanted:
        method, _, setting = text.partition(":")
        kind = ATTACKS.get(method)
        kind.configured(setting or None)
        if kind.windowed:
            raise UserError(
                f"'{method}' solves windows of frames and defences are tried on still images: choose another"
            )
        found.append(Attacker(method, setting or None, still="pipeline" in kind.needs | kind.uses))
    return found


def cells(
    splits: Sequence[str],
    defenses: Mapping[str, Sequence[str]],
    who: Sequence[Attacker],
    sizes: Sizes,
    *,
    chance: Collection[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Cells of the scenario, what says most first.

    Args:
        splits: points of the target.
        defenses: by split, in canonical form; the undefended reference is added.
        who: the attackers.
        sizes: how much.
        chance: splits and defences that make something else of the same image each time; the others gain nothing
            from a second frame of a static scene.
    """
    found = []
    for split in splits:
        for defense in dict.fromkeys([UNDEFENDED, *defenses[split]]):
            for attacker in who:
                found += _cells(split, defense, attacker, sizes, still=(split, defense) in chance)
    return found


def _cells(split: str, defense: str, attacker: Attacker, sizes: Sizes, *, still: bool) -> list[dict[str, Any]]:
    base = {
        "split": split,
        "defense": defense,
        "method": attacker.method,
        "setting": attacker.setting,
        "with": {key: value for key, value in attacker.options},
        "count": sizes.images if attacker.passes else sizes.limit,
        "batch": 64 if attacker.passes else 4,
        "optional": True,
        # the package's networks had more time than those of an evaluation: compared are those of one budget
        "trained": sizes.minutes is not None,
    }
    if defense == UNDEFENDED:
        return [base]
    kinds: list[dict[str, Any]] = [{"adaptive": told} for told in ((False, True) if attacker.untold else (True,))]
    if still and attacker.still and sizes.static > 1:
        kinds.append({"adaptive": True, "static": sizes.static})
    return [base | kind for kind in kinds]


def scenario(
    *,
    target: str,
    weights: Path | None,
    prior: str,
    evaluators: Sequence[str],
    seed: int,
    data: Mapping[str, Any],
    train: Mapping[str, Any] | None,
    planned: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The scenario as plain data, as :func:`scenarios.run.spec.load_scenario` takes it."""
    found: dict[str, Any] = {
        "title": f"Defences of {target}",
        "target": target,
        "prior": prior,
        "evaluator": list(evaluators) or None,
        "seed": seed,
        "data": dict(data),
        "cells": list(planned),
    }
    if weights is not None:
        found["weights"] = str(weights)
    if train is not None:
        found["train"] = dict(train)
    return found
