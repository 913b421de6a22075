"""Networks that a scenario's black-box attacks need: trained through an oracle on loopback, kept in the cache.

Each network is a *lesson*, in a folder of the cache whose name follows from all that decides its weights, so that
every scenario finds it again and a run that was killed goes on with it. A process of its own teaches: it starts an
oracle for a split where answers are missing, and knows of F1 what that answers. Several share the lessons.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from adversary.attacks import ATTACKS
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.command import PairOptions, collect_pairs, default_pairs, setting_of, train_pairs_command
from adversary.blackbox.networks import Made, network_name, read_made
from adversary.blackbox.queries import QueryStore
from scenarios.processes import PREFIX, Supervisor, die_with_parent
from scenarios.run.progress import duration
from scenarios.run.spec import Cell, Scenario
from scenarios.run.store import held
from splitsight.artifacts import home
from splitsight.errors import UserError

__all__ = ["Lesson", "lesson_of", "lessons", "teach"]

_LOOK_S = 0.5
_SAY_S = 30.0
_READY_S = 180.0
_GRACE_S = 20.0


@dataclass(frozen=True)
class Lesson:
    """One network to be trained.

    Attributes:
        folder: of its run, and of its file.
        file: the network.
        pairs: query pairs that it learns from, shared by all that learn the same split.
        target: the attacked network's name.
        weights: its weights, a file; ``None`` for the embedded ones.
        split: its split point.
        method: a name out of :data:`~adversary.blackbox.networks.METHODS`.
        prior: name or folder of the prior.
        setting: of the training; ``None`` for the default.
        queries: pictures to train on.
        test_queries: pictures to measure with.
        unasked: pictures without an answer, for net-best.
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
    method: str
    prior: str
    setting: str | None
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
        parts = [_last_fraction(run / "log.jsonl") for run in self.runs]
        stages = 2 if self.method in ("net-flow", "net-best") else 1
        return 1.0 if self.done else min(1.0, sum(parts) / stages)


def _last_fraction(log: Path) -> float:
    found = 0.0
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                found = float(json.loads(line).get("fraction", found))
            except (ValueError, AttributeError):  # a line that is being written
                continue
    return found


def lesson_of(
    scenario: Scenario, cell: Cell, *, target_digest: str, prior_name: str, prior_digest: str
) -> Lesson | None:
    """What a cell's attack must be taught; ``None`` where it needs no network, or has one already.

    Args:
        scenario: of the cell.
        cell: of the scenario.
        target_digest: SHA-256 of the attacked network's weights.
        prior_name: the prior's own name.
        prior_digest: SHA-256 of all of the prior.

    Raises:
        UserError: no such attack or setting.
    """
    training = scenario.train
    attack = ATTACKS.get(cell.method)
    if training is None or not issubclass(attack, NetAttack) or cell.network is not None or not cell.trained:
        return None
    values = attack.configured(cell.setting, split=cell.split, changes=cell.options).settings.dump()
    frames = scenario.data.frames if attack.windowed else 1
    made = Made(
        method=attack.method,
        target=scenario.target,
        split=cell.split,
        target_digest=target_digest,
        defense="identity",
        features=(),
        image=0,
        prior=prior_name,
        prior_digest=prior_digest,
        frames=frames,
        mixed=values.get("mixed", True),
        text=any(cell.prompts),
    )
    decides = {
        "setting": cell.training,
        "queries": cell.queries or training.queries,
        "test_queries": training.test_queries,
        "unasked": training.unasked if attack.method == "net-best" else None,
        "minutes": training.minutes,
        "steps": training.steps,
        "seed": training.seed,
    }
    # the values too, so that a network that was made with others is not taken for this one
    taught = setting_of(attack.method, cell.training)[1]
    text = json.dumps({**decides, "values": taught, "target": target_digest, "prior": prior_digest}, sort_keys=True)
    name = network_name(made)
    folder = home() / "inversion" / "lessons" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Lesson(
        folder=str(folder),
        file=str(folder / f"{name}.safetensors"),
        pairs=str(default_pairs(scenario.target, cell.split, target_digest, frames=frames)),
        target=scenario.target,
        weights=None if scenario.weights is None else str(scenario.weights),
        split=cell.split,
        method=attack.method,
        prior=scenario.prior,
        frames=frames,
        mixing=made.mixed,
        text=made.text,
        **decides,
    )


def lessons(scenario: Scenario, **digests: str) -> list[Lesson]:
    """All of a scenario, each once, in the order of its cells; arguments are those of :func:`lesson_of`.

    Raises:
        UserError: as :func:`lesson_of`.
    """
    found = (lesson_of(scenario, cell, **digests) for cell in scenario.cells)
    return list(dict.fromkeys(lesson for lesson in found if lesson is not None))


def teach(needed: Sequence[Lesson], data: Path | None, logs: Path, *, workers: int, threads: int) -> None:
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
    left = [lesson for lesson in needed if not lesson.done]
    if not left:
        return
    if data is None:
        raise UserError(
            f"{len(left)} networks must be trained first ({left[0].name}, …): give pictures to ask the oracle about "
            "with --train-data"
        )
    work = json.dumps({"lessons": [asdict(lesson) for lesson in left], "data": str(data)})
    with Supervisor(logs) as supervisor:
        for i in range(min(workers, len(left))):
            plan = logs / f"teacher-{i}.json"
            plan.write_text(work, encoding="utf-8")
            arguments = ["-m", "scenarios.run.train", str(plan), str(threads)]
            supervisor.start(f"teacher-{i}", "training", arguments, expected_to_end=True)
        try:
            _watch(left, supervisor)
        except KeyboardInterrupt:
            # all at once, so that they save at the same time
            for key in supervisor.children:
                supervisor.children[key].process.send_signal(signal.SIGTERM)
            for key in supervisor.children:
                supervisor.stop(key, grace=_GRACE_S)
            raise
    # of use only where something went wrong
    shutil.rmtree(logs, ignore_errors=True)


def _watch(left: Sequence[Lesson], supervisor: Supervisor) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, begun, said = Console(stderr=True), time.monotonic(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rest]}"))
    first = sum(lesson.fraction for lesson in left)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(left), rest="")
        while any(child.alive for child in supervisor.children.values()):
            supervisor.check()
            parts = [lesson.fraction for lesson in left]
            done, spent = sum(parts), time.monotonic() - begun
            rest = f"about {duration(spent / (done - first) * (len(left) - done))} left" if done > first else ""
            words = f"training {sum(part == 1 for part in parts)} of {len(left)} networks done ({_now(left, parts)})"
            bar.update(task, completed=done, description=words, rest=rest)
            if not console.is_terminal and time.monotonic() - said > _SAY_S:
                said = time.monotonic()
                print(", ".join(filter(None, (words, rest))), file=sys.stderr, flush=True)
            time.sleep(_LOOK_S)
        supervisor.check()
    if missing := [lesson for lesson in left if not lesson.done]:
        raise UserError(f"training {missing[0].name} ended before its budget: run this again to go on", code=1)


def _now(left: Sequence[Lesson], parts: Sequence[float]) -> str:
    """What is being done, by how much of each is."""
    for lesson, part in zip(left, parts, strict=True):
        if 0 < part < 1:
            return lesson.name
    if all(part == 1 for part in parts):
        return "measuring"
    # before its first step a training asks, and works out what the pictures' latents are
    return next((lesson.name for lesson in left if lesson.runs and not lesson.done), "asking the oracle")


class _Interrupted(Exception):
    """A signal came while a network was trained; what was learnt is saved."""


def study(left: Sequence[Lesson], data: Path, logs: Path) -> None:
    """Body of a process that trains: lessons that nobody else is at, until all are done.

    Raises:
        UserError: an oracle or a training failed.
    """
    waiting = list(left)
    while waiting:
        others = []
        for lesson in waiting:
            folder = Path(lesson.folder)
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / "claim", wait=False) as mine:
                if not mine:
                    others.append(lesson)
                elif not lesson.done:
                    _train(lesson, data, logs)
        waiting = others
        if waiting:
            time.sleep(_LOOK_S)


def _train(lesson: Lesson, data: Path, logs: Path) -> None:
    same = {field.name for field in fields(PairOptions)} & {field.name for field in fields(Lesson)}
    pairs = Path(lesson.pairs)
    options: dict[str, Any] = {name: getattr(lesson, name) for name in same} | {"pairs": pairs, "data": data}
    pairs.parent.mkdir(parents=True, exist_ok=True)
    # one process at a time asks about a split, the others then find its answers
    with held(pairs.with_suffix(".claim")):
        if not _asked(lesson):
            with _oracle(lesson, logs) as address:
                collect_pairs(PairOptions(**options, oracle=address))
    train_pairs_command(PairOptions(**options, out=Path(lesson.folder), computing=True))
    if not lesson.done:
        raise _Interrupted


def _asked(lesson: Lesson) -> bool:
    pairs = Path(lesson.pairs)
    if not (pairs / "oracle.json").is_file():
        return False
    store = QueryStore.open(pairs)
    wanted = (("train", lesson.queries), ("test", lesson.test_queries))
    return all(store.count(role, lesson.frames) >= count for role, count in wanted)  # type: ignore[arg-type]


@contextmanager
def _oracle(lesson: Lesson, logs: Path) -> Iterator[str]:
    """``HOST:PORT`` of an oracle of one's own, for as long as it is needed."""
    arguments: list[object] = ["oracle", "--target", lesson.target, "--split", lesson.split, "--port", 0, "--rate", 0]
    # what was answered before a kill counts against nobody's budget any more
    arguments += ["--budget", lesson.queries + lesson.test_queries, "--max-batch", 64]
    if lesson.weights is not None:
        arguments += ["--weights", lesson.weights]
    with Supervisor(logs) as supervisor:
        key = f"oracle-{lesson.split}-{lesson.frames}"
        child = supervisor.start(key, "oracle", ["-m", "scenarios", *map(str, arguments)])
        yield f"127.0.0.1:{child.wait_event('ready', _READY_S)['port']}"


def _main(plan: Path, threads: int) -> int:
    import torch

    torch.set_num_threads(threads)
    work = json.loads(plan.read_text(encoding="utf-8"))
    # while it trains, a signal ends the step and saves; at all other times it ends the process and its oracle
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        study([Lesson(**lesson) for lesson in work["lessons"]], Path(work["data"]), plan.parent)
    except _Interrupted:
        return 128 + signal.SIGTERM
    except UserError as error:
        print(f"{PREFIX}{error}", file=sys.stderr, flush=True)
        return error.code
    return 0


if __name__ == "__main__":
    die_with_parent()
    raise SystemExit(_main(Path(sys.argv[1]), int(sys.argv[2])))
