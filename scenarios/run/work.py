"""One worker: takes units that nobody has, attacks, measures, files the rows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversary.alignment import keyed
from adversary.attacks import ATTACKS, Attack, Callback, Problem, Reconstruction
from adversary.blackbox.networks import AttackNetwork
from adversary.prompts import solve_with_prompts
from scenarios.evaluation import labels_for, load_evaluators
from scenarios.run import prompts
from scenarios.run.initials import InitialJob, initial_jobs
from scenarios.run.inputs import Inputs, load_inputs
from scenarios.run.plan import Unit, cell_id, plan
from scenarios.run.rows import digest_column, row_schema
from scenarios.run.spec import Cell, Scenario
from scenarios.run.store import Store
from scenarios.run.train import TrainingJob, job_of, jobs
from scenarios.scoring import Scorer
from scenarios.workbench import Workbench, edge_seeds
from splitsight.artifacts import digest
from splitsight.data import encode_png, to_pixels, to_tensor
from splitsight.devices import device_name
from splitsight.errors import UserError
from splitsight.features import shapes_of, stride_of
from splitsight.numerics import subnormals_flushed
from splitsight.wire.sessions import SessionDescription

__all__ = ["Bench", "slug", "work"]

Step = Callable[[Unit, int, int], None]

_TAPPED = 256
_PICTURES = 256


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)


class Bench:
    """A scenario's models and data, loaded once.

    Args:
        scenario: what is computed.
        device: where the attacks compute: ``auto``, ``cpu``, ``cuda``.

    Raises:
        UserError: a model or the data are not there or do not fit each other.
    """

    def __init__(self, scenario: Scenario, device: str = "cpu") -> None:
        self.scenario = scenario
        self.models = Workbench(scenario.target, weights=scenario.weights, prior=scenario.prior, device=device)
        target = self.models.target
        others = dict.fromkeys(cell.target for cell in scenario.cells if cell.target)
        self._others = {name: self.models.beside(name) for name in others}
        for models in self._others.values():
            if models.target.input_size != target.input_size:
                raise UserError(
                    f"the target '{models.target.name}' takes {models.target.input_size} pixels and '{target.name}' "
                    f"{target.input_size}: give it a scenario of its own"
                )
        attacked = [models.target for models in (*self._others.values(), self.models)]
        for one in attacked:  # an evaluator may be none of them
            self.evaluators = load_evaluators(scenario.evaluators, target.synonyms, one.digest, one.name)
        self.inputs: Inputs = load_inputs(scenario.data, target.input_size, target.synonyms)
        labels = torch.from_numpy(self.inputs.labels)
        self._labels = {e.name: labels_for(e, labels, target.synonyms) for e in self.evaluators}
        self.scorer = Scorer(self.inputs, self.evaluators, self._labels)
        self.metrics, self.schema = self.scorer.metrics, row_schema([evaluator.name for evaluator in self.evaluators])
        self.units: list[Unit] = plan(scenario, self.inputs)
        self._pools: dict[str, Tensor] = {}
        others = np.setdiff1d(np.arange(len(self.inputs.pool)), self.inputs.places)[:_PICTURES]
        if not self.inputs.windows and len(others) >= _TAPPED // 4:
            # pictures of the kind that is attacked, none of which is
            self.models.pictures = to_tensor(self.inputs.pool[others])
        for job in self.initials():
            models = self.models if job.target == scenario.target else self._others[job.target]
            models.files[job.split, job.defense] = Path(job.file)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each model's weights by role."""
        asked = {f"evaluator:{e.name}" if i else "evaluator": e.digest for i, e in enumerate(self.evaluators)}
        return {**self.models.digests(), **asked}

    @property
    def weights(self) -> dict[str, str]:
        """:attr:`digests`, and those of the targets that single cells attack."""
        return self.digests | {f"target:{name}": models.target.digest for name, models in self._others.items()}

    def models_of(self, cell: Cell) -> Workbench:
        """The workbench with the network that a cell attacks."""
        return self._others[cell.target] if cell.target else self.models

    def about(self, cell: Cell) -> SessionDescription:
        """What a cell attacks.

        Raises:
            UserError: no such split point or defence.
        """
        return self.models_of(cell).pipeline(cell.split, cell.defense).description()

    def believed(self, cell: Cell) -> SessionDescription:
        """What its attacker takes that for, and has networks for."""
        about, attack = self.about(cell), ATTACKS.get(cell.method)
        if cell.adaptive and "network" in attack.needs:
            return about
        return self.models_of(cell).believed(about, adaptive=cell.adaptive)

    def _tapped(self, cell: Cell) -> list[Tensor] | None:
        """Further frames of a session, for an attacker who has to find out a key."""
        models = self.models_of(cell)
        pipeline = models.pipeline(cell.split, cell.defense)
        if not cell.adaptive or not keyed(pipeline):
            return None
        index = range(min(len(self.inputs.images), _TAPPED))
        return models.observe(pipeline, to_tensor(self.inputs.images[: len(index)]), edge_seeds(0, index))

    def attack(self, cell: Cell) -> Attack:
        """The attack of a cell, configured.

        Raises:
            UserError: no such attack, setting, value, split point or prompt, or an attack on windows without any.
        """
        kind = ATTACKS.get(cell.method)
        target = self.models_of(cell).target
        attack = kind.configured(cell.setting, target=target.name, split=cell.split, changes=cell.options)
        if attack.windowed and not self.inputs.windows:
            raise UserError(f"'{cell.method}' solves windows of frames: give the scenario data of kind 'clips'")
        if attack.windowed and self.scenario.data.frames < 2:
            raise UserError(f"'{cell.method}' couples the frames of a window: give the data 'frames' of at least 2")
        labels = self.models_of(cell).target.labels
        for template in cell.prompts:
            prompts.check_template(template)
            if template and not attack.text:
                raise UserError(f"'{cell.method}' takes no prompt: leave 'prompt' out of its cell")
            if prompts.needs_label(template):
                prompts.fill(template, self.inputs.images[0], int(self.inputs.labels.min()), labels, 0)
        believed = self.believed(cell)
        if shapes_of(believed.features) != shapes_of(self.about(cell).features):
            raise UserError(
                f"the defence '{cell.defense}' changes the shape of what crosses, which an attacker who is not told "
                "of it can do nothing with"
            )
        if "initial" in attack.needs:
            self.models_of(cell).initial(believed)
        if (network := self._network(cell, attack)) is not None:
            index = [i for unit in self.units if self.scenario.cells[unit.cell] is cell for i in unit.indices]
            network.check_unseen([self.inputs.names[i] for i in index], self.inputs.images[index])
        elif cell.network is not None:
            raise UserError(f"'{cell.method}' has no use for a network: leave 'network' out of its cell")
        return attack

    def _network(self, cell: Cell, attack: Attack) -> AttackNetwork | None:
        """The network of an attack that needs one.

        Raises:
            UserError: there is none for this target, split, defence, prior and prompt.
        """
        if "network" not in attack.needs:
            return None
        about = self.believed(cell)
        job = job_of(self.scenario, cell, about, **self._prior)
        path, frames = cell.network if job is None else Path(job.file), self.scenario.data.frames
        return self.models_of(cell).network(attack, about, frames=frames, text=any(cell.prompts), path=path)

    @property
    def _prior(self) -> dict[str, str]:
        return {"prior_name": self.models.prior.name, "prior_digest": self.digests["prior"]}

    def initials(self) -> list[InitialJob]:
        """Inversion networks that the scenario trains for white-box attackers to start from."""
        if self.scenario.train is None or self.scenario.train.initial_minutes is None:
            return []
        return initial_jobs(self.scenario, self.believed, self._undefended, self.models.prior)

    def _undefended(self, cell: Cell) -> SessionDescription:
        return self.models_of(cell).pipeline(cell.split).description()

    def jobs(self) -> list[TrainingJob]:
        """Networks that the scenario trains for its attacks.

        Raises:
            UserError: no such attack or setting.
        """
        return jobs(self.scenario, self.believed, **self._prior)

    def labels_of(self, evaluator: str, index: Sequence[int]) -> Tensor:
        """Classes of images as one of the evaluators numbers them, −1 where it does not know them."""
        return self._labels[evaluator][list(index)]

    @subnormals_flushed()
    def compute(self, unit: Unit, step: Step | None = None) -> tuple[list[dict[str, Any]], Tensor]:
        """Attack and measure one unit.

        Args:
            unit: out of :attr:`units`.
            step: called with the unit, steps done and steps planned.

        Returns:
            Rows without the places of files, and the reconstructions ``(B, 3, H, W)`` in [0, 1], eight bits deep.

        Raises:
            UserError: the attack cannot run.
        """
        cell, scenario = self.scenario.cells[unit.cell], self.scenario
        attack, about = self.attack(cell), self.about(cell)
        index = list(unit.indices)
        originals = to_tensor(self.inputs.images[index])
        models = self.models_of(cell)
        pipeline = models.pipeline(cell.split, cell.defense)
        features = models.observe_static(pipeline, originals, cell.static, scenario.seed, index)
        network = self._network(cell, attack)
        problem = models.problem(
            attack,
            about,
            features,
            network=network,
            seed=scenario.seed,
            first=index[0],
            adaptive=cell.adaptive,
            static=cell.static,
            tapped=self._tapped(cell),
        )
        limit = cell.seconds or scenario.seconds
        # on a CPU the time in which this thread computes: methods are compared, however busy the machine is
        clock = time.thread_time if models.device.type == "cpu" else time.monotonic
        callback = Callback(
            None if limit is None else clock() + limit * len(index),
            clock=clock,
            progress=None if step is None else (lambda i, n, loss: step(unit, i, n)),
        )
        answer, words = self._solve(attack, problem, cell, index, callback)
        images = models.fitted(answer.images, about)
        if images.shape != originals.shape:
            raise ValueError(f"'{cell.method}' answered {tuple(images.shape)}, not {tuple(originals.shape)}")
        # measured as it is written: eight bits a channel
        stored = torch.where(images.isnan(), images, (images.clamp(0, 1) * 255).round() / 255)
        measured = self.scorer.measure(
            stored, originals, index, models.target.answers, stride_of(about.features, originals.shape[-1])
        )
        losses = [float(answer.loss)] * len(index) if answer.losses is None else answer.losses.tolist()
        asked = network or models.asked(self.believed(cell))
        rows = []
        for i, number in enumerate(index):
            label = int(self.inputs.labels[number])
            rows.append(
                {
                    "cell": cell_id(unit.cell),
                    "label": cell.name,
                    "method": cell.method,
                    "setting": attack.setting,
                    "split": cell.split,
                    "options": _json(cell.options),
                    "settings": _json(attack.settings.dump()),
                    "prompt": words[i],
                    "defense": about.defense,
                    "adaptive": cell.adaptive,
                    "static": cell.static,
                    "index": number,
                    "image": self.inputs.hashes[number],
                    "name": self.inputs.names[number],
                    "class_label": label if label >= 0 else None,
                    "clip": self.inputs.clips[number] or None,
                    "window": unit.window,
                    "time_s": self.inputs.times[number],
                    "seed": scenario.seed,
                    **{name: value[i] for name, value in measured.items()},
                    "loss": _known(losses[i]),
                    "iterations": answer.iterations,
                    "model_evaluations": float(answer.model_evaluations),
                    "seconds": float(answer.seconds),
                    "about": _json(answer.about) if answer.about else None,
                    "threads": torch.get_num_threads(),
                    "device": device_name(self.models.device),
                    "curve": answer.curve if cell.curve else None,
                    "session": _json(about.to_dict()),
                    **{digest_column(role): value for role, value in self.digests.items()},
                    "target_digest": models.target.digest,
                    "inversion_digest": None if asked is None else digest(asked.state_dict()),
                }
            )
        return rows, stored

    def _solve(
        self, attack: Attack, problem: Problem, cell: Cell, index: Sequence[int], callback: Callback
    ) -> tuple[Reconstruction, list[str]]:
        """The answer, and the prompt of each image."""
        labels = self.models_of(cell).target.labels
        words = {template: [self._prompt(template, i, labels) for i in index] for template in cell.prompts}
        prior = self.models.prior
        if len(words) == 1:
            (used,) = words.values()
            if any(used):
                problem = replace(problem, text=prior.embed_text(used))
            return attack.reconstruct(problem, callback=callback), used
        texts = {template: prior.embed_text(used) for template, used in words.items()}
        found = solve_with_prompts(attack, problem, texts, callback)
        return found.answer, [words[template][i] for i, template in enumerate(found.won)]

    def _prompt(self, template: str, index: int, labels: list[str]) -> str:
        label, seed = int(self.inputs.labels[index]), self.scenario.seed * 1_000_003 + index
        return prompts.fill(template, self.inputs.images[index], label, labels, seed)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def slug(text: str) -> str:
    """A piece of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:40]


def _file(store: Store, bench: Bench, unit: Unit, rows: list[dict[str, Any]], images: Tensor, name: str) -> None:
    cell = bench.scenario.cells[unit.cell]
    folder = f"reconstructions/{cell_id(unit.cell)}-{slug(f'{cell.split} {cell.name}')}"
    for row, pixels in zip(rows, to_pixels(images.nan_to_num(0.0)), strict=True):
        original = f"originals/{row['image'][:16]}.png"
        if not (store.folder / original).is_file():
            store.write(original, encode_png(bench.inputs.images[row["index"]]))
        place = store.write(f"{folder}/{row['index']:06d}.png", encode_png(pixels))
        row |= {"scenario": name, "original": original, "reconstruction": str(place.relative_to(store.folder))}
    store.add(unit.name, rows, bench.schema)


def work(
    store: Store,
    bench: Bench,
    name: str,
    *,
    step: Step | None = None,
    finished: Callable[[Unit], object] | None = None,
    pause: float = 0.5,
) -> None:
    """Compute every unit that is not done, until all are; those that others hold are waited for.

    Args:
        store: of the run, opened.
        bench: models and data.
        name: of the scenario, for the rows.
        step: called with the unit in hand, steps done and steps planned.
        finished: called with each unit that is done, by whomever.
        pause: seconds between two looks at what others hold.

    Raises:
        UserError: an attack cannot run, in a cell that is not optional.
    """
    left = list(bench.units)
    while left:
        waiting = []
        for unit in left:
            cell = cell_id(unit.cell)
            if not store.done(unit.name) and cell not in store.skipped():
                with store.locked(unit.name, wait=False) as mine:
                    if not mine:
                        waiting.append(unit)
                        continue
                    # it may have been finished between the question and the lock
                    if not store.done(unit.name):
                        try:
                            _file(store, bench, unit, *bench.compute(unit, step), name)
                        except UserError as error:
                            if not bench.scenario.cells[unit.cell].optional:
                                raise
                            store.skip(cell, str(error))
            if finished is not None:
                finished(unit)
        left = waiting
        if left:
            time.sleep(pause)
