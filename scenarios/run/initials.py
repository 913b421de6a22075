"""Inversion networks that white-box attackers start from, trained on what a defence lets through.

With F1 and the defence at hand an attacker trains on as many draws as he likes: each step has new ones. The network for
undefended features is gone on with where the shapes allow. Each lies in a folder of the cache whose name follows from
all that decides its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adversary.attacks import ATTACKS
from adversary.blackbox.inversion import inversion_name, inversion_path
from adversary.priors.prior import Prior
from adversary.training import train_inversion_command
from scenarios.run.spec import Cell, Scenario
from splitsight.artifacts import home
from splitsight.features import shapes_of
from splitsight.wire.sessions import UNDEFENDED, SessionDescription

__all__ = ["InitialJob", "initial_jobs", "last_fraction", "train_initial"]

_NETWORK = 2
"""To be raised whenever the same settings train another network."""


@dataclass(frozen=True)
class InitialJob:
    """One inversion network to be trained.

    Attributes:
        folder: of its run, and of its file.
        file: the network.
        target: the attacked network's name.
        weights: its weights, a file; ``None`` for the embedded ones.
        split: its split point.
        defense: what the edge does to the features, in its canonical form.
        prior: name or folder of the prior.
        minutes: budget, of computing.
        seed: of weights and draws.
        start: file of a network to go on from.
    """

    folder: str
    file: str
    target: str
    weights: str | None
    split: str
    defense: str
    prior: str
    minutes: float
    seed: int
    start: str | None

    @property
    def name(self) -> str:
        """For people."""
        return f"inversion network {Path(self.file).stem}"

    @property
    def runs(self) -> list[Path]:
        """Its run's folder, once it has begun."""
        return [p for p in Path(self.folder).glob("run") if p.is_dir()]

    @property
    def done(self) -> bool:
        """Whether the network is there, trained to the end of its budget."""
        figures = Path(self.folder) / "run" / "figures.json"
        return Path(self.file).is_file() and figures.is_file() and bool(json.loads(figures.read_text())["finished"])

    @property
    def fraction(self) -> float:
        """About how much of its training is done, by its log."""
        return 1.0 if self.done else last_fraction(Path(self.folder) / "run" / "log.jsonl")


def last_fraction(log: Path) -> float:
    """The last part of its budget that a run's log speaks of; 0 without one."""
    found = 0.0
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                found = float(json.loads(line).get("fraction", found))
            except (ValueError, AttributeError):  # a line that is being written
                continue
    return found


def initial_jobs(
    scenario: Scenario,
    describe: Callable[[Cell], SessionDescription],
    plain: Callable[[Cell], SessionDescription],
    prior: Prior,
) -> list[InitialJob]:
    """All of a scenario, each once: for each target, split and defence that an attacker knows and starts a network at.

    Args:
        scenario: with a section ``train``.
        describe: what an attacker takes a cell for.
        plain: what a cell attacks, without a defence.
        prior: in use.
    """
    training = scenario.train
    assert training is not None and training.initial_minutes is not None
    found: dict[tuple[str | None, str, str], InitialJob] = {}
    for cell in scenario.cells:
        if "initial" not in ATTACKS.get(cell.method).needs | ATTACKS.get(cell.method).uses:
            continue
        about = describe(cell)
        undefended = plain(cell)
        kept = inversion_path(undefended, prior)
        if about.defense == UNDEFENDED and kept is not None:
            continue
        start = kept if shapes_of(undefended.features) == shapes_of(about.features) else None
        decides = {
            "head": about.head_digest,
            "defense": [about.defense, about.defense_digest],
            "prior": prior.latent_digest,
            "minutes": training.initial_minutes,
            "seed": training.seed,
            "network": _NETWORK,
            "start": None if start is None else hashlib.sha256(start.read_bytes()).hexdigest(),
        }
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        name = inversion_name(about.target, about.split, prior.name, about.defense)
        folder = home() / "inversion" / "initials" / f"{name}-{key}"
        found[cell.target, about.split, about.defense] = InitialJob(
            folder=str(folder),
            file=str(folder / f"{name}.safetensors"),
            target=cell.target or scenario.target,
            weights=None if cell.target or scenario.weights is None else str(scenario.weights),
            split=about.split,
            defense=about.defense,
            prior=scenario.prior,
            minutes=training.initial_minutes,
            seed=training.seed,
            start=None if start is None else str(start),
        )
    return list(found.values())


def train_initial(job: InitialJob, data: Path) -> None:
    """Train one to the end of its budget, or go on with it; a signal ends it early and keeps what was learnt.

    Raises:
        UserError: the data cannot be used.
    """
    train_inversion_command(
        data=data,
        out=Path(job.folder),
        minutes=job.minutes,
        device="cpu",
        seed=job.seed,
        target=job.target,
        split=job.split,
        prior=job.prior,
        weights=None if job.weights is None else Path(job.weights),
        defense=job.defense,
        start=None if job.start is None else Path(job.start),
        computing=True,
    )
