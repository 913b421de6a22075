"""Rows of a measurement that may be stopped: a Parquet file that is complete after every step, and gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from splitsight.errors import UserError
from splitsight.files import write_parquet

__all__ = ["Ledger"]


class Ledger:
    """Opens the rows that are there, or none.

    Args:
        file: ``*.parquet``; written whole by each :meth:`add`, in its place only once it is complete.
        about: what the rows depend on, plain JSON; kept in the file's metadata under ``splitsight.about``. Rows that
            depend on something else are not gone on with.

    Attributes:
        rows: all of them, in the order of writing.

    Raises:
        UserError: the file is of another measurement, or damaged.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self.file = file
        # through JSON, so that what is compared is what a file gives back
        self.about: dict[str, Any] = json.loads(json.dumps(about, default=list))
        self.rows: list[dict[str, Any]] = []
        if file.is_file():
            self._resume()

    def _resume(self) -> None:
        try:
            found = pq.read_table(self.file)
            before = json.loads((found.schema.metadata or {})[b"splitsight.about"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.file} cannot be gone on with ({type(error).__name__}): give a new --out") from error
        differ = [key for key in {**self.about, **before} if before.get(key) != self.about.get(key)]
        if differ:
            raise UserError(
                f"{self.file.parent} holds another measurement ({', '.join(differ)} differ): give a new --out"
            )
        self.rows = found.to_pylist()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """File rows, all with the same keys."""
        self.rows += [dict(row) for row in rows]
        made = pa.Table.from_pylist(self.rows).replace_schema_metadata({"splitsight.about": json.dumps(self.about)})
        write_parquet(self.file, made)
