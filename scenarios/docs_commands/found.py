"""Commands in Markdown, and what the real parser says of their arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

__all__ = ["ROOT", "Command", "commands", "examples", "pages", "parsed", "relative_links"]

ROOT = Path(__file__).resolve().parents[2]

_PROGRAMS = "splitsight|pip|python|docker|podman|head|apt-get|ray"
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{_PROGRAMS}) ")
_FENCE = re.compile(r"\s*```(\w*)")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'^(?:"""|# )([\w-]+/[\w.]+)')
"""How an example begins: with the file that it is."""


class Command(NamedTuple):
    """One command of a page.

    Attributes:
        page: path from the root of the repository.
        line: from 1.
        words: as a shell splits them, without settings of variables.
        settings: variables that are set for it.
    """

    page: str
    line: int
    words: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join([*self.settings, *self.words]).replace("'…'", "…")


def pages(root: Path = ROOT) -> list[Path]:
    """README and every page that is written by hand; the reference is made from the code."""
    written = [page for page in sorted((root / "docs").rglob("*.md")) if "reference" not in page.parts]
    return [root / "README.md", *written]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Commands with the number of their first line; a fence in a programming language holds none."""
    lines, fence, at = text.splitlines(), None, 0
    while at < len(lines):
        line, number = lines[at], at + 1
        at += 1
        if mark := _FENCE.match(line):
            fence = mark[1] if fence is None else None
            continue
        shown = line.strip()
        inside = fence in ("", "sh", "bash", "console") or (fence is None and line.startswith("    "))
        if not inside or not _COMMAND.match(shown):
            continue
        while shown.endswith("\\") and at < len(lines):
            shown = shown[:-1] + lines[at].strip()
            at += 1
        yield number, shown


def commands(root: Path = ROOT) -> list[Command]:
    """All commands, in the order of the pages; those that ``&&`` or ``&`` part are commands of their own."""
    found = []
    for page in pages(root):
        for number, shown in _lines(page.read_text(encoding="utf-8")):
            words = shlex.split(shown, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in ("&&", "&")), len(words))
                part, words = words[:end], words[end + 1 :]
                first = next(i for i, word in enumerate(part) if not re.fullmatch(r"[A-Z_]+=.*", word))
                found.append(Command(str(page.relative_to(root)), number, tuple(part[first:]), tuple(part[:first])))
    return found


def parsed(arguments: list[str]) -> str | None:
    """What the command line says against the arguments of ``splitsight``; ``None`` for nothing. Nothing is run.

    Missing arguments are overlooked where ``…`` stands for them.
    """
    from scenarios.cli import app

    command: Any = typer.main.get_command(app)
    context, rest = typer.Context(command, info_name="splitsight"), [word for word in arguments if word != "…"]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"there is no command {' '.join(arguments[:2])}"
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(command.name, rest, parent=context)
    except typer.Exit:
        return None
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if "…" in arguments and type(error).__name__ == "MissingParameter":
            return None
        return str(error.format_message())  # type: ignore[attr-defined]
    return None


def examples(page: Path) -> dict[str, str]:
    """File → text, of a page's fenced examples that begin with the name of a file."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return {name[1]: code for _, code in blocks if (name := _FILE.match(code))}


def relative_links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, so far as that is in the repository."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", to)]
