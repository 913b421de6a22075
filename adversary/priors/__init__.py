"""Generative priors: loading, sampling, training.

A prior is a folder in diffusers layout: an embedded one, one that another package names by an entry point
(``splitsight.priors``), or any other by its path. Options for large ones follow a colon (:data:`OPTIONS`):
``folder/sd-2-1:half,slicing``.
"""

from __future__ import annotations

from pathlib import Path

from splitsight.artifacts import asset
from splitsight.registry import PathRegistry

__all__ = ["OPTIONS", "PRIORS", "prior_options"]

OPTIONS = {
    "half": "float16, half the memory; for GPUs",
    "slicing": "attention and decoder work through their input in slices: less memory, more time",
    "checkpointing": "layers are computed again on the way back instead of kept: less memory, more time",
}
"""What may be asked of a prior, and what it does."""


def _embedded() -> dict[str, Path]:
    root = asset("priors")
    return {p.name: p for p in root.iterdir() if (p / "vae").is_dir()} if root.is_dir() else {}


PRIORS = PathRegistry("prior", _embedded)


def prior_options(given: str) -> tuple[str, frozenset[str]]:
    """Name or folder of a prior, and the options behind its colon."""
    place, colon, options = given.rpartition(":")
    words = options.split(",")
    if colon and place and set(words) <= set(OPTIONS):
        return place, frozenset(words)
    return given, frozenset()
