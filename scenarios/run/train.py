"""Networks that a scenario's black-box attacks need: trained through an oracle on loopback, kept in the cache.

Each network lies in a folder of the cache whose name follows from all that decides its weights, the defence included,
so that every scenario finds it again and a run that was killed goes on with it. A process of its own trains: it starts
an oracle for a split where answers are missing, and knows of F1 what that answers. Several processes share the jobs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from adversary.attacks import ATTACKS
from adversary.attacks.blackbox import NetAttack, method_of
from adversary.blackbox.command import PairOptions, collect_pairs, default_pairs, train_pairs_command
from adversary.blackbox.networks import Made, network_name, read_made
from adversary.blackbox.queries import QueryStore, Role
from scenarios.processes import PREFIX, Supervisor, die_with_parent
from scenarios.run.initials import InitialJob, last_fraction, train_initial
from scenarios.run.progress import duration
from scenarios.run.spec import Cell, Scenario
from splitsight.artifacts import home
from splitsight.errors import UserError
from splitsight.files import held
from splitsight.names import file_stem
from splitsight.wire.sessions import SessionDescription

__all__ = ["Job", "TrainingJob", "job_of", "jobs", "train_missing"]

_LOOK_S = 0.5
_SAY_S = 30.0
_READY_S = 180.0
_GRACE_S = 20.0


@dataclass(frozen=True)
class TrainingJob:
    """One network to be trained.

    Attributes:
        folder: of its run, and of its file.
        file: the network.
        pairs: query pairs that it learns from, shared by all that learn the same split.
        target: the attacked network's name.
        weights: its weights, a file; ``None`` for the embedded ones.
        split: its split point.
        defense: what the edge does to the features, in its canonical form.
        method: name of a black-box method.
        prior: name or folder of the prior.
        setting: of the training; ``None`` for the default.
        changes: values laid over it.
        queries: pictures to train on.
        test_queries: pictures to measure with.
        unasked: pictures without an answer, for methods that use them.
        frames: K.
        mixing: whether frames see each other.
        text: whether captions are learnt with.
        minutes: budget.
        steps: budget.
        seed: of weights and draws.
    """

    folder: str
    file: str
    pairs: str
    target: str
    weights: str | None
    split: str
    defense: str
    method: str
    prior: str
    setting: str | None
    changes: dict[str, Any]
    queries: int
    test_queries: int
    unasked: int | None
    frames: int
    mixing: bool
    text: bool
    minutes: float | None
    steps: int | None
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return Path(self.file).stem + f", {self.queries} queries"

    @property
    def done(self) -> bool:
        """Whether the network is there, trained to the end of its budget."""
        file = Path(self.file)
        return file.is_file() and bool(read_made(file).figures.get("finished"))

    @property
    def runs(self) -> list[Path]:
        """Folders of the parts of its training that have begun."""
        return [p for p in Path(self.folder).glob("run*") if p.is_dir()]

    @property
    def fraction(self) -> float:
        """About how much of its training is done, by its logs."""
        parts = [last_fraction(run / "log.jsonl") for run in self.runs]
        return 1.0 if self.done else min(1.0, sum(parts) / len(method_of(self.method).parts))


Job = TrainingJob | InitialJob
_KINDS: dict[str, type[Job]] = {kind.__name__: kind for kind in (TrainingJob, InitialJob)}


def job_of(
    scenario: Scenario, cell: Cell, about: SessionDescription, *, prior_name: str, prior_digest: str
) -> TrainingJob | None:
    """The network that a cell's attack lacks; ``None`` where it needs none, or has one already.

    Args:
        scenario: of the cell.
        cell: of the scenario.
        about: what is attacked: target, cut and defence.
        prior_name: the prior's own name.
        prior_digest: SHA-256 of all of the prior.

    Raises:
        UserError: no such attack or setting.
    """
    training, attack = scenario.train, ATTACKS.get(cell.method)
    if training is None or not issubclass(attack, NetAttack) or cell.network is not None or not cell.trained:
        return None
    configured = attack.configured(cell.setting, target=about.target, split=cell.split, changes=cell.options)
    method = method_of(attack.method)
    frames = scenario.data.frames if attack.windowed else 1
    changes = dict(cell.training) if isinstance(cell.training, dict) else {"setting": cell.training}
    setting = changes.pop("setting", None)
    values = method.training(setting, changes)[1]
    made = Made(
        method=attack.method,
        target=about.target,
        split=about.split,
        head_digest=about.head_digest,
        features=about.features,
        image=0,
        prior=prior_name,
        prior_digest=prior_digest,
        defense=about.defense,
        defense_digest=about.defense_digest,
        frames=frames,
        mixed=getattr(configured.settings, "mixed", True),
        text=any(cell.prompts),
    )
    decides = {
        "setting": setting,
        "changes": changes,
        "queries": cell.queries or training.queries,
        "test_queries": training.test_queries,
        "unasked": training.unasked if method.unasked else None,
        "minutes": training.minutes,
        "steps": training.steps,
        "seed": training.seed,
    }
    # the values too, so that a network that was made with others is not taken for this one
    all_that_decides = {
        **decides,
        "values": values.dump(),
        "head": about.head_digest,
        "defense": [about.defense, about.defense_digest],
        "prior": prior_digest,
    }
    text = json.dumps(all_that_decides, sort_keys=True)
    name = network_name(made)
    folder = home() / "inversion" / "scenarios" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return TrainingJob(
        folder=str(folder),
        file=str(folder / f"{name}.safetensors"),
        pairs=str(default_pairs(about, frames=frames)),
        target=cell.target or scenario.target,
        weights=None if scenario.weights is None or cell.target else str(scenario.weights),
        split=cell.split,
        defense=about.defense,
        method=attack.method,
        prior=scenario.prior,
        frames=frames,
        mixing=made.mixed,
        text=made.text,
        **decides,
    )


def jobs(
    scenario: Scenario, describe: Callable[[Cell], SessionDescription], *, prior_name: str, prior_digest: str
) -> list[TrainingJob]:
    """All of a scenario, each once, in the order of its cells.

    Args:
        scenario: whose networks.
        describe: what a cell attacks.
        prior_name: as for :func:`job_of`.
        prior_digest: likewise.

    Raises:
        UserError: as :func:`job_of`.
    """
    found: dict[str, TrainingJob] = {}
    for cell in scenario.cells:
        if scenario.train is not None:
            job = job_of(scenario, cell, describe(cell), prior_name=prior_name, prior_digest=prior_digest)
            if job is not None:
                found.setdefault(job.folder, job)
    return list(found.values())


def train_missing(needed: Sequence[Job], data: Path | None, logs: Path, *, workers: int, threads: int) -> None:
    """Train what is missing, in processes that share it, and say how far they are.

    Args:
        needed: networks; those that are there are left alone.
        data: pictures to ask about.
        logs: folder for what the processes say.
        workers: processes.
        threads: compute threads of each.

    Raises:
        UserError: there is nothing to ask about, or a training failed; what was learnt is kept.
    """
    left = [job for job in needed if not job.done]
    if not left:
        return
    if data is None:
        raise UserError(
            f"{len(left)} networks must be trained first ({left[0].name}, …): give pictures to ask the oracle about "
            "with --train-data"
        )
    work = json.dumps({"jobs": [[type(job).__name__, asdict(job)] for job in left], "data": str(data)})
    with Supervisor(logs) as supervisor:
        for i in range(min(workers, len(left))):
            plan = logs / f"trainer-{i}.json"
            plan.write_text(work, encoding="utf-8")
            arguments = ["-m", "scenarios.run.train", str(plan), str(threads)]
            supervisor.start(f"trainer-{i}", "training", arguments, expected_to_end=True)
        try:
            _watch(left, supervisor)
        except KeyboardInterrupt:
            print("interrupted: what was learnt is being saved, and the next start goes on from it", file=sys.stderr)
            # all at once, so that they save at the same time
            for key in supervisor.children:
                supervisor.children[key].process.send_signal(signal.SIGTERM)
            for key in supervisor.children:
                supervisor.stop(key, grace=_GRACE_S)
            raise
    # of use only where something went wrong
    shutil.rmtree(logs, ignore_errors=True)


def _watch(left: Sequence[Job], supervisor: Supervisor) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, begun, said = Console(stderr=True), time.monotonic(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rest]}"))
    first = sum(job.fraction for job in left)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(left), rest="")
        while any(child.alive for child in supervisor.children.values()):
            supervisor.check()
            parts = [job.fraction for job in left]
            done, spent = sum(parts), time.monotonic() - begun
            rest = f"about {duration(spent / (done - first) * (len(left) - done))} left" if done > first else ""
            words = f"training {sum(part == 1 for part in parts)} of {len(left)} networks done ({_now(left, parts)})"
            bar.update(task, completed=done, description=words, rest=rest)
            if not console.is_terminal and time.monotonic() - said > _SAY_S:
                said = time.monotonic()
                print(", ".join(filter(None, (words, rest))), file=sys.stderr, flush=True)
            time.sleep(_LOOK_S)
        supervisor.check()
    if missing := [job for job in left if not job.done]:
        raise UserError(f"training {missing[0].name} ended before its budget: run this again to go on", code=1)


def _now(left: Sequence[Job], parts: Sequence[float]) -> str:
    """What is being done, by how much of each is."""
    for job, part in zip(left, parts, strict=True):
        if 0 < part < 1:
            return job.name
    if all(part == 1 for part in parts):
        return "measuring"
    # before its first step a training asks, and works out what the pictures' latents are
    return next((job.name for job in left if job.runs and not job.done), "asking the oracle")


class _Interrupted(Exception):
    """A signal came while a network was trained; what was learnt is saved."""


def train_all(left: Sequence[Job], data: Path, logs: Path) -> None:
    """Body of a process that trains: jobs that nobody else is at, until all are done.

    Raises:
        UserError: an oracle or a training failed.
    """
    waiting = list(left)
    while waiting:
        others = []
        for job in waiting:
            folder = Path(job.folder)
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / "claim", wait=False) as mine:
                if not mine:
                    others.append(job)
                elif not job.done:
                    _train(job, data, logs)
        waiting = others
        if waiting:
            time.sleep(_LOOK_S)


def _train(job: Job, data: Path, logs: Path) -> None:
    if isinstance(job, InitialJob):
        train_initial(job, data)
        if not job.done:
            raise _Interrupted
        return
    same = {field.name for field in fields(PairOptions)} & {field.name for field in fields(TrainingJob)}
    pairs = Path(job.pairs)
    options: dict[str, Any] = {name: getattr(job, name) for name in same} | {"pairs": pairs, "data": data}
    pairs.parent.mkdir(parents=True, exist_ok=True)
    # one process at a time asks about a split, the others then find its answers
    with held(pairs.with_suffix(".claim")):
        if not _asked(job):
            with _oracle(job, logs) as address:
                collect_pairs(PairOptions(**options, oracle=address))
    train_pairs_command(PairOptions(**options, out=Path(job.folder), computing=True))
    if not job.done:
        raise _Interrupted


def _asked(job: TrainingJob) -> bool:
    pairs = Path(job.pairs)
    if not (pairs / "oracle.json").is_file():
        return False
    store = QueryStore.open(pairs)
    wanted: tuple[tuple[Role, int], ...] = (("train", job.queries), ("test", job.test_queries))
    return all(store.count(role, job.frames) >= count for role, count in wanted)


@contextmanager
def _oracle(job: TrainingJob, logs: Path) -> Iterator[str]:
    """``HOST:PORT`` of an oracle of one's own, for as long as it is needed."""
    arguments: list[object] = ["oracle", "--target", job.target, "--split", job.split, "--defense", job.defense]
    arguments += ["--port", 0, "--rate", 0]
    # what was answered before a kill counts against nobody's budget any more
    arguments += ["--budget", job.queries + job.test_queries, "--max-batch", 64]
    if job.weights is not None:
        arguments += ["--weights", job.weights]
    with Supervisor(logs) as supervisor:
        key = file_stem("oracle", job.split, job.defense, str(job.frames))
        child = supervisor.start(key, "oracle", ["-m", "scenarios", *map(str, arguments)])
        yield f"127.0.0.1:{child.wait_event('ready', _READY_S)['port']}"


def _main(plan: Path, threads: int) -> int:
    import torch

    torch.set_num_threads(threads)
    work = json.loads(plan.read_text(encoding="utf-8"))
    # while it trains, a signal ends the step and saves; at all other times it ends the process and its oracle
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        train_all([_KINDS[kind](**job) for kind, job in work["jobs"]], Path(work["data"]), plan.parent)
    except _Interrupted:
        return 128 + signal.SIGTERM
    except UserError as error:
        print(f"{PREFIX}{error}", file=sys.stderr, flush=True)
        return error.code
    return 0


if __name__ == "__main__":
    die_with_parent()
    raise SystemExit(_main(Path(sys.argv[1]), int(sys.argv[2])))
