"""``splitsight run``: from a scenario's name to a folder with a report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scenarios.processes import PREFIX, Supervisor, die_with_parent, terminate_as_interrupt
from scenarios.run.cluster import check_ray, share_on_ray
from scenarios.run.plan import cell_id
from scenarios.run.progress import Reporter
from scenarios.run.report import write_report
from scenarios.run.spec import Scenario, load_scenario, read_scenario
from scenarios.run.store import Store
from scenarios.run.train import train_missing
from scenarios.run.work import Bench, work
from splitsight.artifacts import home
from splitsight.defenses import parse_defense
from splitsight.errors import UserError
from splitsight.wire.sessions import UNDEFENDED

__all__ = [
    "Place",
    "RunOptions",
    "compute",
    "cores",
    "run_scenario",
    "run_worker",
    "set_threads",
    "settle",
    "share",
    "train_for",
]

_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where units are computed.

    Attributes:
        workers: processes that share the work; with ``ray`` by default one a core of the cluster.
        threads: compute threads of each; by default the cores are shared out.
        device: where the attacks compute: ``auto``, ``cpu``, ``cuda``.
        ray: address of a Ray cluster whose nodes share the work; see :mod:`scenarios.run.cluster`.
    """

    workers: int | None = None
    threads: int | None = None
    device: str = "cpu"
    ray: str | None = None


@dataclass(frozen=True)
class RunOptions(Place):
    """What to run.

    Attributes:
        scenario: a name out of ``splitsight list scenarios``, or a ``.yaml`` file.
        out: folder of the run; by default ``runs/NAME`` or ``runs/NAME-quick``. A run that is there is gone on with.
        data: what is attacked; the scenario's own where not given.
        rivals: for clips, the other images of a gallery.
        train_data: pictures that black-box attackers ask their oracle about, where networks must be trained.
        evaluators: independent classifiers; ``"none"`` goes without. The scenario's own where not given.
        quick: the scenario's quick form.
        limit: at most this many images, or windows of a clip.
        seed: of all draws of the attacks; the scenario's own where not given.
        defense: what the edge does to the features in every cell, of a scenario that says nothing of defences.
        workers: without ``ray`` 1 where not given.
        overwrite: replace an earlier run in ``out``.
    """

    scenario: str
    out: Path | None = None
    data: Path | None = None
    rivals: Path | None = None
    train_data: Path | None = None
    evaluators: Sequence[str] = ()
    quick: bool = False
    limit: int | None = None
    seed: int | None = None
    defense: str | None = None
    overwrite: bool = False


def _changes(options: RunOptions, scenario: Scenario) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if options.data is not None:
        data["path"] = str(options.data.resolve())
    if options.rivals is not None:
        data["rivals"] = str(options.rivals.resolve())
    if options.limit is not None:
        data["count"] = min(options.limit, scenario.data.count)
    changes: dict[str, Any] = {"data": data} if data else {}
    if options.train_data is not None:
        if scenario.train is None:
            raise UserError("this scenario trains nothing: leave --train-data out")
        changes["train"] = {"data": str(options.train_data.resolve())}
    if options.seed is not None:
        changes["seed"] = options.seed
    if options.evaluators:
        only = options.evaluators[0]
        several = len(options.evaluators) > 1
        changes["evaluator"] = list(options.evaluators) if several else None if only == "none" else only
    return changes


def _defended(scenario: Scenario, defense: str) -> Scenario:
    """The scenario with this defence in every cell.

    Raises:
        UserError: it sets defences itself.
    """
    if any(cell.defense != UNDEFENDED for cell in scenario.cells):
        raise UserError("this scenario says itself what is done to the features: leave --defense out")
    known = str(parse_defense(defense))
    return scenario.model_copy(
        update={"cells": [cell.model_copy(update={"defense": known}) for cell in scenario.cells]}
    )


def settle(bench: Bench) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of every cell's setting, and the cells that cannot run here and need not.

    Raises:
        UserError: a cell cannot run, and is not optional.
    """
    settings: dict[str, Any] = {}
    skipped = {}
    for i, cell in enumerate(bench.scenario.cells):
        try:
            attack = bench.attack(cell)
        except UserError as error:
            if not cell.optional:
                raise
            skipped[cell_id(i)] = str(error)
            continue
        settings[cell_id(i)] = {"setting": attack.setting, **attack.settings.dump()}
    return settings, skipped


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None, workers: int) -> None:
    """As many compute threads as were asked for; by default the cores are shared out."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif workers > 1:
        torch.set_num_threads(max(1, cores() // workers))


def run_scenario(options: RunOptions) -> Path:
    """Compute what of a scenario is not computed yet, and write its report.

    Returns:
        The run's folder.

    Raises:
        UserError: the scenario, the data or a model cannot be used; the folder holds another run.
    """
    if options.ray is not None:
        check_ray(options.ray)  # before models are loaded
    raw, name = read_scenario(options.scenario)
    scenario = load_scenario(raw, quick=options.quick, name=name)
    scenario = load_scenario(raw, quick=options.quick, name=name, changes=_changes(options, scenario))
    if options.defense is not None:
        scenario = _defended(scenario, options.defense)
    out = options.out or Path("runs") / (f"{name}-quick" if options.quick else name)
    workers = options.workers or 1
    set_threads(options.threads, workers)
    bench = Bench(scenario, options.device)
    train_for(bench, workers)
    settings, skipped = settle(bench)
    run = {
        "name": name,
        "quick": options.quick,
        "weights": bench.weights,
        "data": bench.inputs.digest,
        "settings": settings,
    }
    config = {**scenario.dump(), "run": run}
    store = Store(out)
    store.open(config, overwrite=options.overwrite)
    for cell, why in skipped.items():
        store.skip(cell, why)
    with terminate_as_interrupt(), Reporter(name, bench.units, store, workers) as reporter:
        compute(store, bench, reporter, options, workers)
    with store.locked("report"):
        store.tidy()
        write_report(store, bench, config)
    return out


def train_for(bench: Bench, workers: int) -> None:
    """Train the networks that a scenario's attacks lack.

    Raises:
        UserError: there is nothing to train on, or a training failed.
    """
    training = bench.scenario.train
    if training is None:
        return
    with terminate_as_interrupt():
        threads = torch.get_num_threads()
        logs = home() / "inversion" / "logs" / str(os.getpid())
        train_missing([*bench.initials(), *bench.jobs()], training.data, logs, workers=workers, threads=threads)


def compute(store: Store, bench: Bench, reporter: Reporter, place: Place, workers: int) -> None:
    """Compute the units that are left: on the nodes of a Ray cluster, in several processes, or in this one.

    Args:
        store: the run's folder, opened.
        bench: of the same scenario.
        reporter: of the same run.
        place: where.
        workers: processes of this machine that share it, where it is no cluster.
    """
    if not reporter.refresh():
        return
    if place.ray is not None:
        threads = place.threads or 1
        share_on_ray(store, reporter, place.ray, workers=place.workers, threads=threads, device=place.device)
    elif workers > 1:
        share(store, reporter, workers, place.device)
    else:
        work(store, bench, reporter.title, step=reporter.step, finished=lambda unit: reporter.refresh())


def share(store: Store, reporter: Reporter, workers: int, device: str) -> None:
    """Have workers do it, and watch."""
    with Supervisor(store.folder / "logs") as supervisor:
        for i in range(workers):
            arguments = ["-m", "scenarios.run.run", str(store.folder), str(torch.get_num_threads()), device]
            supervisor.start(f"worker-{os.getpid()}-{i}", f"worker {i + 1}", arguments, expected_to_end=True)
        while reporter.refresh():
            supervisor.check()
            if not any(child.alive for child in supervisor.children.values()):
                supervisor.check()
                if reporter.refresh():
                    raise UserError(f"the workers ended before the work did: see {store.folder / 'logs'}", code=1)
                return
            time.sleep(_LOOK_S)


def run_worker(folder: Path, threads: int, device: str) -> None:
    """One worker of a run that is there; see :func:`scenarios.run.work.work`."""
    torch.set_num_threads(threads)
    store = Store(folder)
    config = store.read_config()
    run = config.pop("run")
    bench = Bench(load_scenario(config, name=run["name"]), device)
    work(store, bench, run["name"])


if __name__ == "__main__":
    die_with_parent()
    try:
        run_worker(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except UserError as error:
        print(f"{PREFIX}{error}", file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
