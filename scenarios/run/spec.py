"""What a scenario may say: YAML, checked key by key.

A scenario is a list of *cells*. Each key of a cell may be a list, and stands for one cell a value (``split: [L4, L8]``
with ``method: [do, db]`` is four cells); a value that is itself a list is written as a list in a list. The section
``quick`` is laid over the rest by ``--quick``: sections are merged, lists are replaced.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from splitsight.errors import UserError
from splitsight.registry import PathRegistry
from splitsight.specification import target_name
from splitsight.wire.sessions import UNDEFENDED

__all__ = [
    "SCENARIOS",
    "Cell",
    "Comparison",
    "Data",
    "PaperRow",
    "Scenario",
    "Training",
    "load_scenario",
    "read_scenario",
    "renamed",
]

_SUFFIX = ".yaml"
_FORMER = {"judge": "evaluator"}
"""Former names of a scenario's keys."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Data(_Part):
    """What is attacked.

    Attributes:
        kind: still images, or windows of frames out of clips.
        path: Parquet file or folder of images; for clips a video or a folder of videos. Usually left to ``--data``.
        count: images; for clips, windows of each clip.
        gallery: images, at most, among which a reconstruction must be matched to its original.
        rivals: for clips, Parquet file or folder of images that the others of a gallery are drawn from; by default
            they are frames of other clips.
        seed: of the draw.
        frames: K of a window.
        stride: seconds between the frames of a window.
    """

    kind: Literal["images", "clips"] = "images"
    path: Path | None = None
    count: int = Field(default=64, ge=1)
    gallery: int = Field(default=1000, ge=2)
    rivals: Path | None = None
    seed: int = 0
    frames: int = Field(default=4, ge=1)
    stride: float = Field(default=0.5, gt=0)


class Training(_Part):
    """How the networks that attacks need are trained, all of a kind with the same budget.

    Attributes:
        data: pictures to ask the oracle about; usually left to ``--train-data``.
        queries: pictures to train on.
        test_queries: pictures to measure the training with.
        unasked: further pictures that net-best learns from without asking; ``None`` for its own default.
        minutes: of each network; on a CPU, minutes in which it computes, however long others have the core.
        steps: of each network, where that is less.
        seed: of weights and draws.
        initial_minutes: of each inversion network that white-box attackers start from, one for each defence that they
            know, gone on with from the one for undefended features; minutes of computing. ``None`` takes what is there.
    """

    data: Path | None = None
    queries: int = Field(default=4096, ge=16)
    test_queries: int = Field(default=1024, ge=16)
    unasked: int | None = Field(default=None, ge=0)
    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    seed: int = 0
    initial_minutes: float | None = Field(default=None, gt=0)


class Cell(_Part):
    """One attack in one setting on one kind of features.

    Attributes:
        method: name out of ``splitsight list attacks``.
        setting: its named setting; ``None`` for its own default.
        split: split point; also any cut that the network's graph has, and ``output`` for its logits.
        target: attacked network, as ``--target`` takes it, where it is not the scenario's: of the same input size.
        prompt: template of the text prior, or several candidates, of which the one with the lowest loss is kept for
            each image. ``{class}`` is the image's class, ``{other}`` another one, ``{background}`` words for what its
            pixels show beside the object. Empty: no text.
        options: (``with`` in YAML) values laid over the setting's.
        defense: what the edge does to the features, by name and parameters, as ``--defense`` takes it.
        adaptive: the attacker was told the defence and its parameters, and his networks were trained on what it lets
            through; ``false`` for one who believes that there is none, which says nothing about the defence's strength.
        static: T, the edge sends each image so many times (a scene that stands still) and the attacker averages.
        count: of the images or windows, only so many first ones; ``None`` for all.
        batch: images solved side by side (a unit of work that a kill costs at most); ``None`` for the scenario's.
        seconds: an image may take, on a CPU seconds in which it computes; ``None`` for no limit.
        curve: keep the loss at every step.
        network: file of a black-box attack's network; by default the scenario's ``train`` makes it, and without that
            section it is the package's, or the cache's.
        trained: take the scenario's own network; ``false`` for the package's or the cache's.
        queries: pictures that the network learnt from; ``None`` for as many as ``train`` says.
        training: named setting of its training, or values laid over one (the key ``setting`` says which one); ``None``
            for the default.
        optional: leave the cell out, and say so, where this machine cannot run it (no such network).
        label: how tables call it; made from the rest by default.
    """

    method: str
    setting: str | None = None
    split: str = "L8"
    target: str | None = None
    prompt: str | tuple[str, ...] = ""
    options: dict[str, Any] = Field(default_factory=dict, alias="with")
    defense: str = UNDEFENDED
    adaptive: bool = True
    static: int = Field(default=1, ge=1)
    count: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    curve: bool = False
    network: Path | None = None
    trained: bool = True
    queries: int | None = Field(default=None, ge=16)
    training: str | dict[str, Any] | None = None
    optional: bool = False
    label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _noise(cls, value: Any) -> Any:
        return _defended(value) if isinstance(value, dict) else value

    @field_validator("defense")
    @classmethod
    def _known_defense(cls, value: str) -> str:
        return _canonical(value)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The candidates, at least one."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def training_name(self) -> str:
        """How tables call its training; empty for the default."""
        if not isinstance(self.training, dict):
            return self.training or ""
        changed = [f"{key} {_short(value)}" for key, value in self.training.items() if key != "setting"]
        return ", ".join([*filter(None, [self.training.get("setting")]), *changed])

    @property
    def name(self) -> str:
        """How tables call it, beside its split."""
        if self.label:
            return self.label
        parts = [self.method, self.setting or ""]
        parts += [f"{key} {_short(value)}" for key, value in self.options.items()]
        if self.training:
            parts.append(f"trained {self.training_name}")
        if self.queries:
            parts.append(f"{self.queries} queries")
        if not self.trained:
            parts.append("as it ships")
        if any(self.prompts):
            parts.append(" | ".join(f"“{p}”" for p in self.prompts))
        if self.defense != UNDEFENDED:
            parts.append(f"against {self.defense}")
        if not self.adaptive:
            parts.append("not told of it")
        if self.static > 1:
            parts.append(f"over {self.static} still frames")
        if self.target:
            parts.append(f"of {self.target}")
        return " ".join(p for p in parts if p)

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Whether all these keys have these values; ``with`` compares the keys it names."""
        for key, value in wanted.items():
            if key == "with":
                if any(self.options.get(k) != v for k, v in value.items()):
                    return False
            elif getattr(self, key) != (tuple(value) if isinstance(value, list) else value):
                return False
        return True


def _canonical(defense: str) -> str:
    """A defence in the form in which sessions carry it.

    Raises:
        ValueError: no such defence, or parameters that it cannot have.
    """
    from splitsight.defenses import parse_defense  # imported where it is needed, since PyTorch comes with it

    try:
        return str(parse_defense(defense))
    except UserError as error:
        raise ValueError(str(error)) from error


def _defended(keys: dict[str, Any]) -> dict[str, Any]:
    """Keys of a cell or a selector, with the former key ``noise`` as the defence that it stood for."""
    if "noise" not in keys:
        return keys
    if "defense" in keys:
        raise ValueError("'noise' is the former name of a defence: give 'defense' alone")
    level = keys["noise"]
    if isinstance(level, bool) or not isinstance(level, int | float) or level < 0:
        raise ValueError(f"'noise' takes a number from 0, not {level!r}")
    rest = {key: value for key, value in keys.items() if key != "noise"}
    return rest | {"defense": f"gaussian:ratio={level:g}" if level else UNDEFENDED}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Figures(_Part):
    """Figures by the names of metrics."""

    model_config = ConfigDict(extra="allow")
    # pydantic's way of saying what further keys hold
    __pydantic_extra__: dict[str, float | None] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def figures(self) -> dict[str, float]:
        """By metric."""
        return {name: value for name, value in (self.__pydantic_extra__ or {}).items() if value is not None}

    @model_validator(mode="after")
    def _measured(self) -> Self:
        from splitsight.metrics import METRICS  # imported where it is needed, since PyTorch comes with it

        for name in self.figures:
            if name not in METRICS.names():
                raise ValueError(f"'{name}' is no metric: choose one of {', '.join(METRICS.names())}")
        return self


class PaperRow(_Figures):
    """Figures of the paper, shown beside ours and marked as its own; further keys are names of metrics.

    Attributes:
        label: method, as the paper calls it.
        split: the split it is for; ``None`` is in no table of ours.
    """

    label: str
    split: str | None = None


class PaperGain(_Figures):
    """A difference that the paper reports; further keys are names of metrics.

    Attributes:
        note: what it was measured on.
    """

    note: str = ""


_Selector = dict[str, Any]


class Comparison(_Part):
    """The difference between two cells on the same images, paired.

    Attributes:
        name: what is compared.
        of: keys and values that select cells.
        to: likewise; the difference is ``of − to``, at each split (unless both name one) and behind each defence
            (unless they name one) that both have.
        by_clip: also for each clip.
        paper: what the paper reports for it.
    """

    name: str
    of: _Selector
    to: _Selector
    by_clip: bool = False
    paper: PaperGain | None = None

    @field_validator("of", "to")
    @classmethod
    def _known(cls, value: _Selector) -> _Selector:
        value = _defended(value)
        if "defense" in value:
            value = value | {"defense": _canonical(value["defense"])}
        keys = [*(k for k in Cell.model_fields if k != "options"), "with"]
        for key in value:
            if key not in keys:
                raise ValueError(f"'{key}' is no key of a cell; it has {', '.join(keys)}")
        return value


class Scenario(_Part):
    """A whole scenario.

    Attributes:
        title: heading of the report.
        about: one line for ``splitsight list scenarios``; the title where it is left out.
        source: what of the paper it reproduces, if anything.
        target: attacked network, as ``--target`` takes it.
        weights: its weights, a file; the embedded ones by default.
        prior: generative prior, a name or a folder.
        evaluator: independent classifier, a name or a folder, or several of them; ``None`` measures neither recognition
            nor matching.
        seed: of all draws of the attacks.
        batch: images solved side by side.
        seconds: an image may take, where its cell does not say.
        data: what is attacked.
        train: how black-box networks that are missing are trained; ``None`` trains none.
        cells: expanded, one a combination.
        compare: paired differences to report.
        paper: the paper's own figures.
    """

    title: str
    about: str = ""
    source: str = ""
    target: str = "resnet18"
    weights: Path | None = None
    prior: str = "small"
    evaluator: str | tuple[str, ...] | None = "mbconv"
    seed: int = 0
    batch: int = Field(default=8, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    data: Data = Field(default_factory=Data)
    train: Training | None = None
    cells: list[Cell] = Field(min_length=1)
    compare: list[Comparison] = Field(default_factory=list)
    paper: list[PaperRow] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("cells"), list):
            return {**value, "cells": [cell for group in value["cells"] for cell in _product(group)]}
        return value

    @model_validator(mode="after")
    def _still(self) -> Scenario:
        if self.data.kind == "clips" and any(cell.static > 1 for cell in self.cells):
            raise ValueError("'static' repeats still images: leave it out where the data are of kind 'clips'")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Scenario:
        seen: set[tuple[str, str]] = set()
        for cell in self.cells:
            key = cell.split, cell.name
            if key in seen:
                raise ValueError(f"two cells at {cell.split} are called '{cell.name}': give one of them a label")
            seen.add(key)
        return self

    @property
    def evaluators(self) -> tuple[str, ...]:
        """Names or folders; empty for none."""
        given = () if self.evaluator is None else self.evaluator
        return (given,) if isinstance(given, str) else given

    def targets(self, split: str | None = None) -> str:
        """Names of the networks that its cells attack, at one split or at all, separated by commas."""
        cells = [cell for cell in self.cells if split in (None, cell.split)]
        return ", ".join(dict.fromkeys(target_name(cell.target or self.target) for cell in cells))

    def dump(self) -> dict[str, Any]:
        """Plain data as YAML takes it; reading it again gives the same scenario."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        data.setdefault("evaluator", None)  # which is not the default
        for cell in data["cells"]:
            # a list means one cell a value, so a list that is one value goes into another list
            if isinstance(cell["prompt"], list):
                cell["prompt"] = [cell["prompt"]]
            cell["with"] = {k: [v] if isinstance(v, list) else v for k, v in cell["with"].items()}
        return data


def _product(group: Any) -> list[Any]:
    """The cells that one entry of ``cells`` stands for."""
    if not isinstance(group, dict):
        return [group]
    options = group.get("with", {})
    if not isinstance(options, dict):
        return [group]
    axes = [[(None, key, v) for v in _values(value)] for key, value in group.items() if key != "with"]
    axes += [[("with", key, v) for v in _values(value)] for key, value in options.items()]
    cells = []
    for combination in itertools.product(*axes):
        cell: dict[str, Any] = {}
        for section, key, value in combination:
            (cell.setdefault(section, {}) if section else cell)[key] = value
        cells.append(cell)
    return cells


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _own() -> dict[str, Path]:
    return {file.stem: file for file in Path(__file__).parents[1].glob(f"*{_SUFFIX}")}


SCENARIOS = PathRegistry("scenario", _own)
"""Scenarios by name: those of this package, and those that others name by an entry point ``splitsight.scenarios``."""


def _text(scenario: str) -> tuple[str, str]:
    """The YAML of a scenario by name or path, and its short name."""
    path = Path(scenario)
    try:
        if path.suffix in (_SUFFIX, ".yml"):
            return path.read_text(encoding="utf-8"), path.stem
        if scenario in SCENARIOS.names():
            path = SCENARIOS.get(scenario)
            return path.read_text(encoding="utf-8"), scenario
    except OSError as error:
        raise UserError(f"the scenario {path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: a scenario is YAML in UTF-8") from error
    raise UserError(
        f"unknown scenario '{scenario}': choose one of {', '.join(SCENARIOS.names())}, or give a .yaml file"
    )


def read_scenario(scenario: str) -> tuple[dict[str, Any], str]:
    """A scenario as plain data, unchecked, and its short name.

    Args:
        scenario: a name out of ``splitsight list scenarios``, or the path of a ``.yaml`` file.

    Raises:
        UserError: no such scenario, unreadable, or not YAML.
    """
    text, name = _text(scenario)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{scenario} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{scenario} is not a scenario: it must hold keys such as 'title' and 'cells'")
    for section in (data, data.get("quick")):
        for former, key in renamed(section).items():
            print(f"splitsight: {scenario}: the key '{former}' is now called '{key}'", file=sys.stderr)
    return data, name


def renamed(data: Any) -> dict[str, str]:
    """Give the keys of a scenario their present names, in place.

    Returns:
        Former name → present name of those that were there.
    """
    found = {former: key for former, key in _FORMER.items() if isinstance(data, dict) and former in data}
    for former, key in found.items():
        data.setdefault(key, data.pop(former))
    return found


def load_scenario(
    data: dict[str, Any], *, name: str = "the scenario", quick: bool = False, changes: dict[str, Any] | None = None
) -> Scenario:
    """Merge and check a scenario.

    Args:
        data: as :func:`read_scenario` returns it.
        name: for messages.
        quick: lay its section ``quick`` over the rest.
        changes: laid over both, as ``quick`` is.

    Raises:
        UserError: an unknown key or a value that does not fit, by name.
    """
    data = dict(data)
    override = data.pop("quick", None)
    whole = _check(data, name)
    if override is not None:
        if not isinstance(override, dict):
            raise UserError(f"{name}: 'quick' must be a section of keys")
        # checked even where it is not asked for, so that a mistake does not wait for that day
        small = _merge(data, override)
        checked = _check(small, f"{name} with its section 'quick'")
        if quick:
            data, whole = small, checked
    elif quick:
        raise UserError(f"{name} has no section 'quick': run it without --quick, perhaps with --limit")
    return _check(_merge(data, changes), name) if changes else whole


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check(data: dict[str, Any], name: str) -> Scenario:
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{name}: unknown key '{where}': remove it or check its spelling") from error
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{name}: {where + ': ' if where else ''}{what[:1].lower()}{what[1:]}") from error
