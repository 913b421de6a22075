"""What is measured of a split point, in units that do not depend on each other: cost, utility, leakage, attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversary.attacks import Callback
from scenarios.halves import frame_bytes, time_halves
from scenarios.run.work import slug
from scenarios.scoring import Scorer
from scenarios.splits.attackers import Attacker, Ready
from scenarios.splits.inputs import Pictures
from scenarios.splits.points import SplitPoint
from scenarios.splits.rows import row
from scenarios.splits.spec import SplitOptions
from scenarios.splits.told import told
from scenarios.splits.utility import AGREEMENT, agreement, largest_difference, task_utility
from scenarios.workbench import Workbench, edge_seeds
from splitsight.data import to_tensor
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.evaluators import Evaluator
from splitsight.numerics import subnormals_flushed
from splitsight.pipeline import EdgePipeline

__all__ = ["Bench", "Unit"]

_BATCH = 4
"""Images solved side by side: what a kill costs at most."""
_AT_ONCE = 32
_TIMED = 10
"""Different frames that are timed, and whose messages are counted."""

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Unit:
    """What is computed and filed at once.

    Attributes:
        name: says all that its rows depend on within a folder.
        kind: ``cost``, ``utility``, ``told`` or ``attack``.
        point: where.
        index: images, of an attack.
        ready: the attacker, likewise.
    """

    name: str
    kind: str
    point: SplitPoint
    index: tuple[int, ...] = ()
    ready: Ready | None = None

    @property
    def says(self) -> str:
        """What is going on, for people."""
        who = "" if self.ready is None else f" {self.ready.attacker.name}"
        return f"{self.kind}{who} at {self.point.name}"


def _unit(kind: str, point: SplitPoint, index: Sequence[int] = (), ready: Ready | None = None) -> Unit:
    depends: dict[str, Any] = {"kind": kind, "split": point.name, "index": list(index)}
    if ready is not None:
        # a network that is trained later makes other rows, and so another unit
        depends |= {"attack": ready.attacker.name, "settings": ready.attack.settings.dump(), "weights": ready.weights}
    key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=list).encode()).hexdigest()[:16]
    return Unit(f"{kind}-{slug(point.name)}-{key}", kind, point, tuple(index), ready)


class Bench:
    """Models and images of an evaluation.

    Args:
        options: what is asked for.
        models: the target, the prior, and what attackers need.
        points: of the target.
        pictures: that are looked at.
        evaluators: independent classifiers.
    """

    def __init__(
        self,
        options: SplitOptions,
        models: Workbench,
        points: Sequence[SplitPoint],
        pictures: Pictures,
        evaluators: Sequence[Evaluator],
    ) -> None:
        self.options, self.models, self.points, self.pictures = options, models, list(points), pictures
        self.evaluators = list(evaluators)
        inputs, target = pictures.inputs, models.target
        labels = {evaluator.name: pictures.labels_for(evaluator, target) for evaluator in evaluators}
        self.scorer = Scorer(inputs, evaluators, labels)
        self.originals = to_tensor(inputs.images)

    def pipeline(self, point: SplitPoint) -> EdgePipeline:
        """The edge at a point, with the defence and the codec asked for."""
        return self.models.pipeline(point.name, self.options.defense, self.options.codec)

    def ready(self, attackers: Sequence[Attacker]) -> dict[tuple[str, str], Ready]:
        """Each attacker at each point, by (attack, split)."""
        weights = self.options.weights
        flags = f"--target {quote(self.options.target)}" + (f" --weights {quote(str(weights))}" if weights else "")
        return {
            (attacker.name, point.name): attacker.ready(self.models, self.pipeline(point).description(), flags)
            for attacker in attackers
            for point in self.points
        }

    def units(self, ready: Sequence[Ready], where: Sequence[SplitPoint]) -> list[Unit]:
        """All units: what needs no attack first, then the first images of all attacks, so that all is begun early.

        Args:
            ready: attackers that can try.
            where: the point of each.
        """
        found = [_unit(kind, point) for point in self.points for kind in ("cost", "utility", "told")]
        n = len(self.originals)
        for k in range(0, n, _BATCH):
            index = range(k, min(k + _BATCH, n))
            found += [_unit("attack", point, index, one) for one, point in zip(ready, where, strict=True)]
        return found

    @subnormals_flushed()
    def compute(self, unit: Unit, step: Step | None = None) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Measure one unit.

        Args:
            unit: out of :meth:`units`.
            step: called with steps done and steps planned, of an attack.

        Returns:
            Rows, and of an attack its reconstructions ``(B, 3, H, W)`` in [0, 1], eight bits deep.

        Raises:
            UserError: the features are not finite, or the attack cannot run.
        """
        if unit.kind == "attack":
            return self._attack(unit, step)
        return {"cost": self._cost, "utility": self._utility, "told": self._told}[unit.kind](unit.point), None

    # ---------------------------------------------------------------- without an attack

    @cached_property
    def _timed(self) -> Workbench:
        """Where halves are timed: an edge has no GPU of this machine's."""
        if self.models.device.type == "cpu":
            return self.models
        return Workbench(self.options.target, weights=self.options.weights)

    def _cost(self, point: SplitPoint) -> list[dict[str, Any]]:
        pipeline = self._timed.pipeline(point.name, self.options.defense, self.options.codec)
        frames = list(self.pictures.inputs.images[:_TIMED])
        rounds = -(-self.options.repeats // len(frames))
        halves = time_halves(pipeline, frames, rounds=rounds, threads=torch.get_num_threads())
        rows = [
            row(point.name, "cost", f"{side}_ms", t.median_ms, low=t.lower_ms, high=t.upper_ms, n=t.n)
            for side, t in (("edge", halves.edge), ("cloud", halves.cloud))
        ]
        sizes: dict[str, float | None] = {"up_bytes": halves.up_bytes, "down_bytes": halves.down_bytes}
        sizes |= {f"bytes:{codec}": size for codec, size in frame_bytes(pipeline, frames).items()}
        return rows + [row(point.name, "cost", name, size, n=len(frames)) for name, size in sizes.items()]

    @cached_property
    def _uncut(self) -> list[Any]:
        """The uncut network's outputs, a batch at a time."""
        target = self.models.target
        with torch.no_grad():
            return [
                target.model(target.preprocess(part.to(self.models.device))) for part in self.originals.split(_AT_ONCE)
            ]

    @torch.no_grad()
    def _utility(self, point: SplitPoint) -> list[dict[str, Any]]:
        pipeline, task = self.pipeline(point), self.models.target.task
        labels = self.pictures.inputs.labels
        labelled = [int(i) for i in np.flatnonzero(labels >= 0)]
        rows, furthest = [], 0.0
        for k, whole in zip(range(0, len(self.originals), _AT_ONCE), self._uncut, strict=True):
            index = range(k, min(k + _AT_ONCE, len(self.originals)))
            draws = Draws(edge_seeds(self.options.seed, index))
            features = pipeline(self.originals[index.start : index.stop].to(self.models.device), draws)
            if not all(z.isfinite().all() for z in features):
                raise UserError(f"the features at {point.name} are not finite: check the weights, or the defence")
            output = pipeline.tail(features)
            furthest = max(furthest, largest_difference(output, whole))
            series = [(AGREEMENT, agreement(task, output, whole))]
            if len(labelled) == len(labels):
                wanted = [int(i) for i in labels[index.start : index.stop]]
                name, values = task_utility(task, output, wanted)
                series += [(name, values), (f"unsplit:{name}", task_utility(task, whole, wanted)[1])]
            for measure, values in series:
                images = index if len(values) == len(index) else [None]
                rows += [row(point.name, "utility", measure, v, image=i) for i, v in zip(images, values, strict=True)]
        return [*rows, row(point.name, "utility", "largest_difference", furthest, n=len(self.originals))]

    def _told(self, point: SplitPoint) -> list[dict[str, Any]]:
        images, probes = self.options.probes
        return told(self.pipeline(point), self.originals[:images], probes, self.options.seed)

    # ---------------------------------------------------------------- attacks

    def _attack(self, unit: Unit, step: Step | None) -> tuple[list[dict[str, Any]], Tensor]:
        ready, point, index = unit.ready, unit.point, list(unit.index)
        assert ready is not None
        pipeline, seed = self.pipeline(point), self.options.seed
        about, originals = pipeline.description(), self.originals[index]
        features = self.models.observe(pipeline, originals, edge_seeds(seed, index))
        if ready.network is not None:
            inputs = self.pictures.inputs
            ready.network.check_unseen([inputs.names[i] for i in index], inputs.images[index])
        problem = self.models.problem(
            ready.attack, about, features, codec=self.options.codec, network=ready.network, seed=seed, first=index[0]
        )
        progress = None if step is None else (lambda i, n, loss: step(i, n))
        answer = ready.attack.reconstruct(problem, callback=Callback(None, progress=progress))
        images = self.models.fitted(answer.images, about)
        # measured as it is written: eight bits a channel
        stored = torch.where(images.isnan(), images, (images.clamp(0, 1) * 255).round() / 255)
        measured = self.scorer.measure(stored, originals, index)
        effort = {"seconds": answer.seconds, "model_evaluations": answer.model_evaluations}
        effort |= {"iterations": answer.iterations}
        said = json.dumps({"setting": ready.attack.setting, "weights": ready.weights, **answer.about}, sort_keys=True)
        rows = []
        for i, number in enumerate(index):
            values = {**{column: values[i] for column, values in measured.items()}, **effort}
            rows += [
                row(
                    point.name,
                    "attack",
                    column,
                    None if value is None else float(value),
                    attack=ready.attacker.name,
                    image=number,
                    about=said,
                )
                for column, value in values.items()
            ]
        return rows, stored
