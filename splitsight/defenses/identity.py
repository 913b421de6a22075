"""No defence: the baseline that every other one is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from splitsight.defenses import DEFENSES, Defense

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Identity"]


@DEFENSES.register("identity")
class Identity(Defense):
    """Sends the features as they are."""

    def protect(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The features themselves, not copied."""
        return features
