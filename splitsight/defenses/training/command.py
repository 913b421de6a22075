"""``splitsight train defense``: from pictures to a file that ``--defense NAME:weights=FILE`` applies."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitsight import targets
from splitsight.cards import write_card
from splitsight.data import read_classes
from splitsight.defenses import DEFENSES, Chain, Place, parse_defense
from splitsight.defenses.training import Learned, Settings, settings_of
from splitsight.defenses.training.loop import Pictures, System, Through, measured, train
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.targets import Target
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

__all__ = ["HELD", "DefenseOptions", "train_defense_command"]

HELD = 1000
"""Held-out images that give the figures, at most."""

_TRAINED = {
    "none": "F1 and F2 stay as they are",
    "tail": "F2 is trained and F1 stays as it is",
    "both": "F1 and F2 are trained",
}


@dataclass(frozen=True)
class DefenseOptions:
    """What ``splitsight train defense`` was asked for.

    Attributes:
        name: of the defence.
        data: Parquet file or folder of them, or folder of PNG/JPEG; a part is held out
            (:class:`~splitsight.training_data.TrainingSet`).
        out: folder of the run.
        target: network that is split.
        split: a cut of it.
        weights: of the target; ``None`` for the embedded ones.
        defense: for ``aware``, the defences that are trained behind.
        changes: values for the method's settings, by name.
        minutes: time budget, summed over resumed runs; on a CPU of the computing thread's own time.
        steps: step budget.
        batch: images a step.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of order, crops and draws.
        threads: CPU threads; PyTorch's default where not given.
    """

    name: str
    data: Path
    out: Path
    target: str = "resnet18"
    split: str = "L8"
    weights: Path | None = None
    defense: str = "identity"
    changes: dict[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    steps: int | None = None
    batch: int = 64
    device: str = "auto"
    seed: int = 0
    threads: int | None = None


def train_defense_command(options: DefenseOptions) -> Path:
    """Train (or go on training) a defence in ``out/run``; write it to ``out/model``.

    Returns:
        The file, ``NAME.safetensors``, beside its card ``README.md``.

    Raises:
        UserError: no such defence, or one that is not trained; settings, data or a budget that cannot be.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    kind = _kind(options.name)
    settings = settings_of(kind, options.changes)
    chain = parse_defense(options.defense)
    _matching(kind, chain)
    device = pick_device(options.device)
    budget = Budget(options.minutes * 60 if options.minutes else None, options.steps, computing=device.type == "cpu")
    source = TrainingSet.open(options.data)
    target = targets.load(options.target, options.weights)
    cut = target.cut(options.split)
    place = Place(target.name, options.split, cut.head_digest, cut.tail_digest, str(chain))
    chain.check(place)
    head, tail = (copy.deepcopy(half) for half in chain.adapted(cut.head, cut.tail))
    torch.manual_seed(options.seed)
    if chain:
        edge, server = chain.build(cut.specs)
        edge = Through(edge)
    else:
        edge, server = kind.parts(settings, cut.specs)
    method = kind.Method(settings, cut.specs, target.input_size)
    pictures = _pictures(source, target)
    target.to(device)
    trained, figures = train(
        System(head, edge, server, tail),
        method,
        settings,
        cut,
        target.task,
        pictures,
        options.out / "run",
        budget,
        identity={
            "defense": kind.name,
            "chain": str(chain),
            "settings": settings.model_dump(),
            "target": target.name,
            "split": options.split,
            "head_digest": cut.head_digest,
            "tail_digest": cut.tail_digest,
        },
        batch=options.batch,
        seed=options.seed,
        device=device,
    )
    file = options.out / "model" / f"{kind.name}.safetensors"
    kind.save(
        file,
        place,
        {
            "edge": None if chain else trained.edge,
            "server": None if chain else trained.server,
            "head": trained.head if settings.halves == "both" else None,
            "tail": trained.tail if settings.halves != "none" else None,
        },
        chain=str(chain),
        settings=settings.model_dump(),
    )
    # what is filed is what was saved, with the file's precision and as the pipeline will build it
    defence = kind(kind.Parameters(weights=str(file)))
    whole = Chain([*chain.parts, defence])
    deployed = _deployed(whole, target, options.split)
    if not chain:  # a method measures its own part, not a chain of it
        deployed.edge, deployed.server = defence.build(cut.specs)
    figures = {
        **measured(deployed, cut, method, target.task, pictures, device),
        **figures,
    }
    before, after = (sum(spec.bytes for spec in specs) for specs in (cut.specs, whole.output_specs(cut.specs)))
    figures |= {"bytes_undefended": before, "bytes": after, "file_bytes": file.stat().st_size}
    _card(options, kind, settings, chain, source, target, figures, len(pictures.held))
    return file


def _kind(name: str) -> type[Learned]:
    kind = DEFENSES.get(name)
    if not issubclass(kind, Learned):
        known = ", ".join(n for n, k in DEFENSES if issubclass(k, Learned))
        raise UserError(f"the defence {name} is not trained: choose one of {known}, or `aware` to train behind it")
    return kind


def _matching(kind: type[Learned], chain: Chain) -> None:
    if kind.name == "aware" and not chain:
        raise UserError("aware trains behind other defences: name them with --defense")
    if kind.name != "aware" and chain:
        raise UserError(f"--defense goes with aware: leave it out, or train aware behind '{kind.name}' afterwards")


def _pictures(source: TrainingSet, target: Target) -> Pictures:
    images, held = source.images(target.input_size)
    labels: np.ndarray | None = None
    if source.classes is not None and read_classes(source.classes) == target.synonyms:
        labels = source.labels(target.input_size)[1][:HELD]
    return Pictures(images, held[:HELD], None if labels is None or (labels < 0).any() else labels)


def _deployed(chain: Chain, target: Target, split: str) -> System:
    cut = target.cut(split)
    chain.check(Place(target.name, split, cut.head_digest, cut.tail_digest, str(chain)))
    head, tail = chain.adapted(cut.head, cut.tail)
    edge, server = chain.build(cut.specs)
    return System(head, edge, server, tail).to(target.device).eval()


def _card(
    options: DefenseOptions,
    kind: type[Learned],
    settings: Settings,
    chain: Chain,
    source: TrainingSet,
    target: Target,
    figures: dict[str, float | int | bool],
    held: int,
) -> None:
    given = "".join(f" --set {name}={value}" for name, value in options.changes.items())
    write_card(
        options.out / "model",
        f"{kind.name} for {target.name} at {options.split}",
        what=f"{(kind.__doc__ or '').strip().splitlines()[0]} {_TRAINED[settings.halves]}, by distillation "
        "from the undefended network, starting from the target's own weights. "
        f"Apply it with `--defense {f'{chain}+' if chain else ''}{kind.name}:weights=FILE`.",
        data=f"{source.description} (its first {held:,} images).",
        command=f"splitsight train defense {kind.name} --target {target.name} --split {options.split} --data DIR"
        + (f' --defense "{chain}"' if chain else "")
        + given
        + (f" --minutes {options.minutes:g}" if options.minutes else "")
        + (f" --steps {options.steps}" if options.steps else ""),
        figures=figures,
        notes="Figures are taken on the file as it is applied; `…_before` with new parts and the target's own halves. "
        f"Settings: {', '.join(f'{k} {v}' for k, v in settings.model_dump().items())}.",
    )
