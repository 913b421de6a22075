"""Several defences one after the other, and the text that names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from torch import Tensor, nn

from splitsight.artifacts import digest
from splitsight.defenses._base import (
    DEFENSES,
    Cost,
    Defense,
    Features,
    Law,
    Norms,
    Place,
    Protection,
    Scale,
)
from splitsight.draws import Draws
from splitsight.errors import UserError, unknown_name
from splitsight.features import FeatureSpec

if TYPE_CHECKING:
    from splitsight.accounting import Mechanism

__all__ = ["Chain", "parse_defense", "weights_digest"]


class _Sequence(Protection):
    def __init__(self, parts: Sequence[Protection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def _steps(self) -> list[Protection]:
        return [cast(Protection, part) for part in self.parts]

    @property
    def law(self) -> Law | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the noise that there is; Gaussian where there are both."""
        laws = {part.law for part in self._steps()} - {None}
        return None if not laws else "laplace" if laws == {"laplace"} else "gaussian"

    @property
    def fresh(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all of them draw anew for each frame."""
        return all(part.fresh for part in self._steps())

    def forward(self, features: Features, draws: Draws) -> Features:
        for part in self._steps():
            features = part(features, draws)
        return features

    def expected(self, features: Features) -> Features:
        for part in self._steps():
            features = part.expected(features)
        return features

    def expected_on(self, features: Features, support: Features) -> Features:
        for part in self._steps():
            features = part.expected_on(features, support)
        return features

    def opened(self, tapped: Features) -> Features:
        for part in reversed(self._steps()):
            tapped = part.opened(tapped)
        return tapped

    def support(self, tapped: Features) -> Features | None:
        found: Features | None = None
        for part in self._steps():
            if (mask := part.support(tapped)) is not None:
                found = mask if found is None else tuple(a & b for a, b in zip(found, mask, strict=True))
        return found

    def deviations(self, features: Features) -> list[Scale]:
        total: list[Scale] = [0.0] * len(features)
        for part in self._steps():
            added = part.deviations(features)
            total = [(a**2 + b**2) ** 0.5 for a, b in zip(part.carried(total), added, strict=True)]
        return total

    def covariances(self, features: Features) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(features)
        for part in self._steps():
            more = part.covariances(features)
            found = [b if a is None else a if b is None else a + b for a, b in zip(found, more, strict=True)]
        return found


class _After:
    """What a defence is given: the features behind those before it, without chance."""

    def __init__(self, head: Callable[[Tensor], Features], protection: Protection) -> None:
        self.head, self.protection = head, protection

    def __call__(self, images: Tensor) -> Features:
        return self.protection.expected(self.head(images))


class Chain:
    """Defences one after the other.

    Args:
        parts: in the order in which the edge applies them; none at all leaves the features as they are.

    Raises:
        UserError: noise that is calibrated to a privacy loss, and no bound on the norm in front of it.
    """

    def __init__(self, parts: Sequence[Defense[Any]] = ()) -> None:
        placed, norms = [], Norms()
        for part in parts:
            if part.name != "identity":
                placed.append(part.placed(norms))
                norms = placed[-1].norms(norms)
        self.parts: tuple[Defense[Any], ...] = tuple(placed)

    def __str__(self) -> str:
        """As :func:`parse_defense` reads it."""
        return "+".join(map(str, self.parts)) or "identity"

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def keyed(self) -> bool:
        """Whether the server must hold a key."""
        return any(part.keyed for part in self.parts)

    def check(self, place: Place) -> None:
        """As :meth:`Defense.check`."""
        for part in self.parts:
            part.check(place)

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

    def fitted(
        self,
        head: Callable[[Tensor], Features],
        specs: Sequence[FeatureSpec],
        images: Tensor,
        place: Place,
        out: Path | None = None,
    ) -> Chain:
        """As :meth:`Defense.fitted`, each on what those before it make of the features without chance.

        Args:
            head: F1.
            specs: what it makes.
            images: as for :meth:`Defense.fitted`, like all that follow.
            place: likewise.
            out: likewise.
        """
        found: list[Defense[Any]] = []
        for part in self.parts:
            before = _After(head, Chain(found).build(specs)[0])
            found.append(part.fitted(before, images, place, out))
        return Chain(found)

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """Of all of them."""
        costs = [part.cost(before) for part, before in zip(self.parts, self._before(specs), strict=True)]
        ratio = 1.0
        for cost in costs:
            ratio *= cost.bytes_ratio
        return Cost(sum(cost.flops for cost in costs), ratio)

    @property
    def mechanism(self) -> Mechanism | None:
        """The noise whose guarantee holds for what is sent: the strongest, since the others are post-processing."""
        known = [m for part in self.parts if (m := part.mechanism) is not None]
        return min(known, key=lambda m: m.epsilon(), default=None)

    def guarantees(self) -> list[str]:
        """What is proven, one sentence a defence that proves anything."""
        return [said for part in self.parts if (said := part.guarantee()) is not None]


def weights_digest(*modules: nn.Module | None) -> str:
    """SHA-256 over the weights of a defence's parts; empty where there are none."""
    state = {f"{i}.{k}": v for i, m in enumerate(modules) if m is not None for k, v in m.state_dict().items()}
    return digest(state) if state else ""


_PART = re.compile(r"(?P<name>[\w-]+)(?::(?P<parameters>.*))?", re.DOTALL)
_JOINT = re.compile(r"\+(?!\d)")
"""Between two defences; a plus before a digit is in a number, as in 1e+20."""


def parse_defense(text: str) -> Chain:
    """Defences by name and parameters: ``NAME[:KEY=VALUE[,KEY=VALUE…]][+NAME…]``.

    Raises:
        UserError: not of that form, no such defence or parameter, a value that cannot be, or an order that proves
            nothing where a guarantee was asked for.
    """
    return Chain([_parse_part(part.strip()) for part in _JOINT.split(text)])


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
