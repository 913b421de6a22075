"""No defence: the baseline that every other one is compared with."""

from __future__ import annotations

from splitsight.defenses import DEFENSES, Defense, Parameters

__all__ = ["Identity"]


@DEFENSES.register("identity")
class Identity(Defense[Parameters]):
    """Sends the features as they are."""

    name = "identity"
