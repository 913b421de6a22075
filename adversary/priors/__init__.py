"""Generative priors: loading, sampling, training.

A prior is a folder in diffusers layout: an embedded one, one that another package names by an entry point
(``splitsight.priors``), or any other by its path.
"""

from __future__ import annotations

from pathlib import Path

from splitsight.artifacts import asset
from splitsight.registry import PathRegistry

__all__ = ["PRIORS"]


def _embedded() -> dict[str, Path]:
    root = asset("priors")
    return {p.name: p for p in root.iterdir() if (p / "vae").is_dir()} if root.is_dir() else {}


PRIORS = PathRegistry("prior", _embedded)
