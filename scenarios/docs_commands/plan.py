"""How a documented command is run on a small machine: the same command, with tiny sizes in place of the page's."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scenarios.docs_commands.found import Command

__all__ = ["Plan", "planned"]


@dataclass(frozen=True)
class Plan:
    """What to do with a command.

    Attributes:
        words: what is run; empty where it is not.
        because: why it is not run.
        server: it serves until the end of its page.
    """

    words: tuple[str, ...] = ()
    because: str = ""
    server: bool = field(default=False)


_TINY: dict[tuple[str, ...], dict[str, str | None]] = {
    ("demo",): {"--seconds": "6", "--gallery-size": "8", "--no-web": None},
    ("edge",): {"--seconds": "4"},
    ("attack",): {"--limit": "1"},
    ("train",): {"--minutes": "0.05"},
    ("run",): {"--quick": None},
    ("splits",): {"--quick": None},
    ("defend",): {"--quick": None},
    ("calibrate",): {"--limit": "2"},
    ("bench", "link"): {"--splits": "L8", "--networks": "wifi", "--frames": "12"},
    ("bench", "tune"): {"--trials": "1", "--limit": "1", "--iterations": "5"},
    ("bench", "attack"): {"--limit": "1", "--iterations": "5"},
    ("bench", "averaging"): {"--limit": "1", "--frames": "1,2"},
    ("bench", "serve"): {"--seconds": "2", "--soak": "1"},
}
"""Command → options, by which those of the page are replaced or to which they are added; without a value: a flag."""

_ONLY_IF_THERE = {"--gallery-size", "--iterations", "--soak"}
_FEW = {"do", "db", "dmb", "dmb-multi"}
"""Attacks whose iterations are cut."""


def _tiny(words: list[str]) -> list[str]:
    """The command with small sizes."""
    for name, options in _TINY.items():
        if tuple(words[1 : 1 + len(name)]) == name:
            for option, value in options.items():
                if option in words and value is not None:
                    words[words.index(option) + 1] = value
                elif option not in words and option not in _ONLY_IF_THERE:
                    words += [option] if value is None else [option, value]
    if words[1:3] == ["train", "inversion"] and "--oracle" in words and "--queries" not in words:
        words += ["--queries", "24", "--test-queries", "16"]
    if words[1] == "attack" and "multi" in words[2]:
        words[words.index("--limit") + 1] = "4"
    if words[1] == "attack" and words[2].partition(":")[0] in _FEW and "--set" not in words:
        words += ["--set", "iterations=4"]
    if words[1] == "splits" and "--attacks" in words and "--limit" not in words:
        words += ["--limit", "1"]  # one image a point: an attack takes up to a minute for four
    if words[1] == "splits" and "--images" not in words:
        words.remove("--quick")
    return words


def planned(command: Command, before: Sequence[Command]) -> Plan:
    """How a command is run.

    Args:
        command: of a page.
        before: those above it on the page, for what ``…`` stands for.
    """
    words = list(command.words)
    program = words[0]
    if program == "docker":
        return Plan(because="needs a Docker engine; scenarios.containers.prove builds and runs the same images")
    if program in ("apt-get", "podman", "ray"):
        return Plan(because="changes the machine or needs services of it")
    if program == "pip":
        if words[-1].startswith("./"):
            return Plan(tuple(words))
        return Plan(because="changes the environment that this runs in; .ci/run installs the package")
    if program == "pytest" or command.words[:3] == ("python", "-m", "pytest"):
        return Plan(because="the test suite itself, which .ci/run runs")
    if program == "python":
        if any(part in " ".join(words) for part in ("scenarios.docs_commands", "scenarios.containers")):
            return Plan(because="this script, or one that needs root and builds images")
        return Plan(tuple(words))
    if program != "splitsight":
        return Plan(tuple(words))
    if any(re.fullmatch(r"[A-Z]{3,}", word) for word in words) and "METHOD" in words:
        return Plan(because="a pattern: its capitals stand for other words")
    if "--merge" in words:
        return Plan(because="would write the package's own settings")
    if "--video" in words and words[words.index("--video") + 1] == "0" and not Path("/dev/video0").exists():
        return Plan(because="needs a camera")
    if "://" in option(words, "--video"):
        return Plan(because="needs a network stream")
    if "cuda" in words and shutil.which("nvidia-smi") is None:
        return Plan(because="needs an NVIDIA GPU")
    if option(words, "--weights").startswith("IMAGENET"):
        return Plan(because="needs published weights of full size, which nothing here fetches")
    if "--ray" in words:
        return Plan(because="needs a Ray cluster")
    if "…" in words:
        same = [c for c in before if c.words[:2] == command.words[:2] and "…" not in c.words]
        if not same:
            return Plan(because="continues a command that the page does not show")
        words = [*same[-1].words, *words[words.index("…") + 1 :]]
    return Plan(tuple(_tiny(words)), server=words[1] in ("cloud", "oracle", "adversary", "page"))


def option(words: Sequence[str], name: str, default: str = "") -> str:
    """The value that follows an option."""
    return words[list(words).index(name) + 1] if name in words else default


def implied_cloud(words: Sequence[str]) -> list[str]:
    """The server that an edge or an adversary wants which the page does not show."""
    same = [
        part
        for name in ("--target", "--input", "--split", "--weights")
        if name in words
        for part in (name, option(words, name))
    ]
    return ["splitsight", "cloud", *same, "--tap-port", "50052"]


def names(words: Sequence[str], there: Mapping[str, str]) -> list[str]:
    """The words with other names for hosts and folders."""
    changed = []
    for word in words:
        for old, new in there.items():
            word = word.replace(old, new)
        changed.append(word)
    return changed
