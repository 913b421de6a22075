"""The folder of a run: rows that are never lost and never computed twice.

Work is cut into *units* (a batch of images, or a window, of one cell). A unit's rows appear at once, as one Parquet
file ``parts/UNIT.parquet``, written under another name and renamed. Whoever computes a unit holds a lock on
``claims/UNIT``: the kernel releases it when its owner ends, however it ends, so that the claim of a dead process is
free at the same moment, and two processes can never take it over at once. A unit is done when its part exists, and
that is asked again under the lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from scenarios.run.rows import read_rows, row_schema
from scenarios.run.spec import renamed
from splitsight.errors import UserError
from splitsight.files import held, write_bytes, write_parquet

__all__ = ["Store"]

_PRESENTATION = ("title", "about", "source", "compare", "paper")
"""Keys that only the report reads: changing them makes no row wrong."""

_PLACES = ("data.path", "train.data")
"""Keys that say where something lies, not what it is; the data are known by their digest."""

OURS = (
    "config.yaml",
    "parts",
    "claims",
    "skipped",
    "measures",
    "logs",
    "originals",
    "reconstructions",
    "grids",
    "rows.parquet",
    "summary.json",
    "index.html",
)
"""What a run writes, and all that ``--overwrite`` removes."""


class Store:
    """One run's folder.

    Args:
        folder: made by :meth:`open`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"

    def open(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin a run, or go on with the one that is there.

        Args:
            config: all that decides what the rows are; plain data.
            overwrite: remove an earlier run first.

        Raises:
            UserError: the folder holds a run with another configuration, or something else.
        """
        if overwrite:
            self._clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.locked("config"):
            if self.config.is_file():
                self._refuse_changes(config)
            elif any(p.name != "claims" for p in self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files: give another --out")
            # also where one is there: its presentation may have changed
            self.write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())
        for name in ("parts", "originals", "reconstructions", "skipped"):
            (self.folder / name).mkdir(exist_ok=True)

    def _clear(self) -> None:
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self.config.is_file():
            raise UserError(f"{self.folder} holds no run that could be replaced: give another --out")
        for name in OURS:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for grid in self.folder.glob("grid-*.png"):
            grid.unlink()

    def _refuse_changes(self, config: Mapping[str, Any]) -> None:
        before = self.read_config()
        old, new = (
            {k: v for k, v in _flat(c) if k.split(".")[0] not in _PRESENTATION and k not in _PLACES}
            for c in (before, config)
        )
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                raise UserError(
                    f"{self.folder} holds a run with {key} = {_shown(old.get(key))}, not {_shown(new.get(key))}: "
                    "give another --out, or --overwrite to replace it"
                )

    def read_config(self) -> dict[str, Any]:
        """What the run was begun with.

        Raises:
            UserError: no run here, or its file is damaged.
        """
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{self.folder} holds no run ({error.strerror}): give the folder of one") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config} is damaged: give another --out, or --overwrite") from error
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is damaged: give another --out, or --overwrite")
        # as a former version wrote it
        renamed(config)
        renamed(config.get("run", {}).get("weights"))
        return config

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold ``claims/NAME`` within the block.

        Args:
            name: of a unit, or of another thing that one process at a time may do.
            wait: until it is free.

        Yields:
            Whether it is held; always where ``wait``.

        Raises:
            UserError: the file system knows no locks.
        """
        with held(self.folder / "claims" / name, wait=wait) as mine:
            yield mine

    def done(self, unit: str) -> bool:
        """Whether a unit's rows are there, or its cell is left out."""
        return self.part(unit).is_file()

    def part(self, unit: str) -> Path:
        """File of a unit's rows."""
        return self.folder / "parts" / f"{unit}.parquet"

    def add(self, unit: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> None:
        """File a unit's rows, all at once and for good.

        Args:
            unit: its name.
            rows: with the columns of ``schema``; those that are missing are null.
            schema: of :func:`scenarios.run.rows.row_schema`, by default without arguments.

        Raises:
            UserError: the disk is full.
        """
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema or row_schema())
        write_parquet(self.part(unit), table, sync=True)

    def rows(self, units: Sequence[str], schema: pa.Schema | None = None) -> pa.Table:
        """Rows of those units that are done, in this order.

        Raises:
            UserError: a part is damaged.
        """
        wanted = schema or row_schema()
        tables = []
        for unit in units:
            if not self.done(unit):
                continue
            try:
                tables.append(read_rows(self.part(unit), wanted))
            except UserError as error:
                raise UserError(f"{self.part(unit)} is damaged: remove it and run again") from error
        return pa.concat_tables([wanted.empty_table(), *tables], promote_options="default")

    def skip(self, cell: str, why: str) -> None:
        """Leave a cell out of this run, for a reason that the report gives."""
        self.write(Path("skipped") / cell, why.encode())

    def skipped(self) -> dict[str, str]:
        """Cells that are left out, and why."""
        folder = self.folder / "skipped"
        names = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        return {p.name: p.read_text(encoding="utf-8") for p in names}

    def tidy(self) -> None:
        """Remove what writers that were killed have left half-written; to be called once no unit is in hand."""
        for folder in ("parts", "originals", "reconstructions", "skipped"):
            for partial in (self.folder / folder).rglob(".*"):
                partial.unlink(missing_ok=True)

    def write(self, name: str | Path, data: bytes, *, sync: bool = False) -> Path:
        """Write a file of the run; it appears complete or not at all.

        Args:
            name: relative to the folder.
            data: its content.
            sync: wait until the disk has it.
        """
        path = self.folder / name
        write_bytes(path, data, sync=sync)
        return path


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
