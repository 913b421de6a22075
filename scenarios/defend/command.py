"""``splitsight defend``: from names of defences to a folder with a report.

A run is a scenario's (:mod:`scenarios.run`): rows that are filed as they are computed, gone on with after a kill, and
shared by several processes. What a defence costs besides is measured once each, and filed the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adversary.priors.prior import EMBEDDED
from scenarios.defend import plan, standard
from scenarios.defend.measure import measure
from scenarios.defend.pictures import LEAST, Pictures, default_frames, draw
from scenarios.defend.report import write_report
from scenarios.processes import terminate_as_interrupt
from scenarios.run.cluster import check_ray
from scenarios.run.progress import Reporter
from scenarios.run.run import Place, compute, cores, set_threads, settle, train_for
from scenarios.run.spec import Scenario, load_scenario
from scenarios.run.store import Store
from scenarios.run.work import Bench
from scenarios.workbench import Workbench
from splitsight.data import to_tensor
from splitsight.errors import UserError
from splitsight.names import printable
from splitsight.targets import Target
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["DefendOptions", "defend"]

_FITTED_ON = 256
_PROBED = 1024


@dataclass(frozen=True)
class DefendOptions(Place):
    """What to evaluate.

    Attributes:
        out: folder of the run; one that is there is gone on with.
        target: the split network.
        weights: its weights, a file; the embedded ones by default.
        splits: its cuts.
        defenses: ``NAME:…`` with ``;`` between two, or a group: ``all``, ``dp``.
        images: Parquet file or folder, of images that no model was trained on; frames of the default clip by default.
        train_data: pictures that attackers learn from and defences are calibrated on; by default images of ``images``
            that are not attacked, if enough.
        attacks: ``NAME[:SETTING]``; the standard ones where none is named.
        limit: images for attacks that optimise; :class:`~scenarios.defend.plan.Sizes` by default.
        count: images for attacks that are one pass; likewise.
        minutes: of each network that is trained; likewise.
        static: frames of a static scene; likewise.
        evaluators: independent classifiers.
        prior: name or folder of the generative prior.
        quick: a small form, in minutes.
        seed: of all draws.
        workers: without ``ray`` one a core where not given.
        overwrite: replace an earlier run in ``out``.
    """

    out: Path
    target: str = "resnet18"
    weights: Path | None = None
    splits: Sequence[str] = ("L8",)
    defenses: str = standard.ALL
    images: Path | None = None
    train_data: Path | None = None
    attacks: Sequence[str] = ()
    limit: int | None = None
    count: int | None = None
    minutes: float | None = None
    static: int | None = None
    evaluators: Sequence[str] = ("mbconv",)
    prior: str = EMBEDDED
    quick: bool = False
    seed: int = 0
    overwrite: bool = False

    @property
    def sizes(self) -> plan.Sizes:
        """How much is computed."""
        base = plan.QUICK if self.quick else plan.FULL
        base = replace(base, limit=self.limit or base.limit, images=self.count or base.images)
        if self.minutes is not None:
            base = replace(base, initial_minutes=self.minutes, minutes=self.minutes)
        return base if self.static is None else replace(base, static=self.static)


def defend(options: DefendOptions, *, said: Callable[[str], object] = lambda text: None) -> Path:
    """Compute what of an evaluation is not computed yet, and write its report.

    Args:
        options: what to evaluate.
        said: told what goes on.

    Returns:
        The run's folder.

    Raises:
        UserError: a defence, an attack, the images or a model cannot be used; the folder holds another run.
    """
    if options.ray is not None:
        check_ray(options.ray)  # before models are loaded
    workers = options.workers or cores()
    set_threads(options.threads, workers)
    sizes = options.sizes
    wanted, who = standard.parse(options.defenses), plan.attackers(options.attacks, quick=options.quick)
    models = Workbench(options.target, weights=options.weights, prior=options.prior, device=options.device)
    if options.images is not None and not options.images.exists():
        raise UserError(f"no such file or folder: {printable(options.images)}")
    pictures = draw(
        options.images or default_frames(models.target.input_size),
        models.target,
        attacked=max(sizes.images, sizes.limit),
        told=max(sizes.gallery, sizes.utility),
        others=sizes.others,
        seed=options.seed,
        train=options.train_data,
    )
    train, notes = _training(sizes, pictures, options.seed)
    chosen, refused = _chosen(models.target, options.splits, wanted, pictures)
    store = Store(options.out)
    chosen = _kept(store, options, wanted, chosen)
    chance = {(s, d) for s, ds in chosen.items() for d in ds if _random(models, s, d, pictures)}
    scenario = _scenario(options, sizes, who, pictures, train, chosen, chance)
    bench = Bench(scenario, options.device)
    train_for(bench, workers)
    settings, skipped = settle(bench)
    run: dict[str, Any] = {
        "name": "defend",
        "quick": options.quick,
        "weights": bench.digests,
        "data": bench.inputs.digest,
    }
    notes += [f"{defense} at {split} was left out: {why}" for (split, defense), why in refused.items()]
    run |= {"settings": settings, "asked": wanted, "defenses": {s: list(d) for s, d in chosen.items()}, "notes": notes}
    config = {**scenario.dump(), "run": run}
    store.open(config, overwrite=options.overwrite)
    for cell, why in skipped.items():
        store.skip(cell, why)
    with terminate_as_interrupt(), Reporter("defend", bench.units, store, workers) as reporter:
        # first: of a run that is stopped what each defence leaves is known, with the attacks that were done
        measures = _measures(store, bench, chosen, pictures, sizes, options.seed)
        compute(store, bench, reporter, options, workers)
    with store.locked("report"):
        store.tidy()
        write_report(store, bench, config, measures)
    return options.out


def _kept(
    store: Store, options: DefendOptions, wanted: list[str], chosen: dict[str, list[str]]
) -> dict[str, list[str]]:
    """The defences of the run that is there, where the same groups were asked for.

    What a group is depends on what was trained by then, and on measurements that fit its defences to a split.
    """
    if options.overwrite or not store.config.is_file():
        return chosen
    run = store.read_config().get("run", {})
    before = run.get("defenses")
    same = run.get("asked") == wanted and isinstance(before, dict) and list(before) == list(chosen)
    return before if same else chosen


def _training(sizes: plan.Sizes, pictures: Pictures, seed: int) -> tuple[dict[str, Any] | None, list[str]]:
    """The section ``train``, and what a reader has to know of it."""
    data = pictures.train
    notes = []
    if data is None:
        notes.append(
            f"No network was trained on what a defence lets through: {printable(pictures.path)} has fewer than {LEAST} "
            "images that are not attacked. Give --train-data; attackers who were told then are stronger."
        )
        return None, notes
    if sizes.minutes is None:
        notes.append(
            "The quick form trains no black-box network: the black-box attacker who was told is left out, and the "
            "other has the package's network."
        )
    train: dict[str, Any] = {"data": str(data), "initial_minutes": sizes.initial_minutes, "queries": sizes.queries}
    train |= {"test_queries": min(512, sizes.queries), "seed": seed, "minutes": sizes.minutes or 1.0}
    return train, notes


def _chosen(
    target: Target, splits: Sequence[str], wanted: Sequence[str], pictures: Pictures
) -> tuple[dict[str, list[str]], dict[tuple[str, str], str]]:
    """The defences of each split in canonical form, and those of a group that cannot be applied there.

    Raises:
        UserError: one that was named cannot be applied.
    """
    images = to_tensor(pictures.others[:_FITTED_ON])
    found: dict[str, list[str]] = {}
    refused: dict[tuple[str, str], str] = {}
    for split in splits:
        found[split] = []
        for text in wanted:
            for one in standard.standard(target, split, images, text) if text in standard.GROUPS else [text]:
                try:
                    found[split].append(standard.fitted(target, split, one, images))
                except UserError as error:
                    if text not in standard.GROUPS:
                        raise
                    refused[split, one] = str(error)
        found[split] = [d for d in dict.fromkeys(found[split]) if d != UNDEFENDED]
    return found, refused


def _random(models: Workbench, split: str, defense: str, pictures: Pictures) -> bool:
    """Whether a defence makes something else of the same image each time."""
    image, pipeline = to_tensor(pictures.images[:1]), models.pipeline(split, defense)
    once, again = (models.observe(pipeline, image, [seed]) for seed in (1, 2))
    return any(not torch.equal(a, b) for a, b in zip(once, again, strict=True))


def _scenario(
    options: DefendOptions,
    sizes: plan.Sizes,
    who: Sequence[plan.Attacker],
    pictures: Pictures,
    train: dict[str, Any] | None,
    chosen: dict[str, list[str]],
    chance: set[tuple[str, str]],
) -> Scenario:
    told = min(len(pictures.images), max(sizes.gallery, 2))
    count = min(sizes.images, max(1, told - 1)) if any(one.passes for one in who) else sizes.limit
    cells = plan.cells(options.splits, chosen, who, sizes, chance=chance)
    for cell in cells:
        cell["count"] = min(cell["count"], count)
        cell["trained"] = cell["trained"] and train is not None
    raw = plan.scenario(
        target=options.target,
        weights=options.weights,
        prior=options.prior,
        evaluators=[name for name in options.evaluators if name != "none"],
        seed=options.seed,
        data={"path": str(pictures.path.resolve()), "count": count, "gallery": max(2, told), "seed": options.seed},
        train=train,
        planned=cells,
    )
    return load_scenario(raw, name="defend")


def _measures(
    store: Store, bench: Bench, chosen: dict[str, list[str]], pictures: Pictures, sizes: plan.Sizes, seed: int
) -> list[dict[str, Any]]:
    """What each defence costs; one process at a time measures one, and others find it."""
    found = []
    n = min(sizes.utility, len(pictures.images))
    for i, (split, defenses) in enumerate(chosen.items()):
        for j, defense in enumerate([UNDEFENDED, *defenses]):
            name = f"measures/{i:02d}-{j:03d}.json"
            place = store.folder / name
            with store.locked(f"measure-{i:02d}-{j:03d}"):
                if not place.is_file():
                    images, labels = pictures.images[:n], pictures.labels[:n]
                    others = pictures.others[:_PROBED]
                    made = measure(bench.models, split, defense, images, labels, others, seed=seed)
                    store.write(name, json.dumps(made).encode())
            found.append(json.loads(place.read_text(encoding="utf-8")))
    return found
