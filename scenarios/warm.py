"""An adversary that loads its libraries while the options that it will be started with are still being checked.

Loading PyTorch and diffusers takes an adversary four seconds of a core, and whoever starts a demonstration sees nothing
before. So it starts with the demonstration, on the core that checking leaves idle (:class:`Warm`); its command line
comes later, as one line on its standard input (:func:`main`). Without that line it does nothing and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from scenarios.processes import die_with_parent, spawn

__all__ = ["Warm", "main"]


class Warm(AbstractContextManager["Warm"]):
    """A process that waits for the command line of one role; whoever leaves the context ends it if it was not taken.

    Args:
        role: name of a command of ``splitsight`` whose libraries it loads.
        environment: variables on top of this process's own; what :meth:`take` is asked for must not differ.
        also: further modules, which not every command of that role may load.
    """

    def __init__(self, role: str, environment: Mapping[str, str], also: Sequence[str] = ()) -> None:
        self.role, self.environment = role, dict(environment)
        # until it has a log: what it says then is said again by the process that is started in its place
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  for as long as this object lives
        self._process: subprocess.Popen[str] | None = spawn(
            ["-m", "scenarios.warm", role, *also], environment, stdin=subprocess.PIPE, stderr=self._words
        )

    def take(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[str] | None:
        """Have it run ``python ARGUMENTS``, if it is still there and loaded the libraries of that command.

        Args:
            arguments: ``-m scenarios ROLE …``.
            environment: see above.
            log: an existing file for its standard error.

        Returns:
            The process; ``None`` where another must be started.
        """
        process = self._process
        if process is None or list(arguments[:3]) != ["-m", "scenarios", self.role] or environment != self.environment:
            return None
        self._process = None
        assert process.stdin is not None
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps({"arguments": [*arguments[2:]], "log": str(log)}) + "\n")
        except OSError:  # it died; the process in its place will say why
            process.wait()
            return None
        return process

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._words.close()


def main(role: str, *also: str) -> None:
    """Load what a role needs, wait for its command line, and run it; always raises :class:`SystemExit`."""
    from scenarios import __main__, interrupt
    from scenarios.cli import guard

    interrupt.leave_at_once()
    die_with_parent()
    guard.load((*guard.MODULES[role], *also))
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    order = json.loads(line)
    for target, flags, path in ((0, os.O_RDONLY, os.devnull), (2, os.O_WRONLY | os.O_APPEND, order["log"])):
        opened = os.open(path, flags)
        os.dup2(opened, target)
        os.close(opened)
    sys.argv[1:] = order["arguments"]
    __main__.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
