"""``rows.parquet``: one row an image and cell; the columns, and reading files of any version.

The version stands in the file's metadata, under ``splitsight.rows``. What has changed:

1. no version in the metadata, ``judge_digest``.
2. ``evaluator_digest``; a column for every registered metric; ``defense`` in place of ``noise``, which stood for
   Gaussian noise of so many parts of the features' spread; ``session``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from splitsight.errors import UserError
from splitsight.metrics import Metric, metrics
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["VERSION", "digest_column", "read_rows", "row_schema"]

VERSION = 2

_KEY = b"splitsight.rows"
_RENAMED = {"judge_digest": "evaluator_digest"}

_STRING, _FLOAT, _INT = pa.string(), pa.float64(), pa.int64()
_BEFORE = [
    ("scenario", _STRING),
    ("cell", _STRING),  # identifier within the run
    ("label", _STRING),  # how tables call the cell, beside its split
    ("method", _STRING),
    ("setting", _STRING),
    ("split", _STRING),
    ("options", _STRING),  # JSON: what was laid over the setting
    ("settings", _STRING),  # JSON: all values the attack got
    ("prompt", _STRING),  # as it was used; empty for none
    ("defense", _STRING),  # what the edge did to the features
    ("adaptive", pa.bool_()),  # whether the attacker was told that; null in older files, where he was
    ("static", _INT),  # frames of a scene that stood still, averaged; null in older files, where it was one
    ("index", _INT),  # of the image within the run
    ("image", _STRING),  # SHA-256 of its pixels
    ("name", _STRING),
    ("class_label", _INT),  # null where unknown
    ("clip", _STRING),  # null for still images
    ("window", _INT),
    ("time_s", _FLOAT),
    ("seed", _INT),
]
# then a column for every metric
_AFTER = [
    ("gallery", _INT),  # images among which the original was looked for
    ("loss", _FLOAT),
    ("iterations", _INT),
    ("model_evaluations", _FLOAT),
    ("seconds", _FLOAT),
    ("threads", _INT),
    ("device", _STRING),  # what the attack computed on
    ("curve", pa.list_(pa.float32())),  # mean loss over the unit's images, one a step
    ("about", _STRING),  # JSON: what the attack has to say, e.g. where it started
    ("session", _STRING),  # JSON: the edge's description, see splitsight.wire.sessions
    ("target_digest", _STRING),
    ("prior_digest", _STRING),
    ("evaluator_digest", _STRING),  # of the first evaluator
    ("inversion_digest", _STRING),  # of the network that the attack asked for; null for none
    ("reconstruction", _STRING),  # PNG, relative to the run's folder
    ("original", _STRING),
]


def digest_column(role: str) -> str:
    """The column for the digest of a model's weights, e.g. ``target``, ``evaluator`` or ``evaluator:NAME``."""
    kind, _, name = role.partition(":")
    return f"{kind}_digest" + (f":{name}" if name else "")


def _type(metric: Metric) -> pa.DataType:
    if metric.kind == "mean":
        return _FLOAT
    return pa.bool_() if metric.hit is None else _INT


def row_schema(evaluators: Sequence[str] = ()) -> pa.Schema:
    """Columns of ``rows.parquet``; times in seconds, PSNR in dB.

    Args:
        evaluators: names of the run's. The columns of the first one, which do not carry its name, are always there.
    """
    first, *others = evaluators or ("",)
    measured = dict.fromkeys((metric.column, _type(metric)) for metric in metrics([first, *others]))
    further = [(digest_column(f"evaluator:{name}"), _STRING) for name in others]
    return pa.schema([*_BEFORE, *measured, *_AFTER, *further], metadata={_KEY: str(VERSION)})


def read_rows(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Rows of a run, as any version of this package wrote them.

    Args:
        path: ``*.parquet``.
        schema: the columns that are wanted, by default those of :func:`row_schema`.

    Returns:
        These columns, null where the file lacks them, then others that the file has.

    Raises:
        UserError: unreadable, written by a later version, or a column holds something else than it does here.
    """
    wanted = row_schema() if schema is None else schema
    try:
        with path.open("rb") as file:  # pyarrow takes names in UTF-8 only
            table = pq.ParquetFile(file).read()
        version = int((table.schema.metadata or {}).get(_KEY, b"1"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as rows ({type(error).__name__}): check the path") from error
    if version > VERSION:
        raise UserError(f"{path} has rows of version {version} and this splitsight knows {VERSION}: update splitsight")
    if version < 2:
        table = table.rename_columns([_RENAMED.get(name, name) for name in table.column_names])
        if "noise" in table.column_names:
            levels = table["noise"].to_pylist()
            said = [UNDEFENDED if not level else f"gaussian:ratio={level:g}" for level in levels]
            table = table.append_column("defense", pa.array(said, _STRING))
    columns = {}
    for field in wanted:
        if field.name not in table.column_names:
            columns[field.name] = pa.nulls(len(table), field.type)
            continue
        try:
            columns[field.name] = table[field.name].cast(field.type)
        except pa.ArrowException as error:
            what = f"its column '{field.name}' is not of type {field.type}"
            raise UserError(f"{path} is no file of rows: {what}") from error
    columns |= {name: table[name] for name in table.column_names if name not in columns}
    return pa.table(columns).replace_schema_metadata(wanted.metadata)
