"""Predicted against measured latency: an edge and a cloud server as real processes over emulated networks.

Predicted, for a split and a network, is the sum of four medians (:class:`splitsight.network.FrameLatency`):

* both halves, timed frame by frame in this process (:mod:`scenarios.halves`);
* the network, from its profile and the sizes of a frame and its answer (:func:`splitsight.network.predict`);
* the overhead of gRPC, queues and Python, measured once, at one split, with real processes and an unshaped connection:
  the median latency less both halves. It is the same for all splits and networks, and fitted to none of them.

Measured is the time from when the edge has a frame until it has its answer, one frame in flight at a time, frames as
fast as they are answered, through the edge's relay (:mod:`splitsight.network.relay`). The first frames, in which gRPC's
windows still grow, are left out. The ratio's interval is the 95 % percentile bootstrap over frames of the measured
median; how exactly the halves are known is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloud_server.bench import interval, resampled
from scenarios.halves import Halves, Timing, time_halves
from scenarios.ledger import Ledger
from scenarios.processes import Supervisor, terminate_as_interrupt
from splitsight import targets
from splitsight.errors import UserError
from splitsight.files import write_json
from splitsight.network import FrameLatency, NetworkProfile, load_profile, predict
from splitsight.pipeline import EdgePipeline
from splitsight.summary import environment
from splitsight.video import open_source
from splitsight.wire.tensors import CodecSpec

__all__ = ["AIM", "UNSHAPED", "Setup", "bench_link", "frames_of", "overhead", "run_pair", "summarise", "timed"]

UNSHAPED = "loopback"
AIM = 0.15
"""How far a measured median may be from the prediction, as a part of it."""
_WARM = 8  # frames that are left out
_TIMED = 20  # frames that the halves are timed on
_FPS = 10.0  # of the clip's time between frames; they are sent as fast as they are answered
_READY_S = 180.0
_FRAME_S = 30.0  # longest that a frame is waited for


@dataclass(frozen=True)
class Setup:
    """What runs, at every split and over every network.

    Attributes:
        target: network that is split.
        weights: ``None`` for the embedded ones.
        video: whose frames; ``None`` for the default clip.
        dtype: of the features on the wire.
        compression: likewise.
        defense: what the edge does to the features.
        threads: of PyTorch, in each process.
        seed: of jitter, losses and the bootstrap.
    """

    target: str = "resnet18"
    weights: Path | None = None
    video: str | None = None
    dtype: str = "float32"
    compression: str = "none"
    defense: str = "identity"
    threads: int = 1
    seed: int = 0

    @property
    def common(self) -> list[object]:
        """Options that both processes take."""
        given = ["--target", self.target, "--defense", self.defense, "--threads", self.threads]
        return given if self.weights is None else [*given, "--weights", self.weights]


def frames_of(setup: Setup, count: int = _TIMED) -> list[np.ndarray]:
    """The first frames of the clip, as an edge would take them."""
    with open_source(setup.video, fps=_FPS, seconds=count / _FPS) as source:
        return [frame.image for frame in source]


def timed(setup: Setup, split: str, images: Sequence[np.ndarray]) -> Halves:
    """Both halves of one split; see :func:`scenarios.halves.time_halves`."""
    target = targets.load(setup.target, setup.weights)
    pipeline = EdgePipeline(target, split, setup.defense, CodecSpec(setup.dtype, setup.compression))
    return time_halves(pipeline, images, threads=setup.threads)


def run_pair(
    setup: Setup, split: str, networks: Sequence[str], *, frames: int, logs: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run an edge and a server at one split, over one network after another.

    Args:
        setup: what runs.
        split: where.
        networks: names or files.
        frames: measured over each, ≥ 1.
        logs: folder for what the processes say.

    Returns:
        By network, what the edge says of each frame (:mod:`edge_client.report`) and its ``latency_ms``.

    Raises:
        UserError: a process does not start, or ends with an error.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    one = {"OMP_NUM_THREADS": str(setup.threads)}
    with terminate_as_interrupt(), Supervisor(logs) as children:
        cloud = children.start(
            "cloud", "cloud server", _cli("cloud", *setup.common, "--split", split, "--port", 0), environment=one
        )
        port = cloud.wait_event("ready", _READY_S)["port"]
        for network in networks:
            report = logs / "edge.jsonl"
            arguments = [
                *("edge", *setup.common, "--split", split, "--server", f"127.0.0.1:{port}", "--network", network),
                *("--network-seed", setup.seed, "--fps", _FPS, "--seconds", (frames + _WARM) / _FPS, "--no-pace"),
                *("--in-flight", 1, "--dtype", setup.dtype, "--compression", setup.compression, "--report", report),
                *(() if setup.video is None else ("--video", setup.video)),
            ]
            edge = children.start("edge", "edge", _cli(*arguments), environment=one, expected_to_end=True)
            if edge.process.wait(_READY_S + _FRAME_S * (frames + _WARM)) != 0:
                raise edge.failure()
            children.check()
            rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()][_WARM:]
            if not rows:
                raise UserError(f"{setup.video or 'the clip'} has fewer than {_WARM + 1} frames: give a longer --video")
            found[network] = [_row(row) for row in rows]
        children.stop("cloud", grace=10)
    return found


_KEPT = ("sequence", "rtt_ms", "head_ms", "encode_ms", "queue_ms", "compute_ms", "bytes", "attempts")


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"latency_ms": (line["answered_us"] - line["capture_time_us"]) / 1e3, **{key: line[key] for key in _KEPT}}


def _cli(*arguments: object) -> list[str]:
    return ["-m", "scenarios", *map(str, arguments)]


def overhead(rows: Sequence[Mapping[str, Any]], halves: Halves) -> float:
    """Milliseconds that real processes on loopback need beyond both halves.

    Args:
        rows: of :func:`run_pair` over :data:`UNSHAPED`.
        halves: of the same split.
    """
    return _median(rows) - halves.edge.median_ms - halves.cloud.median_ms


def _median(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(np.median([row["latency_ms"] for row in rows]))


def bench_link(
    setup: Setup,
    *,
    splits: Sequence[str],
    networks: Sequence[str],
    out: Path,
    frames: int = 60,
    calibrate: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure every split over every network, and compare with the prediction; goes on where it was stopped.

    Args:
        setup: what runs.
        splits: at least one.
        networks: names or files, at least one.
        out: folder for ``rows.parquet`` (a row a frame), ``halves.parquet``, ``summary.json``, ``logs``.
        frames: measured for each pair, ≥ 10.
        calibrate: split at which the overhead is measured; the first of ``splits`` by default.
        progress: called with pairs done, pairs in all, and what is going on.

    Returns:
        The summary, see :func:`summarise`.

    Raises:
        UserError: an unknown split or network, a folder of another measurement, a process that fails.
    """
    if frames < 10 or not splits or not networks:
        raise UserError("a comparison needs at least 10 frames, one split and one network")
    profiles = {profile.name: profile for profile in map(load_profile, networks)}
    if len(profiles) != len(networks):
        raise UserError("two networks have the same name: give each file another 'name'")
    given = dict(zip(profiles, networks, strict=True))
    target, calibrate = targets.load(setup.target, setup.weights), calibrate or splits[0]
    for split in (*splits, calibrate):
        target.cut(split)  # says what is wrong before anything runs
    about = {
        **{key: str(value) for key, value in asdict(setup).items()},
        **{"frames": frames, "calibrate": calibrate, "weights_digest": target.digest},
        "networks": {name: profile.to_dict() for name, profile in profiles.items()},
    }
    parts, ledger = Ledger(out / "halves.parquet", about), Ledger(out / "rows.parquet", about)
    wanted = {split: list(profiles) for split in dict.fromkeys([calibrate, *splits])}
    if calibrate not in splits:
        wanted[calibrate] = []
    wanted[calibrate] = [UNSHAPED, *(name for name in wanted[calibrate] if name != UNSHAPED)]
    total = sum(map(len, wanted.values()))
    images = frames_of(setup)
    for split, names in wanted.items():
        if all(row["split"] != split for row in parts.rows):
            _say(progress, ledger, total, f"timing {split}")
            parts.add([_flat(split, timed(setup, split, images))])
        for name in names:
            if not _of(ledger.rows, split, name):
                _say(progress, ledger, total, f"{split} over {name}")
                rows = run_pair(setup, split, [given.get(name, name)], frames=frames, logs=out / "logs")
                ledger.add([{"split": split, "network": name, **row} for measured in rows.values() for row in measured])
    _say(progress, ledger, total, "done")
    halves = {row["split"]: _unflat(row) for row in parts.rows}
    pairs = [(split, profile) for split in splits for profile in profiles.values()]
    summary = {
        "schema": "splitsight.bench-link/1",
        **about,
        "in_flight": 1,
        **summarise(pairs, halves, ledger.rows, calibrate, setup.seed),
        "environment": environment({"target": target.digest}),
    }
    write_json(out / "summary.json", summary)
    return summary


def _say(progress: Callable[[int, int, str], None] | None, ledger: Ledger, total: int, what: str) -> None:
    if progress is not None:
        progress(len({(row["split"], row["network"]) for row in ledger.rows}), total, what)


def _of(rows: Sequence[Mapping[str, Any]], split: str, network: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["split"] == split and row["network"] == network]


def _flat(split: str, halves: Halves) -> dict[str, Any]:
    parts = {
        f"{side}_{key}": value for side in ("edge", "cloud") for key, value in asdict(getattr(halves, side)).items()
    }
    return {
        "split": split,
        **parts,
        "up_bytes": halves.up_bytes,
        "down_bytes": halves.down_bytes,
        "threads": halves.threads,
    }


def _unflat(row: Mapping[str, Any]) -> Halves:
    keys = ("median_ms", "lower_ms", "upper_ms", "n")
    edge, cloud = (Timing(*(row[f"{side}_{key}"] for key in keys)) for side in ("edge", "cloud"))
    return Halves(edge, cloud, row["up_bytes"], row["down_bytes"], row["threads"])


def summarise(
    pairs: Sequence[tuple[str, NetworkProfile]],
    halves: Mapping[str, Halves],
    rows: Sequence[Mapping[str, Any]],
    calibrate: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures from what was measured.

    Args:
        pairs: which to compare.
        halves: by split.
        rows: frames, with ``split`` and ``network``; over :data:`UNSHAPED` at ``calibrate``, too.
        calibrate: where the overhead is taken from.
        seed: of the bootstrap.

    Returns:
        ``overhead_ms``, and whether the machine was ``disturbed``, since that is negative; ``pairs``: split, network,
        ``predicted`` (the parts and ``total_ms``), ``measured`` (n, median, mean, quartiles), ``ratio`` of the measured
        median to the predicted total with its interval, ``within`` (whether the ratio itself is within :data:`AIM` of
        1), ``parts``: medians of what the edge and the server said of themselves; ``within``: how many of how many.
    """
    extra = overhead(_of(rows, calibrate, UNSHAPED), halves[calibrate])
    found = []
    for split, profile in pairs:
        half, measured = halves[split], _of(rows, split, profile.name)
        network = predict(profile, half.up_bytes, half.down_bytes)
        predicted = FrameLatency(half.edge.median_ms, network.median_ms, half.cloud.median_ms, extra)
        latency = np.array([row["latency_ms"] for row in measured])
        medians = np.median(latency[resampled(len(latency), seed)], axis=1)
        ratio = interval(float(np.median(latency)) / predicted.total_ms, medians / predicted.total_ms)
        low, median, high = np.percentile(latency, [25, 50, 75]).tolist()
        found.append(
            {
                "split": split,
                "network": profile.name,
                "predicted": {**asdict(predicted), "total_ms": predicted.total_ms},
                "measured": {
                    "n": len(latency),
                    "median_ms": median,
                    "mean_ms": float(latency.mean()),
                    "lower_ms": low,
                    "upper_ms": high,
                },
                "ratio": ratio,
                "within": abs(ratio["ratio"] - 1) <= AIM,
                "parts": {
                    key: float(np.median([row[key] for row in measured]))
                    for key in ("head_ms", "encode_ms", "rtt_ms", "queue_ms", "compute_ms")
                },
            }
        )
    return {
        "overhead_ms": extra,
        # real processes share nothing that would make them faster than their halves alone
        "disturbed": extra < 0,
        "aim": AIM,
        "within": [sum(pair["within"] for pair in found), len(found)],
        "halves": [{"split": split, **asdict(half)} for split, half in halves.items()],
        "pairs": found,
    }
