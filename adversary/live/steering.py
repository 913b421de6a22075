"""What an operator sees and changes of a running adversary: the attack that solves its windows, and the prompt.

Another attack, or another prompt, is another engine over the same session. It is made in a thread of its own while the
old one goes on, warmed up, and takes its place between two windows; one that cannot be made leaves the old one there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from adversary.attacks import ATTACKS
from splitsight.errors import UserError
from splitsight.wire.operator import only
from splitsight.wire.v1 import operator_pb2 as pb

if TYPE_CHECKING:
    from adversary.live.options import Known, LiveOptions

__all__ = ["Steering"]


class Steering:
    """A handler for :func:`splitsight.wire.operator.served`.

    Args:
        options: as the adversary was started.
        make: options → what is known, warmed up; raises ``UserError``.
        take: gets what was made.
        told: fills in frames and whether the tap is there.
    """

    def __init__(
        self,
        options: LiveOptions,
        make: Callable[[LiveOptions], Known],
        take: Callable[[Known, LiveOptions], None],
        told: Callable[[pb.OperatorStatus], None],
    ) -> None:
        self._options, self._make, self._take, self._told = options, make, take, told
        self._wanted: LiveOptions | None = None
        self._problem = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def status(self) -> pb.OperatorStatus:
        """What solves the windows now, or is about to."""
        with self._lock:
            now = self._options
            found = pb.OperatorStatus(
                role="adversary",
                attack=now.named,
                prompt=now.prompt,
                busy=self._thread is not None,
                problem=self._problem,
            )
        self._told(found)
        return found

    def change(self, wanted: pb.ChangeRequest) -> None:
        """Begin to make another engine; :meth:`status` says what became of it.

        Raises:
            UserError: there is no such attack or setting.
        """
        only(wanted, {"attack", "prompt"}, "adversary")
        with self._lock:
            options = self._wanted or self._options
            if wanted.HasField("attack"):
                name, _, setting = wanted.attack.partition(":")
                ATTACKS.get(name).configured(setting or None, target=options.target, split=options.split)
                # values that were set belong to the attack that they were set for
                options = replace(options, attack=name, setting=setting, changes={})
            if wanted.HasField("prompt"):
                options = replace(options, prompt=wanted.prompt)
            if options.prompt and not ATTACKS.get(options.attack).text:
                raise UserError(f"a prompt changes nothing for {options.attack}: leave it empty")
            self._wanted, self._problem = options, ""
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="operator-change", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._thread = None
                    return
            try:
                self._take(self._make(wanted), wanted)
                problem = ""
            except UserError as error:
                problem = str(error)
            except Exception as error:  # the old engine goes on; the operator reads why
                problem = f"{type(error).__name__}: {error}"
            with self._lock:
                self._problem = problem
                if not problem:
                    self._options = wanted
