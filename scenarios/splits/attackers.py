"""Which attackers try a split point, what each of them knows, and what it lacks there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from adversary.attacks import ATTACKS, Attack
from adversary.blackbox.inversion import NoInversionNetwork
from adversary.blackbox.networks import AttackNetwork
from scenarios.workbench import Workbench
from splitsight.artifacts import digest
from splitsight.errors import UserError
from splitsight.wire.sessions import UNDEFENDED, SessionDescription

__all__ = ["DEFAULT", "NONE", "Attacker", "Ready", "parse_attackers"]

DEFAULT, NONE = "default", "none"
"""What stands for :data:`_DEFAULTS`, and for no attack at all."""

_DEFAULTS = ("best:sharp", "net-best:sharp")
"""The strongest white-box and black-box attacker by recognition; the first needs no network of its own."""


@dataclass(frozen=True)
class Attacker:
    """An attack in one of its settings.

    Attributes:
        name: as the command line takes it, ``best:sharp``.
        method: name of the attack.
        setting: named setting; ``None`` for the attack's own default.
    """

    name: str
    method: str
    setting: str | None

    @property
    def threat(self) -> Literal["white-box", "black-box"]:
        """Whether it knows the first part of the network, or has learnt from an oracle's answers."""
        return "black-box" if "network" in ATTACKS.get(self.method).needs else "white-box"

    def ready(self, models: Workbench, about: SessionDescription, flags: str = "") -> Ready:
        """Look up what the attack needs at a point.

        Args:
            models: with the target and the prior.
            about: what is attacked.
            flags: options by which a command names the target.
        """
        attack = ATTACKS.get(self.method).configured(self.setting, target=about.target, split=about.split)
        remarks, network = [], None
        try:
            if "network" in attack.needs:
                network = models.network(attack, about)
            elif "initial" in attack.needs:
                models.initial(about)
        except UserError as error:
            return Ready(self, attack, missing=self._how_to_train(about, flags, str(error)))
        if "initial" in attack.uses:
            try:
                models.initial(about)
            except NoInversionNetwork as error:
                remarks.append(f"it starts without an inversion network: {error}")
        if "pipeline" in attack.needs and type(attack).space():
            found = attack.tuned_at(self.setting, target=about.target, split=about.split)
            if found != "split":
                how = "tuned over the network's points together, not for this one" if found else "not tuned for it"
                remarks.append(f"its setting was {how}")
        asked = network or models.asked(about)
        return Ready(self, attack, network, None if asked is None else digest(asked.state_dict()), "", tuple(remarks))

    def _how_to_train(self, about: SessionDescription, flags: str, why: str) -> str:
        """Why there is no network, with the commands that make one."""
        if "network" not in ATTACKS.get(self.method).needs:
            return why
        flags = f"{flags or f'--target {about.target}'} --split {quote(about.split)}"
        flags += f" --defense {quote(about.defense)}" if about.defense != UNDEFENDED else ""
        return f"{why}; the oracle is `splitsight oracle {flags} --budget 5120`"


@dataclass(frozen=True)
class Ready:
    """An attacker at a point.

    Attributes:
        attacker: who.
        attack: configured.
        network: of a black-box attack.
        weights: digest of the network that the attack takes, inversion network or its own; ``None`` for none.
        missing: why it cannot try, in one sentence; empty where it can.
        remarks: what weakens it there.
    """

    attacker: Attacker
    attack: Attack
    network: AttackNetwork | None = None
    weights: str | None = None
    missing: str = ""
    remarks: tuple[str, ...] = ()


def parse_attackers(wanted: Sequence[str]) -> list[Attacker]:
    """Attackers out of ``NAME[:SETTING]``, several joined by commas; ``default`` and ``none`` as :data:`DEFAULT` says.

    Raises:
        UserError: no such attack or setting, one that needs several frames at once, or one twice.
    """
    names = [name.strip() for text in wanted for name in text.split(",") if name.strip()]
    if NONE in names:
        if len(names) > 1:
            raise UserError("--attacks none goes with no other attack: leave it out, or the others")
        return []
    found = []
    for name in (one for given in names for one in (_DEFAULTS if given == DEFAULT else (given,))):
        method, _, setting = name.partition(":")
        kind = ATTACKS.get(method)
        kind.configured(setting or None)  # says which settings there are
        if kind.windowed:
            raise UserError(f"{method} solves windows of frames and points are compared on single images: leave it out")
        found.append(Attacker(f"{method}:{setting or next(iter(kind.presets))}", method, setting or None))
    if len({attacker.name for attacker in found}) < len(found):
        raise UserError(f"--attacks names an attack twice: {', '.join(attacker.name for attacker in found)}")
    return found
