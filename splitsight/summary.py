"""``summary.json``: what a program reads of a run, schema ``splitsight.summary/1``.

Sections that a command has nothing to say about (an attack on images serves no frames) are left out; a figure
that could not be measured (no originals to compare with) is ``null``. NaN and infinity are never written.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitsight.errors import UserError
from splitsight.files import write_json

__all__ = [
    "SCHEMA",
    "CellSummary",
    "ComparisonSummary",
    "DefenseAttack",
    "DefenseSummary",
    "DefenseUtility",
    "Environment",
    "EpsilonSummary",
    "Interval",
    "Lag",
    "LiveSummary",
    "MatchSummary",
    "MethodSummary",
    "NetworkSummary",
    "Probed",
    "Reached",
    "Recommendation",
    "ScenarioSummary",
    "ServingSummary",
    "SpeedSummary",
    "SplitLatency",
    "SplitLeakage",
    "SplitSummary",
    "SplitUtility",
    "Strongest",
    "Summary",
    "TierSummary",
    "UndefendedSummary",
    "environment",
    "read_summary",
    "write_summary",
]

SCHEMA = "splitsight.summary/1"

_SECTIONS = ("serving", "live", "scenario", "speed", "splits", "networks", "defenses")
_OF_DEFENSES = ("epsilon", "undefended")
"""What the live section says of runs with a defence only."""
_PACKAGES = ("splitsight", "torch", "torchvision", "torchmetrics", "diffusers", "transformers", "numpy", "grpcio")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Interval(_Part):
    """Mean over images with its 95 % interval; all null where nothing was measured."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None


class MatchSummary(_Part):
    """How often a reconstruction finds its original; see :mod:`splitsight.metrics.gallery`.

    Attributes:
        gallery: images that an original is found among, itself included.
        features: where images were compared.
        top1: part found first, in [0, 1], with its 95 % Wilson interval.
        top5: part found among the first five.
    """

    gallery: int = Field(ge=2)
    features: str
    top1: Interval
    top5: Interval


MATCHED = {"matched_top1": "top1", "matched_top5": "top5"}
"""Metrics that stand in the section ``match``."""


class MethodSummary(_Part):
    """One method's figures. Further metrics (:data:`splitsight.metrics.METRICS`) stand beside these, by name.

    Attributes:
        n: images.
        psnr: dB.
        psnr_eq14: equation 14 of the paper, see :mod:`splitsight.metrics.image`.
        ssim: structural similarity, at most 1.
        seconds_per_image: wall-clock time.
        iterations: optimiser steps, mean over windows or images.
        model_evaluations: forward passes through F1, mean over windows or images.
        match: finding the right image among many, where a gallery was given.
    """

    model_config = ConfigDict(extra="allow")
    # pydantic's way of saying what further keys hold
    __pydantic_extra__: dict[str, Interval | None] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    n: int = Field(ge=0)
    psnr: Interval | None = None
    psnr_eq14: Interval | None = None
    ssim: Interval | None = None
    seconds_per_image: float | None = None
    iterations: float | None = None
    model_evaluations: float | None = None
    match: MatchSummary | None = None

    def interval(self, metric: str) -> Interval | None:
        """A metric's figure, by name; ``None`` where it was not measured."""
        if metric in MATCHED:
            return None if self.match is None else getattr(self.match, MATCHED[metric])
        return getattr(self, metric, None)


class ServingSummary(_Part):
    """What the edge saw: frames sent, answers lost, answered frames a second, round-trip times in ms."""

    frames: int = Field(ge=0)
    lost: int = Field(ge=0)
    fps: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class Lag(_Part):
    """Milliseconds from when the adversary had a frame (the last one of a window) until its image was a file.

    Median and 99th percentile. What comes before, from capture to the tap, is not counted.
    """

    p50: float | None = None
    p99: float | None = None


class TierSummary(_Part):
    """Quality of one live tier; a method's figures may stand beside it."""

    model_config = ConfigDict(extra="allow")

    n: int | None = Field(default=None, ge=0)
    psnr: Interval | None = None
    psnr_eq14: Interval | None = None
    ssim: Interval | None = None
    lag_ms: Lag | None = None
    match: MatchSummary | None = None


class EpsilonSummary(_Part):
    """What a defence that guarantees something has let out.

    Attributes:
        frame: ε of one frame.
        stream: ε of all frames together, with those that a ledger brought from earlier sessions.
        delta: δ of both.
        frames: that ``stream`` is of.
        budget: largest ε that the stream was allowed.
    """

    frame: float | None = None
    stream: float | None = None
    delta: float | None = None
    frames: int | None = Field(default=None, ge=0)
    budget: float | None = None


class UndefendedSummary(_Part):
    """The same frames played without the defence.

    Attributes:
        frames: answered in both runs.
        agreement: part of them whose answer's class is the same, in [0, 1], with its 95 % Wilson interval; null for a
            task that names no class.
        tiers: quality of the reconstructions without the defence.
    """

    frames: int = Field(ge=0)
    agreement: Interval | None = None
    tiers: dict[str, TierSummary] = Field(default_factory=dict)


class LiveSummary(_Part):
    """The adversary's windows: how many, how many before the next was complete, their lag, quality a tier.

    ``frames_skipped``: frames that a tier had no time for, by tier; all of them are in the recording.
    """

    windows: int = Field(ge=0)
    windows_on_time: int = Field(ge=0)
    lag_ms: Lag = Field(default_factory=Lag)
    frames_skipped: dict[str, int] = Field(default_factory=dict)
    tiers: dict[str, TierSummary] = Field(default_factory=dict)
    epsilon: EpsilonSummary | None = None
    undefended: UndefendedSummary | None = None


class CellSummary(MethodSummary):
    """One cell of a scenario: a method in one setting at one split.

    Attributes:
        cell: its identifier within the run, as in ``rows.parquet``.
        label: how tables call it, beside its split.
        split: split point.
        method: name of the attack.
        setting: its named setting.
        prompt: template of the text prior; empty for none.
        defense: what the edge did to the features.
        noise: strength of a defence that is Gaussian noise and nothing else, as a part of the features' spread.
        options: values laid over the setting's.
        planned: images, once the run is complete.
        lpips: see :mod:`splitsight.metrics.perceptual`.
        recognised: part that the evaluator puts into the right class, with its 95 % Wilson interval.
        scores: of the set of reconstructions, by name (``inception_score_<evaluator>``, ``frechet_<evaluator>``,
            ``kernel_<evaluator>``).
    """

    cell: str
    label: str
    split: str
    method: str
    setting: str
    prompt: str = ""
    defense: str = "identity"
    noise: float = 0.0
    options: dict[str, Any] = Field(default_factory=dict)
    planned: int = Field(default=0, ge=0)
    lpips: Interval | None = None
    recognised: Interval | None = None
    scores: dict[str, float] = Field(default_factory=dict)


class ComparisonSummary(_Part):
    """The difference between two cells on the same images.

    Attributes:
        name: what is compared.
        split: where.
        defense: behind which; empty where the two sides' own are compared.
        noise: as in :class:`CellSummary`.
        clip: only in this clip; ``None`` for all images.
        n: pairs.
        differences: by measure, mean over the pairs with its 95 % interval.
        paper: what the paper reports for it.
    """

    name: str
    split: str
    defense: str = ""
    noise: float = 0.0
    clip: str | None = None
    n: int = Field(ge=0)
    differences: dict[str, Interval] = Field(default_factory=dict)
    paper: dict[str, Any] | None = None


class ScenarioSummary(_Part):
    """A run of a scenario.

    Attributes:
        name: of the scenario.
        title: its heading.
        quick: whether this is its quick form, which shows that it works and no more.
        complete: whether every row that was planned is there.
        cells: figures, in the scenario's order.
        originals: scores of the set of originals, by name.
        comparisons: paired differences.
        skipped: cells that this machine could not run, and why.
        notes: what could not be measured here, and why.
    """

    name: str
    title: str
    quick: bool = False
    complete: bool = True
    cells: list[CellSummary] = Field(default_factory=list)
    originals: dict[str, float] = Field(default_factory=dict)
    comparisons: list[ComparisonSummary] = Field(default_factory=list)
    skipped: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


class Reached(_Part):
    """When one method's mean quality first was another's final one; null where it never was.

    Attributes:
        seconds: of its own time, an image.
        model_evaluations: an image.
        part_of_seconds: of the other's whole run.
        part_of_evaluations: of the other's whole run.
        reference_first_seconds: when the other one itself first had that quality, which may be before its end.
        reference_first_evaluations: likewise.
    """

    seconds: float | None = None
    model_evaluations: float | None = None
    part_of_seconds: float | None = None
    part_of_evaluations: float | None = None
    reference_first_seconds: float | None = None
    reference_first_evaluations: float | None = None


class SpeedSummary(_Part):
    """How fast one method (the subject) has another's (the reference's) final quality; see :mod:`scenarios.benchmark`.

    Attributes:
        reference: name among ``methods``.
        subject: likewise.
        psnr: the reference's at its end, dB, mean over images.
        ssim: likewise.
        seconds: the reference's whole run, an image.
        model_evaluations: likewise.
        reached_psnr: when the subject first had that PSNR.
        reached_ssim: when it first had that SSIM.
        reached: when it first had both at once.
        goal: part of the reference's time and evaluations that ``reached`` is to stay within.
        met: whether it does; null where a run was cut short, which proves nothing.
        cut: methods that did fewer iterations than their setting has: done, of.
        batch: images solved side by side.
        threads: of the computation.
        sittings: processes that the measurement took; more than one where it was stopped and gone on with.
    """

    reference: str
    subject: str
    psnr: float | None
    ssim: float | None
    seconds: float
    model_evaluations: float
    reached_psnr: Reached
    reached_ssim: Reached
    reached: Reached
    goal: float
    met: bool | None = None
    cut: dict[str, list[int]] = Field(default_factory=dict)
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    sittings: int = Field(default=1, ge=1)


class SplitLatency(_Part):
    """Milliseconds from a captured frame to its answer: of the edge, the network, the cloud, and all of it."""

    edge: float | None
    network: float | None
    cloud: float | None
    total: float | None


class SplitUtility(_Part):
    """What the cut network is good for, and the uncut one, by the same measure."""

    name: str
    value: float | None
    unsplit: float | None


class SplitLeakage(_Part):
    """Means over images of what one attack obtains; null where it was not measured. Further metrics stand beside."""

    model_config = ConfigDict(extra="allow")

    psnr: float | None = None
    ssim: float | None = None
    matched_top1: float | None = None
    recognised: float | None = None


class DefenseUtility(_Part):
    """What a defence leaves of a network's use.

    Attributes:
        name: ``accuracy`` on labelled images, or the agreement with the undefended network's answers.
        n: images.
        accuracy: with the defence.
        accuracy_undefended: without it, on the same images.
    """

    name: str
    n: int = Field(ge=1)
    accuracy: float
    accuracy_undefended: float


class DefenseAttack(_Part):
    """What one attacker obtained; means over his images.

    Attributes:
        adaptive: whether he was told the defence and its parameters.
        threat: ``white-box`` or ``black-box``.
        static: frames of a static scene that he averaged; 1 for a single frame.
        n: images.
        psnr: dB.
        ssim: at most 1.
        matched_top1: part of the originals that their reconstruction finds first in a gallery.
        recognised: part that the evaluator puts into the right class; of further evaluators as ``recognised:NAME``.
    """

    model_config = ConfigDict(extra="allow")

    adaptive: bool
    threat: str
    static: int = Field(default=1, ge=1)
    n: int = Field(ge=1)
    psnr: float | None = None
    ssim: float | None = None
    matched_top1: float | None = None
    recognised: float | None = None


class SplitSummary(_Part):
    """One split point.

    Attributes:
        split: its name.
        bytes: of a frame's message, by codec.
        latency_ms: over the first network that was asked for.
        utility: of the cut and the uncut network.
        leakage: by attack; an attack that could not try there is missing.
        sensitivity: tr(JᵀJ)/d of F1, mean over images.
        dfil: the same over the noise's variance; null without noise, where it is infinite.
        fsinfo: null where it was not measured.
        pareto: whether no other point is as fast, leaks as little and is as useful, and better in one of them.
    """

    split: str
    bytes: dict[str, int] = Field(default_factory=dict)
    latency_ms: SplitLatency
    utility: SplitUtility
    leakage: dict[str, SplitLeakage] = Field(default_factory=dict)
    sensitivity: float | None = None
    dfil: float | None = None
    fsinfo: float | None = None
    pareto: bool = False


class Recommendation(_Part):
    """The split point that a rule chose, and why, in one sentence."""

    split: str
    why: str


class NetworkSummary(_Part):
    """What changes over another network: latency by split, the Pareto front, the recommendation."""

    latency_ms: dict[str, SplitLatency] = Field(default_factory=dict)
    pareto: list[str] = Field(default_factory=list)
    recommendation: Recommendation | None = None


class Strongest(_Part):
    """The attack with the highest mean SSIM over the images that all attacks on the defence have in common.

    Another attack may find or recognise more originals: ``most`` has the largest mean over all attacks on the same
    images, by measure (``matched_top1``, ``recognised``, ``recognised:EVALUATOR``).
    """

    attack: str
    ssim: float
    n: int = Field(ge=1)
    psnr: float | None = None
    matched_top1: float | None = None
    recognised: float | None = None
    most: dict[str, float] = Field(default_factory=dict)


class Probed(_Part):
    """What a linear probe reads from features: mean balanced accuracy over ``n`` attributes, and that of a guess."""

    name: str
    value: float
    guess: float
    n: int


class DefenseSummary(_Part):
    """A defence at a split; see :mod:`scenarios.defend`.

    Attributes:
        defense: in the form that ``--defense`` takes; ``identity`` is the undefended reference.
        split: split point.
        config: its parameters, by the name of each part.
        utility: what is left of the network's use.
        attacks: by name.
        strongest: of these.
        adapting: how much more SSIM the best attacker who was told has than the best who was not, on the same images.
        attribute: what a probe reads without pixels; ``None`` where there was nothing to train one on.
        epsilon: of a frame; ``None`` where nothing is proven.
        delta: likewise.
        guarantees: what is proven, in sentences.
        bytes: that leave for a frame, as they are.
        bytes_zstd: packed.
        edge_ms: median time of the edge for a frame.
        dominated: whether another defence at the split keeps at least as much utility and gives away at most as much,
            and is better in one of both.
        left_out: attacks that could not run, and why.
    """

    defense: str
    split: str
    config: dict[str, dict[str, Any]] = Field(default_factory=dict)
    utility: DefenseUtility
    attacks: dict[str, DefenseAttack] = Field(default_factory=dict)
    strongest: Strongest | None = None
    adapting: Interval | None = None
    attribute: Probed | None = None
    epsilon: float | None = None
    delta: float | None = None
    guarantees: list[str] = Field(default_factory=list)
    bytes: float
    bytes_zstd: float
    edge_ms: float
    dominated: bool = False
    left_out: dict[str, str] = Field(default_factory=dict)


class Environment(_Part):
    """Where the figures come from; a run may add its own settings, and ``device``, what attacks computed on.

    Attributes:
        versions: of Python and of the packages that compute.
        cores: CPU cores that this process may use.
        weights: digest of each model, by role (``target``, ``prior``, …).
    """

    model_config = ConfigDict(extra="allow")

    versions: dict[str, str] = Field(default_factory=dict)
    cores: int | None = None
    weights: dict[str, str] = Field(default_factory=dict)


class Summary(_Part):
    """The whole file."""

    schema_: Literal["splitsight.summary/1"] = Field(default=SCHEMA, alias="schema")
    target: str
    split: str
    methods: dict[str, MethodSummary] = Field(default_factory=dict)
    serving: ServingSummary | None = None
    live: LiveSummary | None = None
    scenario: ScenarioSummary | None = None
    speed: SpeedSummary | None = None
    splits: list[SplitSummary] | None = None
    recommendation: Recommendation | None = None
    networks: dict[str, NetworkSummary] | None = None
    defenses: list[DefenseSummary] | None = None
    environment: Environment = Field(default_factory=Environment)

    def to_dict(self) -> dict[str, Any]:
        """Plain data as it is written: empty sections left out, figures that are not finite ``None``."""
        data = _finite(self.model_dump(by_alias=True))
        for part in (*data["methods"].values(), *((data["live"] or {}).get("tiers") or {}).values()):
            if part["match"] is None:
                del part["match"]
        if data["splits"] is None:  # beside splits, none is an answer: no point keeps the limits
            del data["recommendation"]
        for name in _OF_DEFENSES:
            if data["live"] is not None and data["live"][name] is None:
                del data["live"][name]
        return {k: v for k, v in data.items() if not (k in _SECTIONS and v is None)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(weights: Mapping[str, str] | None = None, device: str | None = None) -> dict[str, Any]:
    """Versions, cores, and the given digests, in the form of :class:`Environment`.

    Args:
        weights: digest by role, e.g. ``{"target": target.digest}``.
        device: what attacks computed on, as :func:`splitsight.devices.device_name` calls it.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # an optional part that is not installed computes nothing
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        **({} if device is None else {"device": device}),
        "weights": dict(weights or {}),
    }


def write_summary(path: Path, summary: Summary | Mapping[str, Any]) -> None:
    """Write ``summary.json``; the file appears complete or not at all.

    Args:
        path: where; its folder is created.
        summary: a summary, or plain data in that form.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
        pydantic.ValidationError: the data are not in the form of the schema.
    """
    whole = summary if isinstance(summary, Summary) else Summary.model_validate(dict(summary))
    write_json(path, whole.to_dict(), sync=True)


def read_summary(path: Path) -> Summary:
    """Read ``summary.json``.

    Raises:
        UserError: missing, or not in the form of the schema.
    """
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no summary at {path} ({error.strerror}): give a run's folder") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "the file"
        raise UserError(f"{path} is not a {SCHEMA} file: {where}: {first['msg']}") from error
