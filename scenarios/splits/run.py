"""``splitsight splits``: measure every point of a target, and say where to split.

The folder is a :class:`~scenarios.run.store.Store`: each unit's rows appear at once and are not computed again, so that
a run that was stopped or killed goes on, and several can share a folder. What only reads the rows (networks, the edge's
slowdown, limits, which points and attacks are shown) is free to change: the report is written anew from what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scenarios.evaluation import load_evaluators
from scenarios.run.store import Store
from scenarios.run.work import slug
from scenarios.splits.attackers import parse_attackers
from scenarios.splits.inputs import load_pictures
from scenarios.splits.measure import Bench, Unit
from scenarios.splits.points import chosen_points
from scenarios.splits.report import Report, write_report
from scenarios.splits.rows import SCHEMA
from scenarios.splits.spec import SplitOptions
from scenarios.workbench import Workbench
from splitsight.data import encode_png, to_pixels
from splitsight.defenses import parse_defense
from splitsight.devices import device_name
from splitsight.errors import UserError
from splitsight.network import load_profile

__all__ = ["Progress", "evaluate"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Failed:
    """An attack that could not run at a point, though it had what it needs."""

    attack: str
    split: str
    why: str


def evaluate(options: SplitOptions, progress: Progress | None = None) -> Report:
    """Compute what is not computed yet, and write the report.

    Args:
        options: what is asked for.
        progress: called with units done, units, what is going on.

    Returns:
        What was found; its folder has ``summary.json``, ``rows.parquet`` and ``index.html``.

    Raises:
        UserError: a name, a file or a value is wrong, or the folder holds another evaluation. Nothing was written then.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    profiles = [load_profile(name) for name in options.networks]
    attackers = parse_attackers(options.attacks)
    models = Workbench(
        options.target,
        weights=options.weights,
        prior=options.prior,
        inversion=options.inversion,
        device=options.device,
    )
    target = models.target
    judges = load_evaluators(options.evaluators, target.synonyms, target.digest, target.name)
    points, left_out = chosen_points(target, options.splits, quick=options.quick)
    pictures = load_pictures(
        target,
        options.images,
        limit=options.count,
        gallery=options.gallery,
        gallery_size=options.gallery_size,
        seed=options.seed,
    )
    bench = Bench(options, models, points, pictures, judges)
    ready = bench.ready(attackers)
    able = {key: one for key, one in ready.items() if not one.missing}
    at = {point.name: point for point in points}
    units = bench.units(list(able.values()), [at[split] for _, split in able])
    store = Store(options.out)
    store.open(_config(bench), overwrite=options.overwrite)
    failed = _work(store, bench, units, progress)
    rows = store.rows([unit.name for unit in units], SCHEMA).to_pylist()
    missing = {key: one.missing for key, one in ready.items() if one.missing}
    missing |= {(one.attack, one.split): one.why for one in failed}
    remarks = {key: one.remarks for key, one in able.items() if one.remarks and key not in missing}
    with store.locked("report"):
        store.tidy()
        return write_report(
            store,
            bench,
            rows,
            profiles=profiles,
            attackers=attackers,
            left_out=left_out,
            missing=missing,
            remarks=remarks,
        )


def _config(bench: Bench) -> dict[str, Any]:
    """All that rows depend on and that their units' names do not say."""
    options, models = bench.options, bench.models
    images, probes = options.probes
    return {
        "target": models.target.name,
        "input_size": models.target.input_size,
        "weights": {
            "target": models.target.digest,
            "prior": models.prior.digest,
            **{f"evaluator:{e.name}": e.digest for e in bench.evaluators},
        },
        "data": bench.pictures.inputs.digest,
        "defense": str(parse_defense(options.defense)),
        "codec": {"dtype": options.codec.dtype, "compression": options.codec.compression},
        "seed": options.seed,
        "told": {"images": images, "probes": probes},
        "repeats": options.repeats,
        "machine": {"device": device_name(models.device), "threads": torch.get_num_threads()},
    }


def _work(store: Store, bench: Bench, units: Sequence[Unit], progress: Progress | None) -> list[_Failed]:
    """Compute every unit that is not done, but those that another process holds; what could not run, and why."""
    left = [unit for unit in units if not store.done(unit.name)]
    failed: dict[tuple[str, str], _Failed] = {}
    for wait in (False, True):  # what others hold is waited for once nothing else is left
        for unit in left:
            whose = None if unit.ready is None else (unit.ready.attacker.name, unit.point.name)
            done = len(units) - sum(not store.done(one.name) for one in left)
            if progress is not None:
                progress(done, len(units), unit.says)
            if store.done(unit.name) or whose in failed:
                continue
            with store.locked(unit.name, wait=wait) as mine:
                if not mine or store.done(unit.name):
                    continue
                try:
                    rows, images = bench.compute(unit, _step(progress, done, len(units), unit))
                except UserError as error:
                    if whose is None:
                        raise
                    failed[whose] = _Failed(*whose, str(error))
                    continue
                _file(store, bench, unit, rows, images)
        left = [unit for unit in left if not store.done(unit.name)]
    if progress is not None:
        progress(len(units) - len(left), len(units), "report")
    return list(failed.values())


def _step(progress: Progress | None, done: int, planned: int, unit: Unit) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda i, n: progress(done, planned, f"{unit.says}, step {i}/{n}")


def _file(store: Store, bench: Bench, unit: Unit, rows: list[dict[str, Any]], images: Tensor | None) -> None:
    """Pictures first, then the rows that name them: a unit is done once its rows are there."""
    if images is not None:
        places: Mapping[int, str] = {
            number: _picture(store, bench, unit, number, image)
            for number, image in zip(unit.index, images, strict=True)
        }
        rows = [row | {"reconstruction": places[row["image"]]} for row in rows]
    store.add(unit.name, rows, SCHEMA)


def _picture(store: Store, bench: Bench, unit: Unit, number: int, image: Tensor) -> str:
    assert unit.ready is not None
    inputs = bench.pictures.inputs
    original = f"originals/{number:04d}.png"
    if not (store.folder / original).is_file():
        store.write(original, encode_png(inputs.images[number]))
    folder = f"{slug(unit.ready.attacker.name)}-{unit.name.removeprefix('attack-')}"
    place = store.write(f"reconstructions/{folder}/{number:04d}.png", encode_png(to_pixels(image.nan_to_num(0.0))))
    return str(place.relative_to(store.folder))
