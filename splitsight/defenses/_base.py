"""What a defence is: its parameters, what it does on the edge, and what an attacker who knows it may use."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from splitsight.draws import Draws
from splitsight.features import FeatureSpec
from splitsight.registry import Registry

if TYPE_CHECKING:
    from splitsight.accounting import Mechanism

__all__ = ["DEFENSES", "Cost", "Defense", "Features", "Law", "Norms", "Parameters", "Place", "Protection", "Scale"]

Features = tuple[Tensor, ...]
Scale = Tensor | float
"""One number for a whole tensor, or a tensor that broadcasts against ``(B, *shape)``."""
Law = Literal["gaussian", "laplace"]


@dataclass(frozen=True)
class Cost:
    """What a defence costs the edge, a frame.

    Attributes:
        flops: floating-point operations added.
        bytes_ratio: size of what is sent in float32 before compression, as a part of the undefended size.
    """

    flops: int = 0
    bytes_ratio: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where a defence stands; one that was trained or fitted belongs to one such place.

    Attributes:
        target: name of the network.
        split: name of the cut, as the target knows it.
        head_digest: SHA-256 (hex) over F1's weights, of the target's own halves.
        tail_digest: likewise of F2.
        chain: all defences that are applied, in the form that ``--defense`` takes.
    """

    target: str
    split: str
    head_digest: str
    tail_digest: str
    chain: str = ""


@dataclass(frozen=True)
class Norms:
    """Upper bounds on ``‖z‖`` that hold at some point of a chain, z being all numbers of a frame that cross together.

    Attributes:
        bounds: by order, 1 for ℓ₁ and 2 for ℓ₂.
        why: why there are no others, for the sentence that refuses noise which needs one.
    """

    bounds: Mapping[int, float] = field(default_factory=dict)
    why: str = "there is no clip before it"

    def bound(self, order: int) -> float | None:
        """The bound of one order; one on ℓ₁ bounds ℓ₂ too, since ``‖z‖₂ ≤ ‖z‖₁``."""
        known = [c for p, c in self.bounds.items() if p <= order]
        return min(known) if known else None


class Parameters(BaseModel):
    """Parameters of a defence: fields with types, defaults and limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Protection(nn.Module):
    """A defence at work on the edge; this one does nothing.

    All but :meth:`forward` is what an attacker who knows the defence and its parameters, but neither its draws nor its
    key, may use.

    Attributes:
        law: how the noise is distributed that :meth:`deviations` gives the strength of; ``None`` where it adds none.
        fresh: whether chance is drawn anew for each frame, so that the mean over a static scene is without it; false
            where it is drawn once (a key).
    """

    law: Law | None = None
    fresh: bool = True

    def forward(self, features: Features, draws: Draws) -> Features:
        """Features, each ``(B, …)``, as the head gave them → what is sent."""
        return self.expected(features)

    def expected(self, features: Features) -> Features:
        """The same without chance and without a key, differentiable: what an attacker who knows the defence fits."""
        return features

    def expected_on(self, features: Features, support: Features) -> Features:
        """:meth:`expected`, given that these entries were sent.

        Args:
            features: as for :meth:`expected`.
            support: as :meth:`support` found it in the tap; boolean, of the shapes of what is sent.
        """
        return self.expected(features)

    def opened(self, tapped: Features) -> Features:
        """What whoever sits on the server, and so holds the key, makes of tapped features.

        Args:
            tapped: what was sent, each ``(B, …)``.

        Returns:
            What :meth:`expected` is to be compared with: where there is no key, what was sent.
        """
        return tapped

    def support(self, tapped: Features) -> Features | None:
        """Which entries of tapped tensors carry signal, as far as the tap shows it.

        Args:
            tapped: what was sent, each ``(B, …)``, :meth:`opened` where there is a key.

        Returns:
            Boolean tensors of the same shapes, outside of which there is nothing to match; ``None`` where all entries
            carry signal.
        """
        return None

    def deviations(self, features: Features) -> list[Scale]:
        """Standard deviation of the independent noise that :meth:`forward` adds to each tensor, in its own unit.

        Args:
            features: what an attacker has of them.
        """
        return [0.0] * len(features)

    def covariances(self, features: Features) -> list[Tensor | None]:
        """Covariance ``(C, C)`` of the noise between a tensor's channels, the same at each position.

        ``None`` where the noise is independent, so that :meth:`deviations` says all.
        """
        return [None] * len(features)

    def carried(self, deviations: Sequence[Scale]) -> list[Scale]:
        """What becomes of noise that was on the features before: its standard deviation behind this defence."""
        return list(deviations)


P = TypeVar("P", bound=Parameters)


class Defense(ABC, Generic[P]):
    """One defence with its parameters.

    Attributes:
        Parameters: model of the parameters; declared by each defence that has any.
        name: under which it is registered.
        keyed: whether the server must hold a key to use what is sent.
    """

    Parameters: ClassVar[type[Parameters]] = Parameters
    name: ClassVar[str]
    keyed: ClassVar[bool] = False

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

    def check(self, place: Place) -> None:
        """Refuse a place that it was not made for.

        Raises:
            UserError: one sentence that says what differs.
        """

    def cost(self, specs: Sequence[FeatureSpec]) -> Cost:
        """What it costs a frame."""
        return Cost()

    def fitted(self, head: Callable[[Tensor], Features], images: Tensor, place: Place, out: Path | None = None) -> Self:
        """Itself with what it has to know of features, measured on images; itself where it has to know nothing.

        Args:
            head: images in [0, 1] → features as they come in here; differentiable.
            images: ``(N, 3, S, S)`` in [0, 1], of the size that F1 takes, and like those that are to be protected.
            place: that it is fitted for.
            out: file for what does not fit into a parameter; by default one in ``$SPLITSIGHT_HOME/defenses``.
        """
        return self

    # ---------------------------------------------------------------- what is proven

    def placed(self, before: Norms) -> Self:
        """Itself as it works behind others.

        Args:
            before: what those guarantee of the norm.

        Raises:
            UserError: it needs a bound that there is not; one sentence.
        """
        return self

    def norms(self, before: Norms) -> Norms:
        """What is known of the norm behind it; nothing, unless a defence declares more."""
        return (
            Norms(why=f"{self.name} stands between it and the clip, and can enlarge the norm")
            if before.bounds
            else before
        )

    @property
    def mechanism(self) -> Mechanism | None:
        """The noise and its sensitivity, for the accountant; ``None`` where nothing is proven of it."""
        return None

    def guarantee(self) -> str | None:
        """What is proven about leakage, with its parameters, in one sentence; ``None`` if nothing is."""
        return None

    def __str__(self) -> str:
        """As :func:`~splitsight.defenses.parse_defense` reads it; parameters at their defaults are left out."""
        given = self.parameters.model_dump(exclude_defaults=True)
        return self.name + (":" if given else "") + ",".join(f"{k}={_text(v)}" for k, v in given.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


DEFENSES: Registry[type[Defense[Any]]] = Registry("defense", __package__)
