"""Command lines of the three processes of a demonstration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scenarios.demo import DemoOptions

__all__ = ["READY_S", "Steered", "adversary_command", "cloud_command", "cores", "edge_command"]

READY_S = 180.0
"""Seconds that a process may take to start."""

_PATIENCE_S = 60


@dataclass(frozen=True)
class Steered:
    """How a page keeps hold of an edge and an adversary.

    Attributes:
        token_file: of the operator's token.
        session: name of the edge's session, and of the only one that the adversary reads.
        patience: seconds that both wait for a server that is away.
    """

    token_file: Path
    session: str
    patience: float = 3600.0

    @property
    def options(self) -> list[object]:
        """That both take."""
        return ["--operator-port", 0, "--operator-token-file", self.token_file]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cli(*arguments: object) -> list[str]:
    return ["-m", "scenarios", *map(str, arguments)]


def _given(o: DemoOptions) -> tuple[list[object], list[object]]:
    """Target and split, and the weights where there are any."""
    return ["--target", o.target, "--split", o.split], [] if o.weights is None else ["--weights", o.weights]


def cloud_command(o: DemoOptions, *, port: int = 0, tap_port: int = 0, defense: str | None = None) -> list[str]:
    """``splitsight cloud`` with a tap.

    Args:
        o: what is demonstrated.
        port: 0 for a free one.
        tap_port: likewise.
        defense: that every session must have; ``None`` takes any that leaves F2 as it is.
    """
    names, weights = _given(o)
    required = [] if defense is None else ["--defense", defense]
    return _cli("cloud", *names, *weights, "--port", port, "--tap-port", tap_port, "--threads", 1, *required)


def adversary_command(
    o: DemoOptions, out: Path, tap_port: int, threads: int, steered: Steered | None = None
) -> list[str]:
    """``splitsight adversary``.

    Args:
        o: what is demonstrated.
        out: its folder.
        tap_port: on this machine.
        threads: of PyTorch.
        steered: by a page.
    """
    names, weights = _given(o)
    arguments = ["adversary", "--tap", f"127.0.0.1:{tap_port}", "--out", out, *names, "--prior", o.prior]
    arguments += ["--attack", o.solver, "--defense", o.defense, "--frames", o.frames, "--stride", o.stride]
    arguments += ["--threads", threads, "--seed", o.seed, "--threat", o.threat]
    arguments += [] if o.preview else ["--no-preview"]
    arguments += [] if o.inversion is None else ["--inversion", o.inversion]
    arguments += [] if o.network is None else ["--network", o.network]
    # a black-box adversary has a name for the target and nothing else of it
    arguments += weights if o.threat == "white-box" else []
    arguments += ["--prompt", o.prompt] if o.prompt else []
    # the server is there, but both may be slow on a busy machine
    arguments += ["--patience", _PATIENCE_S if steered is None else steered.patience]
    if steered is not None:
        arguments += ["--session", steered.session, *steered.options]
    return _cli(*arguments)


def edge_command(
    o: DemoOptions, out: Path, port: int, seconds: float | None, steered: Steered | None = None
) -> list[str]:
    """``splitsight edge``.

    Args:
        o: what is demonstrated.
        out: folder of the run.
        port: of the cloud server, on this machine.
        seconds: of the stream; ``None`` plays a stored clip again and again.
        steered: by a page; it then waits for the server, and begins paused.
    """
    names, weights = _given(o)
    arguments = ["edge", "--server", f"127.0.0.1:{port}", *names, *weights, "--fps", o.fps, "--defense", o.defense]
    arguments += ["--loop"] if seconds is None else ["--seconds", seconds]
    arguments += ["--dtype", o.dtype, "--compression", o.compression, "--threads", 1]
    arguments += ["--report", out / "edge.jsonl", "--truth", out / "truth"]
    arguments += [] if o.edge_network is None else ["--network", o.edge_network, "--network-seed", o.seed]
    arguments += [] if o.video is None else ["--video", o.video]
    arguments += [] if o.epsilon_budget is None else ["--epsilon-budget", o.epsilon_budget]
    arguments += [] if o.epsilon_ledger is None else ["--epsilon-ledger", o.epsilon_ledger]
    if steered is not None:
        arguments += ["--session-id", steered.session, "--give-up", steered.patience, *steered.options]
        arguments += ["--wait", READY_S, "--paused"]
    return _cli(*arguments)
