"""Defences: what the edge does to the features before they leave it.

A defence is one file in this package: a class that derives from :class:`Defense` and registers itself with
``@DEFENSES.register("name")``. Attackers are told which defence runs, with which parameters, but not its random
draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from splitsight.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["DEFENSES", "Cost", "Defense"]


@dataclass(frozen=True)
class Cost:
    """What a defence costs the edge, a frame.

    Attributes:
        flops: floating-point operations added.
        bytes_ratio: size of what is sent, as a part of the undefended size.
        trained: whether the tail was adapted, so that the server needs other weights.
    """

    flops: int = 0
    bytes_ratio: float = 1.0
    trained: bool = False


class Defense(ABC):
    """Transforms features on the edge; may adapt the tail to what it does."""

    @abstractmethod
    def protect(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Features ``(B, …)`` as the head gave them → what is sent, same number and shapes."""

    def adapt(self, tail: nn.Module, data: Any) -> nn.Module:
        """The tail to use with this defence; itself unless the defence trains one.

        Args:
            tail: F2.
            data: what a defence that trains asks for; ignored by the others.
        """
        return tail

    def cost(self) -> Cost:
        """What it costs a frame."""
        return Cost()

    def guarantee(self) -> str | None:
        """What is proven about leakage, with its parameters, in one sentence; ``None`` if nothing is."""
        return None


DEFENSES: Registry[type[Defense]] = Registry("defense", __name__)
