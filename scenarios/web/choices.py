"""What may be chosen on the page, and what follows from a choice."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.priority import step_back
from splitsight.errors import UserError

if TYPE_CHECKING:
    from scenarios.demo import DemoOptions

__all__ = ["ATTACKS_LIVE", "DEFENSES", "Catalogue", "Strength", "chosen", "has_preview", "strength_of"]

ATTACKS_LIVE = {
    "window:live": "fit to the features from the preview on, then denoised by the diffusion model of pixels",
    "window:map": "the fit alone, without the diffusion models",
    "window:denoised": "with the diffusion model of latents in every answer",
    "best-multi:live": "strongest, slow",
    "dmb-multi:live": "diffusion model as published, slow",
}
"""Attacks that can solve windows while a stream runs, with a word each."""


@dataclass(frozen=True)
class Strength:
    """A defence with one number that says how strong it is.

    Attributes:
        title: in the list.
        form: as ``--defense`` takes it, ``{}`` for the number.
        values: from the weakest to the strongest.
        unit: what the number is.
    """

    title: str
    form: str
    values: tuple[float, ...]
    unit: str

    def at(self, step: int) -> str:
        """The defence at one of its strengths."""
        return self.form.format(f"{self.values[step]:g}")


DEFENSES = {
    "none": Strength("none", "identity", (0,), ""),
    "noise": Strength("Gaussian noise", "gaussian:ratio={}", (0.1, 0.25, 0.5, 1, 2, 4), "of the features' own spread"),
    "private": Strength(
        "differential privacy (clip and noise)",
        "clip:norm=60+gaussian:epsilon={}",
        (1000, 400, 100, 30, 8),
        "ε a frame",
    ),
    "topk": Strength("largest values only", "topk:keep={}", (0.5, 0.25, 0.1, 0.05, 0.02), "of the values kept"),
    "quantise": Strength("few bits", "quantise:bits={}", (8, 4, 3, 2, 1), "bits a value"),
    "dropout": Strength("values left out at random", "dropout:p={}", (0.25, 0.5, 0.75, 0.9), "of the values dropped"),
}
"""Defences that the page offers; any other is typed in."""


def strength_of(defense: str) -> tuple[str, int] | None:
    """Which of :data:`DEFENSES`, and at which strength; ``None`` for any other."""
    from splitsight.defenses import parse_defense

    for key, strength in DEFENSES.items():
        for step in range(len(strength.values)):
            if str(parse_defense(strength.at(step))) == defense or strength.at(step) == defense:
                return key, step
    return None


def has_preview(options: DemoOptions) -> bool:
    """Whether a network makes previews for what is attacked."""
    if options.threat == "black-box":
        return True  # its network is its attack
    from adversary.blackbox.inversion import inversion_kept
    from adversary.priors import prior_options
    from splitsight import targets
    from splitsight.pipeline import EdgePipeline

    about = EdgePipeline(targets.load(options.target, options.weights), options.split, options.defense).description()
    prior = Path(prior_options(options.prior)[0]).name
    return inversion_kept(about.target, about.split, prior, head_digest=about.head_digest, defense=about.defense)


def chosen(options: DemoOptions, changes: Mapping[str, Any]) -> DemoOptions:
    """Options after a change: files that belong to what was there before are left behind.

    Raises:
        UserError: there is no such target, split or defence.
    """
    made = replace(options, **changes)
    if made.target != options.target:
        made = replace(made, weights=None)
    moved = any(getattr(made, name) != getattr(options, name) for name in ("target", "split", "threat"))
    if moved:
        made = replace(made, inversion=None, network=None)
    if made.inversion is None and (moved or made.defense != options.defense):
        made = replace(made, preview=has_preview(made))
    if made.preview != options.preview and "attack" not in changes:
        made = replace(made, attack="")  # what suits previews, or their absence
    return replace(made, command=_command(made))


def _command(o: DemoOptions) -> str:
    """What starts with these options, as far as they can be changed on the page."""
    words = ["splitsight", "demo", "--target", o.target, "--split", o.split, "--threat", o.threat]
    words += ["--defense", o.defense, "--attack", o.solver, *(["--prompt", o.prompt] if o.prompt else [])]
    words += [] if o.preview else ["--no-preview"]
    return shlex.join([*words, *(["--video", o.video] if o.video else [])])


class Catalogue:
    """Targets that can be loaded here, and their split points; read in the background.

    Args:
        first: target that runs; empty where none can be chosen.

    Attributes:
        splits: by target, the names of its split points, shallow first.
    """

    def __init__(self, first: str) -> None:
        self.splits: dict[str, list[str]] = {}
        self._first = first
        if not first:
            return
        threading.Thread(target=self._read, name="catalogue", daemon=True).start()

    def _read(self) -> None:
        step_back()
        from splitsight import targets
        from splitsight.targets import TARGETS

        for name in dict.fromkeys([self._first, *TARGETS.names()]):
            try:
                target = targets.load(name)
            except UserError:
                continue  # its weights are not here
            self.splits = {**self.splits, name: list(target.aliases)}
