"""One worker: takes units that nobody has, attacks, measures, files the rows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adversary.attacks import ATTACKS, Attack, Callback, Problem, Reconstruction
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.inversion import InversionNetwork, load_inversion
from adversary.blackbox.networks import AttackNetwork
from adversary.priors.prior import Prior, load_prior
from adversary.prompts import solve_with_prompts
from scenarios.run import prompts
from scenarios.run.inputs import Inputs, load_inputs
from scenarios.run.plan import Unit, cell_id, plan
from scenarios.run.spec import Cell, Scenario
from scenarios.run.store import Store
from scenarios.run.train import Lesson, lesson_of, lessons
from splitsight import judges, targets
from splitsight.artifacts import digest
from splitsight.data import encode_png, to_pixels, to_tensor
from splitsight.devices import device_name, pick_device, standard_normal
from splitsight.errors import UserError
from splitsight.metrics import image_quality
from splitsight.metrics.perceptual import lpips
from splitsight.numerics import subnormals_flushed
from splitsight.pipeline import resized
from splitsight.split import trace

__all__ = ["Bench", "slug", "work"]

OUTPUT = "output"
"""Split point behind the last layer: what crosses are the logits."""

Step = Callable[[Unit, int, int], None]


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
        self.device = pick_device(device)
        self.target = targets.load(scenario.target, scenario.weights).to(self.device)
        self.prior: Prior = load_prior(scenario.prior).to(self.device)
        self.judge = judges.load(scenario.judge) if scenario.judge is not None else None
        self.inputs: Inputs = load_inputs(scenario.data, self.target.input_size)
        if self.judge is not None and int(self.inputs.labels.max()) >= len(self.judge.labels):
            raise UserError(
                f"the data have labels up to {int(self.inputs.labels.max())} and the judge '{self.judge.name}' knows "
                f"{len(self.judge.labels)} classes: give a judge trained on these classes, or --judge none"
            )
        self.units: list[Unit] = plan(scenario, self.inputs)
        self.head = lru_cache(maxsize=None)(self._head)
        self._prior_digest = self.prior.digest
        self._inversions: dict[str, InversionNetwork] = {}
        self._networks: dict[Hashable, AttackNetwork] = {}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each model's weights by role."""
        return {
            "target": self.target.digest,
            "prior": self._prior_digest,
            **({"judge": self.judge.digest} if self.judge else {}),
        }

    def attack(self, cell: Cell) -> Attack:
        """The attack of a cell, configured.

        Raises:
            UserError: no such attack, setting, value, split point or prompt, or an attack on windows without any.
        """
        attack = self._configured(cell)
        if attack.windowed and not self.inputs.windows:
            raise UserError(f"'{cell.method}' solves windows of frames: give the scenario data of kind 'clips'")
        if attack.windowed and self.scenario.data.frames < 2:
            raise UserError(f"'{cell.method}' couples the frames of a window: give the data 'frames' of at least 2")
        for template in cell.prompts:
            prompts.check_template(template)
            if template and not attack.text:
                raise UserError(f"'{cell.method}' takes no prompt: leave 'prompt' out of its cell")
            if prompts.needs_label(template):
                prompts.fill(template, self.inputs.images[0], int(self.inputs.labels.min()), self.target.labels, 0)
        self.head(cell.split)
        if isinstance(attack, NetAttack):
            index = [i for unit in self.units if self.scenario.cells[unit.cell] is cell for i in unit.indices]
            self._taught(cell).check_unseen([self.inputs.names[i] for i in index], self.inputs.images[index])
        elif cell.network is not None:
            raise UserError(f"'{cell.method}' has no use for a network: leave 'network' out of its cell")
        return attack

    def _configured(self, cell: Cell) -> Attack:
        attack = ATTACKS.get(cell.method)
        return attack.configured(cell.setting, target=self.target.name, split=cell.split, changes=cell.options)

    def _taught(self, cell: Cell) -> AttackNetwork:
        """The network of a black-box attack.

        Raises:
            UserError: there is none for this target, split, prior and prompt.
        """
        attack = self._configured(cell)
        assert isinstance(attack, NetAttack)
        text = any(cell.prompts)
        lesson = lesson_of(self.scenario, cell, **self._named())
        path = cell.network if lesson is None else Path(lesson.file)
        key = (cell.method, cell.setting, cell.split, text, path)
        if key not in self._networks:
            self._networks[key] = attack.load(
                self.prior,
                target=self.scenario.target,
                split=cell.split,
                digest=self.target.digest,
                frames=self.scenario.data.frames,
                text=text,
                path=path,
            ).to(self.device)
        return self._networks[key]

    def _named(self) -> dict[str, str]:
        """What identifies the models that black-box networks are trained for."""
        digests = {"target_digest": self.target.digest, "prior_digest": self._prior_digest}
        return {**digests, "prior_name": self.prior.name}

    def lessons(self) -> list[Lesson]:
        """Networks that the scenario trains for its attacks.

        Raises:
            UserError: no such attack or setting.
        """
        return lessons(self.scenario, **self._named())

    def _head(self, split: str) -> nn.Module:
        if split in self.target.points():
            return self.target.head(split)
        if split == OUTPUT:
            return targets.Head(self.target.preprocess, self.target.model).eval()
        size = self.target.input_size
        example = self.target.preprocess(torch.zeros(2, 3, size, size, device=self.device))
        return targets.Head(self.target.preprocess, trace(self.target.model, example).split(split)[0]).eval()

    def inversion(self, split: str) -> InversionNetwork:
        """The inversion network for a split.

        Raises:
            UserError: there is none.
        """
        if split not in self._inversions:
            self._inversions[split] = load_inversion(
                self.scenario.target,
                split,
                self.prior.name,
                target_digest=self.target.digest,
                prior_digest=self.prior.latent_digest,
            ).to(self.device)
        return self._inversions[split]

    @cached_property
    def _pool(self) -> Tensor:
        assert self.judge is not None
        return self.judge.features(to_tensor(self.inputs.pool))

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
        cell = self.scenario.cells[unit.cell]
        attack = self.attack(cell)
        index = list(unit.indices)
        originals = to_tensor(self.inputs.images[index])
        head = self.head(cell.split)
        with torch.no_grad():
            features = [self._noisy(z, cell.noise, index) for z in head(originals.to(self.device))]
        asked: list[nn.Module] = []

        def ask() -> InversionNetwork:
            asked.append(network := self.inversion(cell.split))
            return network

        # whoever only queries gets no F1 at all
        blind = isinstance(attack, NetAttack)
        if blind:
            asked.append(self._taught(cell))
        limit = cell.seconds or self.scenario.seconds
        problem = Problem(
            features,
            None if blind else head,
            prior=self.prior,
            initial=ask,
            network=(lambda: self._taught(cell)) if blind else None,
            seed=self.scenario.seed,
            first=index[0],
        )
        callback = Callback(
            None if limit is None else time.monotonic() + limit * len(index),
            progress=None if step is None else (lambda i, n, loss: step(unit, i, n)),
        )
        answer, words = self._solve(attack, problem, cell, index, callback)
        images = resized(answer.images.cpu(), self.target.input_size)
        if images.shape != originals.shape:
            raise ValueError(f"'{cell.method}' answered {tuple(images.shape)}, not {tuple(originals.shape)}")
        # measured as it is written: eight bits a channel
        stored = torch.where(images.isnan(), images, (images.clamp(0, 1) * 255).round() / 255)
        measured = self._measure(stored, originals, index)
        losses = [float(answer.loss)] * len(index) if answer.losses is None else answer.losses.tolist()
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
                    "noise": cell.noise,
                    "index": number,
                    "image": self.inputs.hashes[number],
                    "name": self.inputs.names[number],
                    "class_label": label if label >= 0 else None,
                    "clip": self.inputs.clips[number] or None,
                    "window": unit.window,
                    "time_s": self.inputs.times[number],
                    "seed": self.scenario.seed,
                    **{name: value[i] for name, value in measured.items()},
                    "loss": _known(losses[i]),
                    "iterations": answer.iterations,
                    "model_evaluations": float(answer.model_evaluations),
                    "seconds": float(answer.seconds),
                    "about": _json(answer.about) if answer.about else None,
                    "threads": torch.get_num_threads(),
                    "device": device_name(self.device),
                    "curve": answer.curve if cell.curve else None,
                    **{f"{role}_digest": value for role, value in self.digests.items()},
                    "inversion_digest": digest(asked[0].state_dict()) if asked else None,
                }
            )
        return rows, stored

    def _noisy(self, z: Tensor, noise: float, index: Sequence[int]) -> Tensor:
        """Features with noise that depends on the image alone."""
        if noise == 0:
            return z
        seeds = [(self.scenario.seed << 32) + 7919 * i + 1 for i in index]
        eps = standard_normal(z.shape[1:], seeds, z.device)
        return z + noise * z.flatten(1).std(1).view(-1, *[1] * (z.ndim - 1)) * eps

    def _solve(
        self, attack: Attack, problem: Problem, cell: Cell, index: Sequence[int], callback: Callback
    ) -> tuple[Reconstruction, list[str]]:
        """The answer, and the prompt of each image."""
        words = {template: [self._prompt(template, i) for i in index] for template in cell.prompts}
        if len(words) == 1:
            (used,) = words.values()
            if any(used):
                problem.text = self.prior.embed_text(used)
            return attack.reconstruct(problem, callback=callback), used
        found = solve_with_prompts(
            attack, problem, {template: self.prior.embed_text(used) for template, used in words.items()}, callback
        )
        return found.answer, [words[template][i] for i, template in enumerate(found.won)]

    def _prompt(self, template: str, index: int) -> str:
        label, seed = int(self.inputs.labels[index]), self.scenario.seed * 1_000_003 + index
        return prompts.fill(template, self.inputs.images[index], label, self.target.labels, seed)

    def _measure(self, images: Tensor, originals: Tensor, index: Sequence[int]) -> dict[str, list[Any]]:
        quality = {k: [_known(v) for v in values.tolist()] for k, values in image_quality(images, originals).items()}
        far = lpips(images, originals)
        quality["lpips"] = [None] * len(index) if far is None else [_known(v) for v in far.tolist()]
        if self.judge is None:
            return quality
        labels = torch.from_numpy(self.inputs.labels[list(index)])
        quality["recognised"] = self.judge.recognised(images, labels, originals).tolist()
        ranks, sizes = [], []
        for image, i in zip(images, index, strict=True):
            rivals = self.inputs.rivals(i)
            if len(rivals) == 0:  # to be found among one image says nothing
                ranks.append(None)
                sizes.append(None)
                continue
            gallery = self._pool[np.concatenate([[self.inputs.places[i]], rivals])]
            ranks.append(int(self.judge.matched(image[None], gallery, [0]).ranks[0]))
            sizes.append(len(gallery))
        return {**quality, "match_rank": ranks, "gallery": sizes}


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
    store.add(unit.name, rows)


def work(
    store: Store,
    bench: Bench,
    name: str,
    *,
    step: Step | None = None,
    finished: Callable[[Unit], None] | None = None,
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
