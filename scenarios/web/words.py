"""What of the page does not change, in files beside its script: pictures' places, and the explanation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["STATIC", "part"]

STATIC = Path(__file__).with_name("static")
"""Everything that the page needs besides NiceGUI's own files."""


@cache
def part(name: str) -> str:
    """HTML of a part of the page: ``lost``, ``panels``, ``sweep``, ``explanation``."""
    return (STATIC / f"{name}.html").read_text(encoding="utf-8")
