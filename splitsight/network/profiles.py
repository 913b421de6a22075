"""Network profiles: bandwidth, latency, jitter and loss of a connection, with where the figures are from.

A profile is a YAML file, one of the package's (``splitsight/network/profiles``), of another package (entry points
``splitsight.networks``) or a user's own. Each direction is a link of constant bandwidth B behind which a message waits
for a normally distributed time, N(latency, jitter²), never below zero; a segment is lost with probability p,
independently of all others. Bandwidth counts what TCP carries, as speed tests do, not its headers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitsight.errors import UserError
from splitsight.registry import PathRegistry

__all__ = ["NETWORKS", "NetworkProfile", "load_profile"]

_SUFFIXES = (".yaml", ".yml")


class NetworkProfile(BaseModel):
    """What a connection between an edge and a cloud server is like.

    Attributes:
        name: short name; that of its file unless the file says another.
        about: what it stands for, in a line.
        source: where the figures are from, with the year, and which of them are assumptions.
        uplink_mbps: from the edge to the server, 10⁶ bits a second of TCP payload, > 0; ``.inf`` for no limit.
        downlink_mbps: from the server to the edge, likewise.
        latency_ms: one way, mean, ≥ 0: half of a ping.
        jitter_ms: standard deviation of the one-way latency, ≥ 0.
        loss: probability that a segment is lost, in [0, 1); the same in both directions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    about: str = ""
    source: str = ""
    uplink_mbps: float = Field(gt=0)
    downlink_mbps: float = Field(gt=0)
    latency_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    jitter_ms: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    loss: float = Field(default=0.0, ge=0, lt=1)

    @property
    def shaped(self) -> bool:
        """Whether it differs from no network at all."""
        unlimited = math.isinf(self.uplink_mbps) and math.isinf(self.downlink_mbps)
        return not unlimited or any((self.latency_ms, self.jitter_ms, self.loss))

    @property
    def rtt_ms(self) -> float:
        """Round-trip time of a message of no size, without jitter."""
        return 2 * self.latency_ms

    def summary(self) -> str:
        """Its figures in a line: ``6.3 Mbit/s up, 21.3 down, 27.5 ms one way (± 8), 0.1 % lost``."""
        if not self.shaped:
            return "unshaped"
        up, down = ("unlimited" if math.isinf(b) else f"{b:g}" for b in (self.uplink_mbps, self.downlink_mbps))
        jitter = f" (± {self.jitter_ms:g})" if self.jitter_ms else ""
        return f"{up} Mbit/s up, {down} down, {self.latency_ms:g} ms one way{jitter}, {100 * self.loss:g} % lost"

    def to_dict(self) -> dict[str, Any]:
        """Its keys as plain JSON, ``None`` for no limit, and ``figures``: :meth:`summary`."""
        data = {key: None if value == math.inf else value for key, value in self.model_dump().items()}
        return {**data, "figures": self.summary()}


def _own() -> dict[str, Path]:
    return {file.stem: file for file in Path(__file__).with_name("profiles").glob("*.yaml")}


NETWORKS = PathRegistry("network", _own)
"""Profiles by name: those of this package, and those that others name by an entry point ``splitsight.networks``."""


def load_profile(network: str | Path) -> NetworkProfile:
    """Read a profile.

    Args:
        network: a name out of ``splitsight list networks``, or the path of a ``.yaml`` file.

    Raises:
        UserError: no such profile, unreadable, not YAML, or a value that no network has; says which key.
    """
    path = Path(network)
    if path.suffix not in _SUFFIXES:
        if str(network) not in NETWORKS.names():
            known = ", ".join(NETWORKS.names())
            raise UserError(f"unknown network '{network}': choose one of {known}, or give a .yaml file")
        path = NETWORKS.get(str(network))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the network profile {path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: a network profile is YAML in UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a network profile: it must hold keys such as 'uplink_mbps' and 'latency_ms'")
    try:
        return NetworkProfile.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise UserError(f"the network profile {path} {_what(error)}") from error


def _what(error: ValidationError) -> str:
    """The first thing that is wrong, as the rest of a sentence."""
    first: Any = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"has an unknown key '{key}': it may have {', '.join(NetworkProfile.model_fields)}"
    if first["type"] == "missing":
        return f"lacks the key '{key}': give it a number"
    rule = first["msg"].removeprefix("Input ")
    return f"has {key}: {first['input']}, which {rule}"
