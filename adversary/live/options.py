"""How the live adversary is run, and what it knows before the stream begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from splitsight.features import FeatureSpec
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.operator import OperatorOptions

if TYPE_CHECKING:
    from adversary.live.engine import Engine

__all__ = ["Known", "LiveOptions"]


class Known(NamedTuple):
    """What an adversary has before the stream begins.

    Attributes:
        target: name of the attacked network.
        split: its split point.
        digest: SHA-256 of the weights of the F1 that it was made for.
        specs: what crosses the split.
        engine: makes images of it.
        weights: digests of its own models, by role.
        remedy: what helps where a session runs other weights.
        defense: what it expects the edge to do to the features; ``None`` for whatever that is.
        threat: the threat model, by its name.
        caveat: what makes its images worse than they need be, one sentence without a full stop; empty for nothing.
    """

    target: str
    split: str
    digest: str
    specs: Sequence[FeatureSpec]
    engine: Engine
    weights: Mapping[str, str]
    remedy: str
    defense: str | None = None
    threat: str = "white-box"
    caveat: str = ""


@dataclass(frozen=True)
class LiveOptions:
    """How to run the live adversary.

    Attributes:
        tap: ``HOST:PORT``.
        out: folder for everything that is written.
        target: name of the attacked network.
        split: split point; must be the session's.
        prior: name or folder of the generative prior.
        frames: K, frames of a window.
        stride: seconds between the frames of a window.
        attack: that solves the windows, a name out of ``splitsight list attacks``.
        setting: its named setting; empty for its default.
        changes: values to replace in it, by name.
        defense: what the edge does to the features, as far as the attacker was told.
        threads: compute threads.
        nice: how much to lower this process's priority (0…19).
        margin: part of a window's period that is left unused before its deadline, in [0, 1).
        prompt: text prior; empty for none.
        credentials: what the tap asks for.
        session: only this session; empty for the first one that shows up.
        preview: whether single frames are shown at once; without, no inversion network is looked for.
        inversion: white-box: file of an inversion network; the embedded one by default.
        weights: white-box: the target's weights; the embedded ones by default.
        network: black-box: file of the trained network; the package's or the cache's by default.
        patience: seconds to wait for a tap that is away.
        seed: of all draws.
        operator: where somebody may choose another attack or prompt; ``None`` for nowhere.
    """

    tap: str
    out: Path
    target: str = "resnet18"
    split: str = "L8"
    prior: str = "small"
    frames: int = 4
    stride: float = 0.5
    attack: str = "window"
    setting: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    defense: str = "identity"
    threads: int = 1
    nice: int = 10
    margin: float = 0.15
    prompt: str = ""
    credentials: ClientCredentials = ANONYMOUS
    session: str = ""
    preview: bool = True
    inversion: Path | None = None
    weights: Path | None = None
    network: Path | None = None
    patience: float = 10.0
    seed: int = 0
    operator: OperatorOptions | None = None

    @property
    def named(self) -> str:
        """What solves the windows, ``NAME[:SETTING]``."""
        return self.attack + (f":{self.setting}" if self.setting else "")
