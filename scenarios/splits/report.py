"""What a split evaluation leaves: ``rows.parquet``, ``summary.json``, ``index.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from scenarios.run.store import Store
from scenarios.splits.attackers import Attacker
from scenarios.splits.correlations import Correlation, correlations
from scenarios.splits.figures import PERCEPTUAL, Figures, Verdict, figures_of, verdict
from scenarios.splits.measure import Bench
from scenarios.splits.rows import SCHEMA, row
from scenarios.splits.words import none_keeps, why
from splitsight.devices import device_name
from splitsight.files import write_parquet
from splitsight.metrics import METRICS
from splitsight.network import FrameLatency, NetworkProfile
from splitsight.summary import (
    MATCHED,
    Environment,
    Interval,
    MatchSummary,
    MethodSummary,
    NetworkSummary,
    Recommendation,
    SplitLatency,
    SplitLeakage,
    SplitSummary,
    SplitUtility,
    Summary,
    environment,
    write_summary,
)
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["Answer", "Report", "write_report"]

Missing = Mapping[tuple[str, str], str]
Remarks = Mapping[tuple[str, str], Sequence[str]]
_LEAKAGE = tuple(SplitLeakage.model_fields)


@dataclass(frozen=True)
class Answer:
    """What is said about one network.

    Attributes:
        verdict: the figures behind it.
        recommendation: ``None`` where no point keeps every limit.
        says: why, or which limit to relax; one sentence.
    """

    verdict: Verdict
    recommendation: Recommendation | None
    says: str


@dataclass(frozen=True)
class Report:
    """A whole evaluation.

    Attributes:
        bench: models and images.
        figures: of each point, shallow first.
        answers: one a network.
        correlations: of what is told without an attack with what attacks obtain.
        attackers: who tried.
        missing: why an attacker could not try a point, by attack and split.
        remarks: what weakened it there.
        left_out: points that were not looked at.
        notes: what was not measured anywhere, and why.
    """

    bench: Bench
    figures: Sequence[Figures]
    answers: Sequence[Answer]
    correlations: Sequence[Correlation] = ()
    attackers: Sequence[Attacker] = ()
    missing: Missing = field(default_factory=dict)
    remarks: Remarks = field(default_factory=dict)
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()


def write_report(
    store: Store,
    bench: Bench,
    rows: list[dict[str, Any]],
    *,
    profiles: Sequence[NetworkProfile],
    attackers: Sequence[Attacker],
    left_out: Sequence[str],
    missing: Missing,
    remarks: Remarks,
) -> Report:
    """Write the files of the report.

    Args:
        store: folder of the evaluation.
        bench: models and images.
        rows: of all units that are done.
        profiles: of the networks; the first one's figures stand in the summary's section ``splits``.
        attackers: who was to try.
        left_out: points that were not looked at.
        missing: why an attacker could not try a point.
        remarks: what weakened it there.
    """
    from scenarios.splits.page import render

    options = bench.options
    figures = figures_of(bench.points, rows, bench.scorer.metrics)
    answers = []
    for profile in profiles:
        found = verdict(
            figures,
            profile,
            options.limits,
            slowdown=options.edge_slowdown,
            undefended=bench.pipeline(bench.points[0]).description().defense == UNDEFENDED,
        )
        choice = found.choice
        absent = [attack for attack, split in missing if choice is not None and split == choice.split]
        weak = [attack for attack, split in remarks if choice is not None and split == choice.split]
        says = none_keeps(found) if choice is None else why(found, figures, options.limits, absent, weak)
        answers.append(Answer(found, None if choice is None else Recommendation(split=choice.split, why=says), says))
    ranked = correlations(figures)
    notes = _notes(bench, figures, attackers)
    report = Report(bench, figures, answers, ranked, attackers, missing, remarks, left_out, notes)
    table = pa.Table.from_pylist([*rows, *_aggregated(report)], schema=SCHEMA)
    write_parquet(store.folder / "rows.parquet", table)
    summary = _summary(report)
    write_summary(store.folder / "summary.json", summary)
    store.write("index.html", render(store.folder, report, summary, rows).encode())
    return report


def _aggregated(report: Report) -> list[dict[str, Any]]:
    """Figures over all images, with their intervals; latency by network; correlations."""
    found = []
    for f in report.figures:
        intervals = [("utility", None, f.utility_name, f.utility), ("utility", None, "unsplit", f.unsplit)]
        intervals += [("told", None, name, i) for name, i in f.told.items()]
        intervals += [("attack", attack, name, i) for attack, known in f.attacks.items() for name, i in known.items()]
        for part, attack, name, i in intervals:
            n = f.images.get(attack or "")
            found.append(row(f.point.name, part, name, i.mean, attack=attack, low=i.low, high=i.high, n=n))
    for answer in report.answers:
        for split, time in answer.verdict.latency.items():
            for name, value in _latency(time).model_dump().items():
                found.append(row(split, "latency", name, value, network=answer.verdict.profile.name))
    for c in report.correlations:
        about = json.dumps({"with": c.attacked})
        found.append(row("", "rank", c.told, c.rho, low=c.low, high=c.high, n=c.n, about=about))
    return found


def _latency(time: FrameLatency | None) -> SplitLatency:
    if time is None:
        return SplitLatency(edge=None, network=None, cloud=None, total=None)
    return SplitLatency(edge=time.edge_ms, network=time.network_ms, cloud=time.cloud_ms, total=time.total_ms)


def _summary(report: Report) -> Summary:
    bench, options, first = report.bench, report.bench.options, report.answers[0]
    splits = []
    for f in report.figures:
        told = {name: i.mean for name, i in f.told.items()}
        splits.append(
            SplitSummary(
                split=f.point.name,
                bytes={codec: round(size) for codec, size in f.bytes.items()},
                latency_ms=_latency(first.verdict.latency.get(f.point.name)),
                utility=SplitUtility(name=f.utility_name, value=f.utility.mean, unsplit=f.unsplit.mean),
                leakage={attack: SplitLeakage(**_means(known)) for attack, known in f.attacks.items()},
                sensitivity=told.get("sensitivity"),
                dfil=told.get("dfil"),
                fsinfo=told.get("fsinfo"),
                pareto=f.point.name in first.verdict.front,
            )
        )
    networks = {
        answer.verdict.profile.name: NetworkSummary(
            latency_ms={split: _latency(time) for split, time in answer.verdict.latency.items()},
            pareto=[f.point.name for f in report.figures if f.point.name in answer.verdict.front],
            recommendation=answer.recommendation,
        )
        for answer in report.answers
    }
    models = bench.models
    digests = {**models.loaded(), **{f"evaluator:{e.name}": e.digest for e in bench.evaluators}}
    run = {
        "command": options.command,
        "networks": {a.verdict.profile.name: a.verdict.profile.model_dump(mode="json") for a in report.answers},
        "edge_slowdown": options.edge_slowdown,
        "limits": [f"{limit.option}{limit.value:g}" for limit in options.limits],
        "images": bench.pictures.source,
        "defense": options.defense,
        "codec": f"{options.codec.dtype}, {options.codec.compression}",
        "quick": options.quick,
        "seed": options.seed,
        "left_out": list(report.left_out),
        "missing": [f"{attack} at {split}: {reason}" for (attack, split), reason in report.missing.items()],
        "remarks": [f"{a} at {split}: {'; '.join(texts)}" for (a, split), texts in report.remarks.items()],
        "notes": list(report.notes),
    }
    return Summary(
        target=models.target.name,
        split=", ".join(f.point.name for f in report.figures),
        methods={
            f"{attack} at {f.point.name}": _method(report, f, attack) for f in report.figures for attack in f.attacks
        },
        splits=splits,
        recommendation=first.recommendation,
        networks=networks if len(networks) > 1 else None,
        environment=Environment.model_validate(
            environment(digests, device_name(models.device)) | {"run": run, "threads": torch.get_num_threads()}
        ),
    )


def _means(known: Mapping[str, Interval]) -> dict[str, float | None]:
    """What the contract names, and distances in somebody else's features where there are any."""
    found = {name: known[name].mean if name in known else None for name in _LEAKAGE}
    return found | {name: known[name].mean for name in PERCEPTUAL if name in known}


def _method(report: Report, f: Figures, attack: str) -> MethodSummary:
    known, effort = f.attacks[attack], f.effort[attack]
    match = None
    if set(MATCHED) <= set(known):
        inputs, evaluator = report.bench.pictures.inputs, report.bench.evaluators[0]
        tops = {key: known[name] for name, key in MATCHED.items()}
        match = MatchSummary(gallery=len(inputs.rivals(0)) + 1, features=f"{evaluator.name}-penultimate", **tops)
    figures = {name: i for name, i in known.items() if name not in MATCHED}
    return MethodSummary.model_validate(
        {
            "n": f.images[attack],
            "seconds_per_image": effort["seconds"],
            "iterations": effort["iterations"],
            "model_evaluations": effort["model_evaluations"],
            "match": match,
            **figures,
        }
    )


def _notes(bench: Bench, figures: Sequence[Figures], attackers: Sequence[Attacker]) -> list[str]:
    """What was measured nowhere, and why; each one sentence without its full stop."""
    pictures, notes = bench.pictures, []
    if not attackers:
        notes.append("nothing was attacked: give --attacks, or leave --attacks none out")
    if attackers and not bench.evaluators:
        notes.append(
            "recognition and matching were not measured, since there is no evaluator: give one with --evaluator"
        )
    elif attackers and pictures.matching:
        notes.append(pictures.matching)
    if attackers:
        seen = {name for f in figures for known in f.attacks.values() for name in known}
        if not seen & set(PERCEPTUAL):
            least = METRICS.get("lpips").missing() or "LPIPS takes images of 63 pixels or more"
            notes.append(f"no perceptual distance was measured: {least}; or give --evaluator efficientnet-lite0, too")
    if pictures.labelling:
        notes.append(f"utility is agreement with the uncut network, since {pictures.labelling}")
    uncut, chance = figures[0].unsplit.mean, 1 / max(1, len(bench.models.target.labels))
    if not pictures.labelling and uncut is not None and uncut <= 2 * chance:
        notes.append(
            f"the uncut network is right for {uncut:.1%} of the images, about what guessing is: give trained weights "
            "with --weights, or images whose labels are its classes"
        )
    if pictures.clip:
        notes.append("frames of one clip are alike: intervals say how far other frames of it would differ, no more")
    return notes
