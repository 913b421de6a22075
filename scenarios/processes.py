"""Start the roles as processes, hear when they are ready, and leave none behind.

A child is told the parent's process id in ``SPLITSIGHT_PARENT``; :func:`die_with_parent`, its first call,
ends it when that parent is gone, even after ``kill -9``. On every other way out :class:`Supervisor` kills
the process group of each child, so what a child started goes with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

import psutil

from splitsight.errors import UserError

if TYPE_CHECKING:
    from scenarios.warm import Warm

__all__ = ["PREFIX", "Child", "Supervisor", "die_with_parent", "spawn", "terminate_as_interrupt"]

PREFIX = "splitsight: "
"""What the command line puts before the one sentence that says what went wrong."""

_PARENT = "SPLITSIGHT_PARENT"
_PR_SET_PDEATHSIG = 1
_ORPHAN_GRACE_S = 10.0
_NO_ROOM_BYTES = 64 * 1024


def die_with_parent() -> None:
    """End this process once the supervisor that started it is gone; does nothing without a supervisor.

    SIGTERM comes first, so that a recording is closed; a process that is still there 10 s later kills its
    whole group.
    """
    parent = int(os.environ.pop(_PARENT, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request above was in place
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE_S)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise ``KeyboardInterrupt``, so that one clean-up serves all three.

    What is ignored stays so: under ``nohup`` the end of a terminal ends nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Child:
    """One running process of a scenario.

    Attributes:
        name: word for messages, ``"cloud server"``.
        log: file that collects its stderr and whatever else it prints.
        peak_rss_mb: largest resident memory seen so far, in 10⁶ bytes.
        expected_to_end: whether its end is part of the plan (then :meth:`Supervisor.check` accepts exit code 0).
        accepted: further exit codes that are part of the plan then.
    """

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[str],
        log: Path,
        *,
        expected_to_end: bool,
        accepted: Collection[int] = (),
    ) -> None:
        self.name, self.process, self.log, self.expected_to_end = name, process, log, expected_to_end
        self.accepted = frozenset({0, *accepted})
        self.peak_rss_mb = 0.0
        self.stopping = False
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, name=f"{name}-stdout", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with suppress(ValueError, OSError), self.log.open("a", encoding="utf-8") as log:
            for line in self.process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                with self._news:
                    if isinstance(event, dict) and "event" in event:
                        self.events.append(event)
                        self._news.notify_all()
                    else:
                        log.write(line)
                        log.flush()
        with self._news:
            self._closed = True
            self._news.notify_all()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def wait_event(self, name: str, timeout: float, *, tick: Callable[[], None] | None = None) -> dict[str, Any]:
        """The first stdout line ``{"event": name, …}``.

        Args:
            name: the event's name.
            timeout: seconds.
            tick: called about four times a second meanwhile.

        Raises:
            UserError: it ended first (with its own words), or stayed silent.
        """
        deadline = time.monotonic() + timeout
        while True:
            if tick is not None:
                tick()
            with self._news:
                for event in self.events:
                    if event["event"] == name:
                        return event
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    break
                self._news.wait(min(left, 0.25))
        if not self._closed:
            raise UserError(f"the {self.name} was not ready within {timeout:.0f} s: see {self.log}", code=1)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        raise self.failure()

    def failure(self) -> UserError:
        """Its end as an error: its own sentence where it left one, else how it ended and where its log is."""
        code = self.process.poll()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        said = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
        if said and code:
            return UserError(f"{self.name}: {said[0]}", code=code if 0 < code < 126 else 1)
        with suppress(OSError):
            if code and not said and shutil.disk_usage(self.log.parent).free < _NO_ROOM_BYTES:
                # it could not even write down what it had to say
                return UserError(
                    f"the disk of {self.log.parent.parent} is full, which ended the {self.name}: free some space; "
                    "what was recorded so far is readable",
                    code=1,
                )
        how = "ended" if code is None or code == 0 else f"ended with exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        last = next((line.strip() for line in reversed(lines) if line.strip() and code != 0), "")
        return UserError(f"the {self.name} {how} unexpectedly: see {self.log}" + (f" ({last})" if last else ""), code=1)

    def sample_memory(self) -> None:
        """Update :attr:`peak_rss_mb`; the kernel's own high-water mark is used where there is one."""
        with suppress(psutil.Error, OSError, ValueError):
            self.peak_rss_mb = max(self.peak_rss_mb, peak_rss_mb(self.process.pid))

    def signal_group(self, number: int) -> None:
        """Send a signal to its whole process group, if that still exists."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def peak_rss_mb(pid: int) -> float:
    """Peak resident memory of a process in 10⁶ bytes (its current one where the kernel keeps no peak)."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return psutil.Process(pid).memory_info().rss / 1e6


def spawn(
    arguments: Sequence[str], environment: Mapping[str, str], *, stderr: IO[Any], stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS`` in a session of its own, with a pipe for what it prints.

    Args:
        arguments: what follows the interpreter.
        environment: variables on top of this process's own.
        stderr: where its messages go.
        stdin: as for :class:`subprocess.Popen`.
    """
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, _PARENT: str(os.getpid())},
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


class Supervisor(AbstractContextManager["Supervisor"]):
    """Children that live no longer than this context.

    Must be entered in the main thread: the kernel ties a child's parent-death signal to the thread that
    started it.

    Args:
        logs: folder for one ``NAME.log`` a child; created.
        warm: a process that has begun to load what one of the children needs; the first such child is made of it.
    """

    def __init__(self, logs: Path, warm: Warm | None = None) -> None:
        self.logs, self.warm = logs, warm
        self.children: dict[str, Child] = {}
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="memory", daemon=True)

    def __enter__(self) -> Supervisor:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _sample(self) -> None:
        while not self._done.wait(0.25):
            for child in list(self.children.values()):
                if child.alive:
                    child.sample_memory()

    def start(
        self,
        key: str,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        nice: int = 0,
        expected_to_end: bool = False,
        accepted: Collection[int] = (),
    ) -> Child:
        """Start ``python ARGUMENTS``.

        Args:
            key: short name: of the log file, and in :attr:`children`.
            name: word for messages.
            arguments: what follows the interpreter.
            environment: variables on top of this process's own.
            nice: lower priority by this much (0…19).
            expected_to_end: it may end by itself with exit code 0.
            accepted: further exit codes that it may end with then.
        """
        log = self.logs / f"{key}.log"
        log.write_bytes(b"")
        process = None if self.warm is None else self.warm.take(arguments, environment or {}, log)
        if process is None:
            with log.open("a", encoding="utf-8") as stderr:  # appended to from here and from the child
                process = spawn(arguments, environment or {}, stderr=stderr)
        child = self.children[key] = Child(name, process, log, expected_to_end=expected_to_end, accepted=accepted)
        if nice and hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        return child

    def check(self) -> None:
        """Raise what the first child that ended out of turn has to say.

        Raises:
            UserError: a child ended that should not have, or ended with an error.
        """
        for child in self.children.values():
            code = child.process.poll()
            if code is None or child.stopping:
                continue
            if code not in child.accepted or not child.expected_to_end:
                raise child.failure()

    def stop(self, key: str, *, grace: float) -> int:
        """Send SIGTERM and wait.

        Args:
            key: which child.
            grace: seconds until its group is killed.

        Returns:
            Its exit code; negative is the signal that ended it.
        """
        child = self.children[key]
        child.stopping = True
        if child.alive:
            child.sample_memory()
            with suppress(ProcessLookupError):
                child.process.terminate()
            try:
                child.process.wait(grace)
            except subprocess.TimeoutExpired:
                child.signal_group(signal.SIGKILL)
                child.process.wait()
        return child.process.returncode

    def kill(self) -> None:
        """End every process group at once and reap the children; a second Ctrl-C cannot get in between."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        try:
            self._done.set()
            for child in self.children.values():
                child.stopping = True
                child.signal_group(signal.SIGKILL)
            for child in self.children.values():
                child.process.wait()
                child._reader.join(1.0)
                stdout: IO[str] | None = child.process.stdout
                if stdout is not None and not child._reader.is_alive():
                    stdout.close()
        finally:
            if main:
                signal.signal(signal.SIGINT, before)

    def peak_rss_mb(self) -> dict[str, float]:
        """Peak resident memory per child, in 10⁶ bytes."""
        return {key: round(child.peak_rss_mb, 1) for key, child in self.children.items()}
