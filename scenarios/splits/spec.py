"""What a split evaluation is asked for, and the limits that a user sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adversary.priors.prior import EMBEDDED
from scenarios.splits.recommend import LATENCY, UTILITY, Limit
from splitsight.errors import UserError, unknown_name
from splitsight.evaluators import EMBEDDED as EVALUATOR
from splitsight.metrics import METRICS
from splitsight.wire.sessions import UNDEFENDED
from splitsight.wire.tensors import CodecSpec

__all__ = ["SplitOptions", "leaks_more", "parse_limits"]

TOLD = ("sensitivity", "dfil", "fsinfo")
"""Measures of leakage without an attack that a limit may be set on; more of each is more leakage."""


@dataclass(frozen=True)
class SplitOptions:
    """Options of ``splitsight splits`` when it evaluates.

    Attributes:
        target: specification of the network, with its input size.
        weights: its weights; its own where not given.
        out: folder of the report.
        splits: names of points; by default all.
        images: what is looked at; see :func:`scenarios.splits.inputs.load_pictures`.
        limit: images at most; ``None`` for 32, or 4 where ``quick``.
        gallery: distractors.
        gallery_size: images that an original is found among, itself included.
        attacks: as :func:`scenarios.splits.attackers.parse_attackers` takes them.
        defense: what the edge does to the features.
        codec: how they are sent, and seen by the attacker.
        networks: names or files of network profiles; the report is made for each.
        edge_slowdown: how many times longer the edge device takes than this machine.
        limits: that a recommended point keeps.
        evaluators: names or folders of independent classifiers.
        prior: name or folder of the generative prior.
        inversion: file of an inversion network, or a folder of them.
        quick: few points, images and probes, which show that it works.
        seed: of all draws.
        threads: compute threads; PyTorch's default where not given.
        device: where attacks compute.
        overwrite: replace an earlier evaluation in ``out``.
        command: the command line, for the report.
    """

    target: str
    out: Path
    weights: Path | None = None
    splits: Sequence[str] | None = None
    images: Path | None = None
    limit: int | None = None
    gallery: Path | None = None
    gallery_size: int = 1000
    attacks: Sequence[str] = ("default",)
    defense: str = UNDEFENDED
    codec: CodecSpec = field(default_factory=CodecSpec)
    networks: Sequence[str] = ("wifi",)
    edge_slowdown: float = 1.0
    limits: Sequence[Limit] = ()
    evaluators: Sequence[str] = (EVALUATOR,)
    prior: str = EMBEDDED
    inversion: Path | None = None
    quick: bool = False
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    overwrite: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.edge_slowdown) and self.edge_slowdown > 0):
            raise UserError(f"--edge-slowdown must be more than 0, not {self.edge_slowdown:g}")
        if self.limit is not None and self.limit < 1:
            raise UserError("--limit must be at least 1")
        if self.gallery_size < 2:
            raise UserError(f"--gallery-size must be at least 2, not {self.gallery_size}")
        if len(set(self.networks)) < len(self.networks):
            raise UserError(f"--network names a profile twice: {', '.join(self.networks)}")

    @property
    def count(self) -> int:
        """Images at most."""
        return self.limit or (4 if self.quick else 32)

    @property
    def probes(self) -> tuple[int, int]:
        """Images, and random probes an image, of the leakage without an attack."""
        return (min(2, self.count), 4) if self.quick else (min(8, self.count), 16)

    @property
    def repeats(self) -> int:
        """Timed passes of each half."""
        return 10 if self.quick else 30


def leaks_more(measure: str) -> bool:
    """Whether a higher value of a measure is more leakage.

    Raises:
        UserError: there is no such measure of leakage.
    """
    if measure in TOLD:
        return True
    if measure not in METRICS.names():
        raise unknown_name("measure of leakage", measure, [*METRICS.names(), *TOLD])
    return METRICS.get(measure).better == "higher"


def parse_limits(
    max_latency_ms: float | None = None, max_leakage: Sequence[str] = (), min_accuracy: float | None = None
) -> list[Limit]:
    """Limits as the command line takes them.

    Args:
        max_latency_ms: milliseconds from a frame to its answer, > 0.
        max_leakage: ``MEASURE=VALUE``; of a distance, such as LPIPS, the value is the least.
        min_accuracy: least utility, in [0, 1].

    Raises:
        UserError: no such measure, two limits on one, or a value that excludes everything or nothing.
    """
    limits = []
    if max_latency_ms is not None:
        if not (math.isfinite(max_latency_ms) and max_latency_ms > 0):
            raise UserError(f"--max-latency-ms must be more than 0, not {max_latency_ms:g}")
        limits.append(Limit(LATENCY, max_latency_ms, "--max-latency-ms "))
    for text in max_leakage:
        measure, equals, given = text.partition("=")
        rises = leaks_more(measure) if equals else True
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise UserError(f"--max-leakage takes MEASURE=VALUE such as ssim=0.4, not '{text}'")
        if measure in METRICS.names() and METRICS.get(measure).kind == "share" and not 0 <= value <= 1:
            raise UserError(f"--max-leakage {measure} is a part of the images, from 0 to 1, not {value:g}")
        limits.append(Limit(measure, value, f"--max-leakage {measure}=", rises))
    if min_accuracy is not None:
        if not 0 <= min_accuracy <= 1:
            raise UserError(f"--min-accuracy is a part of the images, from 0 to 1, not {min_accuracy:g}")
        limits.append(Limit(UTILITY, min_accuracy, "--min-accuracy ", rises=False))
    if len({limit.measure for limit in limits}) < len(limits):
        raise UserError("--max-leakage limits a measure twice: give each once")
    return limits
