"""What a stream has told so far, and where it has to stop: ε of the frames that were sent.

A frame is counted when it is handed to the connection, before any byte of it leaves, so that what is counted is never
less than what was seen. It is counted once. A frame that is sent again after a lost connection is the same bytes, noise
included: whoever sees them twice has learnt nothing that once did not tell (post-processing), and it costs nothing
more. Noise that was drawn anew would.

Sessions add up as frames do: the same camera tomorrow is more of the same stream. A ledger (a small JSON file) carries
the count from session to session; it is written before each frame is sent, and belongs to one edge at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from splitsight.accounting import DELTA, Accountant, Mechanism
from splitsight.errors import UserError
from splitsight.files import cannot_write, held, write_json

__all__ = ["SPENT", "Spending", "check_budget"]

SPENT = 3
"""Exit status of an edge that stopped because its budget was spent."""
_WARN = 0.8
"""Part of the budget from which on it is warned of."""
_FORMAT = "splitsight.epsilon/1"


def check_budget(budget: float | None) -> None:
    """Refuses a budget that cannot be.

    Raises:
        UserError: not more than 0, or not finite.
    """
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise UserError(f"--epsilon-budget must be more than 0 and finite, not {budget:g}")


class Spending:
    """Counts frames of one session; holds the ledger until it is closed.

    Args:
        mechanism: of the session's defence; ``None`` where it guarantees nothing.
        defense: what is done to the features, for messages.
        budget: largest ε, of the ledger's frames and this session's; ``None`` for no limit.
        ledger: file that carries the count between sessions; ``None`` counts this session alone.
        warn: told once, in a sentence, when most of the budget is spent.

    Attributes:
        frames: sent by this session.
        frame: ε of one frame; ``None`` where nothing is guaranteed.
        accountant: of the ledger's frames and this session's.

    Raises:
        UserError: a budget or a ledger for a defence that guarantees nothing; a budget that is spent; a ledger that is
            damaged, in use, or of another δ.
    """

    def __init__(
        self,
        mechanism: Mechanism | None,
        defense: str,
        *,
        budget: float | None = None,
        ledger: Path | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_budget(budget)
        if mechanism is None and (budget is not None or ledger is not None):
            raise UserError(
                f"the defence {defense} guarantees nothing, so that no ε can be counted: give one that does, such as "
                "--defense 'clip:norm=20+gaussian:epsilon=8', or leave --epsilon-budget and --epsilon-ledger out"
            )
        self.mechanism, self.budget, self._ledger, self._warn = mechanism, budget, ledger, warn
        self.frames = 0
        self.frame = None if mechanism is None else mechanism.epsilon()
        self.accountant = Accountant(DELTA if mechanism is None else mechanism.delta)
        self._before: list[dict[str, Any]] = []
        self._warned = False
        self._held = ExitStack()
        try:
            if ledger is not None:
                self._open(ledger)
            # a frame or more, or one sentence
            left = None if mechanism is None or budget is None else self.accountant.affordable(mechanism, budget)
        except BaseException:
            self.close()
            raise
        self._allowed = left

    @property
    def epsilon(self) -> float | None:
        """ε so far, with the ledger's; ``None`` where nothing is guaranteed."""
        return None if self.mechanism is None else self.accountant.epsilon

    @property
    def spent(self) -> bool:
        """Whether the budget holds no further frame."""
        return self._allowed is not None and self.frames >= self._allowed

    def send(self) -> None:
        """Count one frame that is about to be sent.

        Raises:
            UserError: the ledger cannot be written; the frame must not be sent then.
        """
        self.frames += 1
        if self.mechanism is None:
            return
        self.accountant.spent(self.mechanism)
        if self._ledger is not None:
            self._write(self._ledger)
        if self.budget is not None and not self._warned and self.accountant.epsilon >= _WARN * self.budget:
            self._warned = True
            left = (self._allowed or 0) - self.frames
            self._warn(
                f"ε = {self.accountant.epsilon:.4g} of the budget of {self.budget:g} is spent: "
                f"{left} more frame{'' if left == 1 else 's'} until this edge stops"
            )

    def summary(self) -> dict[str, Any]:
        """ε of a frame, of this session's stream with the ledger's, δ, and the budget; for JSON."""
        m = self.mechanism
        return {
            "frame": self.frame,
            "stream": self.epsilon,
            "delta": None if m is None else self.accountant.delta,
            "frames": None if m is None else self.accountant.frames,
            "budget": self.budget,
        }

    def stopped(self, answered: int) -> UserError:
        """The sentence of an edge that stops because no further frame fits."""
        return UserError(
            f"the privacy budget ε = {self.budget:g} is spent: ε = {self.accountant.epsilon:.4g} "
            f"(δ = {self.accountant.delta:g}) over {self.accountant.frames} frames, and one more would exceed it; "
            f"{self.frames} were sent now and {answered} answered",
            code=SPENT,
        )

    # ---------------------------------------------------------------- the ledger

    def _open(self, path: Path) -> None:
        try:
            mine = self._held.enter_context(held(path.with_name(f".{path.name}.lock"), wait=False))
        except OSError as error:
            raise cannot_write(path, error) from error
        if not mine:
            raise UserError(f"another edge is counting in {path}: give each its own --epsilon-ledger")
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                raise ValueError(found["format"])
            delta, entries = float(found["delta"]), list(found["spent"])
            for entry in entries:
                law, multiplier, frames = str(entry["law"]), float(entry["multiplier"]), int(entry["frames"])
                if law not in ("gaussian", "laplace") or not multiplier > 0 or frames < 0:
                    raise ValueError(entry)
                self.accountant.spent(Mechanism(law, multiplier), frames)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no ledger of ε ({type(error).__name__}): give another --epsilon-ledger, and remember that "
                "what this one counted stays spent"
            ) from error
        if delta != self.accountant.delta:
            raise UserError(
                f"{path} counts at δ = {delta:g}, this defence at {self.accountant.delta:g}: give another "
                f"--epsilon-ledger, or delta={delta:g} in the defence"
            )
        self._before = entries

    def _write(self, path: Path) -> None:
        assert self.mechanism is not None
        now = {"law": self.mechanism.law, "multiplier": self.mechanism.multiplier, "frames": self.frames}
        write_json(path, {"format": _FORMAT, "delta": self.accountant.delta, "spent": [*self._before, now]})

    def close(self) -> None:
        """Let another edge use the ledger."""
        self._held.close()
