"""Model cards: what a file of weights was made from, with which command, in what time, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from splitsight.devices import device_name, pick_device
from splitsight.files import write_text

__all__ = ["write_card"]


def write_card(
    folder: Path,
    name: str,
    *,
    what: str,
    data: str,
    command: str,
    figures: Mapping[str, float | int | bool | str],
    notes: str = "",
) -> None:
    """Write ``folder/README.md``.

    Args:
        folder: the model's folder.
        name: heading.
        what: one paragraph on architecture and use.
        data: what it was trained on, and what was held out.
        command: makes it again.
        figures: as returned by the trainer; ``minutes`` is training time.
        notes: limits, intended use.
    """
    rows = "\n".join(f"| {k} | {round(v, 4) if isinstance(v, float) else v} |" for k, v in figures.items())
    write_text(
        folder / "README.md",
        f"# {name}\n\n{what}\n\n**Data.** {data}\n\n**Command.** `{command}`, on {device_name(pick_device())}, "
        f"PyTorch {torch.__version__}.\n\n"
        f"| figure | value |\n| --- | --- |\n{rows}\n" + (f"\n{notes}\n" if notes else ""),
    )
