"""Noise-aware training: F2 alone, or F1 and F2, fine-tuned behind the defences that stand in front of it.

It adds nothing to what is sent: it brings halves that were trained with the draws of those defences, by distillation
from the undefended network (:mod:`splitsight.defenses.training`). What is proven of the defences in front stays
proven, since neither the weights of F1 nor what follows the noise enter into it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from splitsight.defenses import DEFENSES, Place
from splitsight.defenses.training import Learned, Settings
from splitsight.errors import UserError

__all__ = ["Aware"]


class _Settings(Settings):
    halves: Literal["tail", "both"] = "tail"


@DEFENSES.register("aware")
class Aware(Learned):
    """Halves that were fine-tuned under the defences in front of it; the last of a chain."""

    name = "aware"
    Settings: ClassVar[type[Settings]] = _Settings

    def check(self, place: Place) -> None:
        """Refuse also a chain that it was not trained behind.

        Raises:
            UserError: one sentence that says which it was.
        """
        super().check(place)
        wanted = f"{self.about.get('chain')}+{self}"
        if place.chain != wanted:
            raise UserError(
                f"{self.file.name} was trained behind other defences than '{place.chain}' has in front of it: give "
                f"'{wanted}', or make another with `splitsight train defense aware`"
            )
