"""``python -m scenarios.docs_commands``: run every command of the documentation on tiny inputs; a table of which ran.

Each page has a folder of its own, in which its commands run in their order, so that one finds what the one before it
made. Servers of a page run until its end; where it shows an edge or an adversary alone, the server it wants is
started, too. Nothing is written outside ``--work``.
"""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from scenarios.docs_commands.found import ROOT, Command, commands, parsed
from scenarios.docs_commands.inputs import install, make_inputs
from scenarios.docs_commands.plan import implied_cloud, names, option, planned
from scenarios.processes import terminate_as_interrupt

_HOSTS = {"cloud.example": "localhost"}


class _Result(NamedTuple):
    outcome: str
    note: str = ""
    seconds: float = 0.0


class _Page:
    """The commands of one page, in its folder."""

    def __init__(self, folder: Path, environment: dict[str, str], limit: float) -> None:
        self.folder, self.environment, self.limit = folder, environment, limit
        self.servers: dict[str, tuple[subprocess.Popen[str], IO[str], list[str]]] = {}
        self.log = 0

    def _command(self, words: list[str]) -> list[str]:
        if words[0] == "splitsight":
            return [sys.executable, "-m", "scenarios", *words[1:]]
        if words[0] == "python":
            return [sys.executable, *words[1:]]
        return ["sh", "-c", " ".join(w if w == ">" else shlex.quote(w) for w in words)]

    def _open(self) -> IO[str]:
        self.log += 1
        return (self.folder / f"output-{self.log}.txt").open("w+", encoding="utf-8")

    def _start(self, words: list[str]) -> str:
        """Start a server; returns what is wrong with it, in a few words."""
        key = _key(words)
        if key in self.servers:
            self.end(key)
        out = self._open()
        process = subprocess.Popen(
            self._command(words), stdout=out, stderr=out, cwd=self.folder, env=self.environment, text=True
        )
        self.servers[key] = process, out, words
        end = time.monotonic() + self.limit
        while time.monotonic() < end:
            if '"ready"' in Path(out.name).read_text():
                return ""
            if process.poll() is not None:
                return _last(out)
            time.sleep(0.2)
        return f"not ready within {self.limit:.0f} s"

    def _wanted(self, words: list[str]) -> None:
        """Start the server that an edge or an adversary wants and the page has not started."""
        clouds = [server for server in self.servers.values() if server[2][1] == "cloud" and server[0].poll() is None]
        if words[1] == "adversary" and not clouds:
            self._start(implied_cloud(words))
        if words[1] == "edge":
            same = ("--target", "--split")
            if not any(all(option(there, o) == option(words, o) for o in same) for _, _, there in clouds):
                self._start(implied_cloud(words))

    def run(self, words: list[str], *, server: bool) -> _Result:
        """One command, to its end or, of a server, until it is ready."""
        began = time.monotonic()
        words = [hit for word in names(words, _HOSTS) for hit in self._globbed(word)]
        if words[0] == "splitsight":
            self._wanted(words)
        if words[:2] == ["pip", "install"]:
            install(self.folder / words[2].removeprefix("./"), Path(self.environment["SITE"]))
            return _Result("ran", seconds=time.monotonic() - began)
        if server:
            wrong = self._start(words)
            return _Result("failed" if wrong else "ran", wrong or "until the end of its page", time.monotonic() - began)
        with self._open() as out:
            process = subprocess.Popen(
                self._command(words), stdout=out, stderr=out, cwd=self.folder, env=self.environment, text=True
            )
            try:
                code = process.wait(self.limit)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                return _Result("stopped", f"at the limit of {self.limit:.0f} s", time.monotonic() - began)
            took = time.monotonic() - began
            return _Result("ran", seconds=took) if code == 0 else _Result("failed", f"{code}: {_last(out)}", took)

    def _globbed(self, word: str) -> list[str]:
        """A path with ``…`` in it is the newest that fits."""
        if "…" not in word:
            return [word]
        found = sorted(glob.glob(str(self.folder / word.replace("…", "*"))))
        return [found[-1] if found else word]

    def end(self, key: str) -> str:
        """End a server; returns what went wrong with it."""
        process, out, _ = self.servers.pop(key)
        if process.poll() is None:
            process.terminate()
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            return "does not end"
        with out:
            return "" if code == 0 else f"{code}: {_last(out)}"


def _key(words: Sequence[str]) -> str:
    """What a server is known by: another one by that name takes its place."""
    return " ".join([*words[1:2], option(words, "--port", "50051")])


def _last(out: IO[str]) -> str:
    lines = Path(out.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "says nothing"


def _page(page: str, own: list[Command], runner: _Page) -> list[tuple[Command, _Result]]:
    """Run a page's commands."""
    rows: list[tuple[Command, _Result]] = []
    for i, command in enumerate(own):
        plan = planned(command, own[:i])
        wrong = (
            parsed(list(command.words[1:]))
            if command.words[0] == "splitsight" and "METHOD" not in command.words
            else None
        )
        if wrong:
            result = _Result("failed", f"does not parse: {wrong}")
        elif not plan.words:
            result = _Result("not run", plan.because)
        else:
            result = runner.run(list(plan.words), server=plan.server)
        rows.append((command, result))
        print(
            f"{page}:{command.line}: {result.outcome} {result.note} ({result.seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    for key in list(runner.servers):
        if wrong := runner.end(key):
            rows = [
                (c, _Result("failed", wrong) if _key(c.words) == key and r.outcome == "ran" else r) for c, r in rows
            ]
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run, print.

    Returns:
        Exit code: 1 where a command failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scenarios.docs_commands", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="", help="pages whose name contains this")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a command, or a start, may take")
    parser.add_argument("--work", type=Path, help="folder; default: a temporary one, removed at the end")
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="splitsight-docs-"))
    inputs, site = work / "inputs", work / "site"
    inputs.mkdir(parents=True)
    make_inputs(inputs)
    site.mkdir()
    install(inputs / "outside", site)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "SPLITSIGHT_HOME": str(work / "home"),
        "SITE": str(site),
        "COLUMNS": "200",
    }
    by_page: dict[str, list[Command]] = {}
    for command in commands():
        by_page.setdefault(command.page, []).append(command)
    rows: list[tuple[Command, _Result]] = []
    for page, own in by_page.items():
        if options.only not in page:
            continue
        folder = work / page.replace("/", "-").removesuffix(".md")
        folder.mkdir()
        for entry in inputs.iterdir():
            (folder / entry.name).symlink_to(entry)
        runner = _Page(folder, environment, options.limit)
        try:
            rows += _page(page, own, runner)
        finally:
            for key in list(runner.servers):
                runner.end(key)
    print("| page | command | what came of it |\n| --- | --- | --- |")
    for command, result in rows:
        took = f", {result.seconds:.0f} s" if result.seconds else ""
        print(
            f"| {command.page}:{command.line} | `{command}` | {result.outcome}{took} {result.note} |".replace("\n", " ")
        )
    outcomes = Counter(result.outcome for _, result in rows)
    print("\n" + ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())))
    if options.work is None:
        shutil.rmtree(work)
    return int(outcomes["failed"] > 0)


if __name__ == "__main__":
    with terminate_as_interrupt():
        sys.exit(main())
