"""``python metadata.py PYPROJECT FOLDER``: name and version of the package, as an installer leaves them.

The images hold the packages of a role, not an installation, and sessions, rows and summaries name the version. Only the
standard library is there when this runs.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

__all__ = ["write_metadata"]


def write_metadata(pyproject: Path, folder: Path) -> None:
    """Write ``NAME-VERSION.dist-info/METADATA`` (PEP 627) into a folder that need not exist."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")


if __name__ == "__main__":
    write_metadata(Path(sys.argv[1]), Path(sys.argv[2]))
