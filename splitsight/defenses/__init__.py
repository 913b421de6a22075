"""Defences: what the edge does to the features before they leave it.

A defence is one file in this package (or in another, by the entry-point group ``splitsight.defenses``): a class that
derives from :class:`Defense`, registers itself with ``@DEFENSES.register("name")`` and declares its parameters as a
pydantic model. On the command line, in YAML and on the wire it is called by name and parameters, several joined by
``+`` in the order in which they are applied::

    clip:norm=20+gaussian:sigma=0.5

Attackers are told which defence runs, with which parameters, never its random draws.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from splitsight.artifacts import digest
from splitsight.draws import Draws
from splitsight.errors import UserError, unknown_name
from splitsight.features import FeatureSpec
from splitsight.registry import Registry

__all__ = ["DEFENSES", "Chain", "Cost", "Defense", "Parameters", "Protection", "parse_defense"]

Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cost:
    """What a defence costs the edge, a frame.

    Attributes:
        flops: floating-point operations added.
        bytes_ratio: size of what is sent in float32, as a part of the undefended size.
    """

    flops: int = 0
    bytes_ratio: float = 1.0


class Parameters(BaseModel):
    """Parameters of a defence: fields with types, defaults and limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Protection(nn.Module):
    """A defence at work on the edge; this one does nothing."""

    def forward(self, features: Features, draws: Draws) -> Features:
        """Features, each ``(B, …)``, as the head gave them → what is sent."""
        return self.expected(features)

    def expected(self, features: Features) -> Features:
        """The same without chance, differentiable: what an attacker who knows the defence fits."""
        return features

    def deviations(self, features: Features) -> list[float]:
        """Standard deviation of the independent noise that :meth:`forward` adds to each tensor, in its own unit.

        Args:
            features: what an attacker has of them.
        """
        return [0.0] * len(features)


P = TypeVar("P", bound=Parameters)


class Defense(ABC, Generic[P]):
    """One defence with its parameters.

    Attributes:
        Parameters: model of the parameters; declared by each defence that has any.
        name: under which it is registered.
    """

    Parameters: ClassVar[type[Parameters]] = Parameters
    name: ClassVar[str]

    def __init__(self, parameters: P | None = None) -> None:
        self.parameters = cast(P, self.Parameters() if parameters is None else parameters)

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """The parts that run.

        Args:
            specs: what comes in.

        Returns:
            What the edge applies; and what the server applies before F2 (features in, features out), where it must.
        """
        return Protection(), None

    def output_specs(self, specs: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
        """What is sent, for what comes in."""
        return tuple(specs)

    def adapted(self, head: nn.Module, tail: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The halves to use with this defence: themselves, unless it was trained together with others."""
        return head, tail

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """What it costs a frame."""
        return Cost()

    def guarantee(self) -> str | None:
        """What is proven about leakage, with its parameters, in one sentence; ``None`` if nothing is."""
        return None

    def __str__(self) -> str:
        """As :func:`parse_defense` reads it; parameters at their defaults are left out."""
        given = self.parameters.model_dump(exclude_defaults=True)
        return self.name + (":" if given else "") + ",".join(f"{k}={_text(v)}" for k, v in given.items())


def _text(value: Any) -> str:
    return (
        f"{value:.12g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    )


class _Sequence(Protection):
    def __init__(self, parts: Sequence[Protection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def _steps(self) -> list[Protection]:
        return [cast(Protection, part) for part in self.parts]

    def forward(self, features: Features, draws: Draws) -> Features:
        for part in self._steps():
            features = part(features, draws)
        return features

    def expected(self, features: Features) -> Features:
        for part in self._steps():
            features = part.expected(features)
        return features

    def deviations(self, features: Features) -> list[float]:
        squares = [[sigma**2 for sigma in part.deviations(features)] for part in self._steps()]
        return [sum(column) ** 0.5 for column in zip(*squares, strict=True)] or super().deviations(features)


class Chain:
    """Defences one after the other.

    Args:
        parts: in the order in which the edge applies them; none at all leaves the features as they are.
    """

    def __init__(self, parts: Sequence[Defense[Any]] = ()) -> None:
        self.parts = tuple(part for part in parts if part.name != "identity")

    def __str__(self) -> str:
        """As :func:`parse_defense` reads it."""
        return "+".join(map(str, self.parts)) or "identity"

    def __bool__(self) -> bool:
        return bool(self.parts)

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """As :meth:`Defense.build`, for all of them; the server undoes the last one first."""
        edge: list[Protection] = []
        server: list[nn.Module] = []
        for part, before in zip(self.parts, self._before(specs), strict=True):
            here, there = part.build(before)
            edge.append(here.eval())
            if there is not None:
                server.insert(0, there.eval())
        return _Sequence(edge), nn.Sequential(*server) if server else None

    def _before(self, specs: Sequence[FeatureSpec]) -> list[tuple[FeatureSpec, ...]]:
        found, now = [], tuple(specs)
        for part in self.parts:
            found.append(now)
            now = part.output_specs(now)
        return found

    def output_specs(self, specs: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
        """What is sent in the end."""
        now = tuple(specs)
        for part in self.parts:
            now = part.output_specs(now)
        return now

    def adapted(self, head: nn.Module, tail: nn.Module) -> tuple[nn.Module, nn.Module]:
        """As :meth:`Defense.adapted`."""
        for part in self.parts:
            head, tail = part.adapted(head, tail)
        return head, tail

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """Of all of them."""
        costs = [part.cost(before) for part, before in zip(self.parts, self._before(specs), strict=True)]
        ratio = 1.0
        for cost in costs:
            ratio *= cost.bytes_ratio
        return Cost(sum(cost.flops for cost in costs), ratio)

    def guarantees(self) -> list[str]:
        """What is proven, one sentence a defence that proves anything."""
        return [said for part in self.parts if (said := part.guarantee()) is not None]


def weights_digest(*modules: nn.Module | None) -> str:
    """SHA-256 over the weights of a defence's parts; empty where there are none."""
    state = {f"{i}.{k}": v for i, m in enumerate(modules) if m is not None for k, v in m.state_dict().items()}
    return digest(state) if state else ""


DEFENSES: Registry[type[Defense[Any]]] = Registry("defense", __name__)

_PART = re.compile(r"(?P<name>[\w-]+)(?::(?P<parameters>.*))?", re.DOTALL)


def parse_defense(text: str) -> Chain:
    """Defences by name and parameters: ``NAME[:KEY=VALUE[,KEY=VALUE…]][+NAME…]``.

    Raises:
        UserError: not of that form, no such defence or parameter, or a value that cannot be.
    """
    return Chain([_parse_part(part.strip()) for part in text.split("+")])


def _parse_part(text: str) -> Defense[Any]:
    match = _PART.fullmatch(text)
    if match is None:
        raise UserError(f"'{text}' is no defence: give NAME or NAME:KEY=VALUE,…, several joined by +")
    name = match["name"]
    kind = DEFENSES.get(name)
    given: dict[str, str] = {}
    for pair in (match["parameters"] or "").split(",") if match["parameters"] is not None else ():
        key, equals, value = pair.partition("=")
        if not (key.strip() and equals):
            raise UserError(f"the defence '{text}' has '{pair}' where a parameter should be: give KEY=VALUE")
        if key.strip() in given:
            raise UserError(f"the defence '{text}' has {key.strip()} twice: give it once")
        given[key.strip()] = value.strip()
    fields = list(kind.Parameters.model_fields)
    if unknown := next((key for key in given if key not in fields), None):
        if not fields:
            raise UserError(f"the defence {name} takes no parameters: leave '{unknown}' out")
        raise unknown_name(f"parameter of the defence {name}", unknown, fields)
    try:
        return kind(kind.Parameters.model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"the defence {name}: {where + ': ' if where else ''}{what[:1].lower()}{what[1:]}") from error
