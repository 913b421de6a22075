"""The examples of ``docs/extend`` as a package."""

import re
from pathlib import Path

from scenarios.docs_commands.found import examples

PAGES = Path(__file__).resolve().parents[2] / "docs" / "extend"
KINDS = ("attack", "defense", "metric", "prior", "recipe", "scenario", "target", "task")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> dict[str, str]:
    """File name → text, of a page's examples."""
    return examples(PAGES / f"{kind}.md")


def write_package(folder: Path) -> None:
    """The package that the overview's ``pyproject.toml`` and the pages' examples make."""
    overview = dict(_BLOCK.findall((PAGES / "README.md").read_text(encoding="utf-8")))
    files = {"pyproject.toml": overview["toml"], "outside/__init__.py": ""}
    for kind in KINDS:
        files |= blocks(kind)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
