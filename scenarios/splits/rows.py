"""``rows.parquet`` of a split evaluation: one row a measurement.

A row holds one measure of one split point: of one image where ``image`` is given, else over all of them, with the 95 %
interval where there is one. ``part`` says what was measured:

=============  =======================================================================================
``cost``       bytes a frame by codec, milliseconds of the edge's and the cloud's part
``utility``    the task's measure, cut and uncut; the largest difference of their outputs
``told``       leakage without an attack: sensitivity, dFIL and its bounds, FSInfo
``attack``     what an attack obtains, by ``attack``: each metric of each image
``latency``    predicted with a network, by ``network``
``rank``       correlations over all points of a measure without an attack with what an attack obtains
=============  =======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from scenarios.run.rows import VERSION

__all__ = ["SCHEMA", "row"]

_STRING, _FLOAT, _INT = pa.string(), pa.float64(), pa.int64()
SCHEMA = pa.schema(
    [
        ("split", _STRING),
        ("part", _STRING),
        ("attack", _STRING),  # NAME:SETTING; null for what no attack is in
        ("network", _STRING),  # name of the profile; null for what depends on none
        ("measure", _STRING),
        ("image", _INT),  # position among the images; null for a figure over all of them
        ("value", _FLOAT),
        ("low", _FLOAT),  # of the 95 % interval
        ("high", _FLOAT),
        ("n", _INT),  # observations behind a figure
        ("reconstruction", _STRING),  # PNG, relative to the folder
        ("about", _STRING),  # JSON: settings, digests, effort
    ],
    metadata={b"splitsight.rows": str(VERSION)},
)


def row(split: str, part: str, measure: str, value: float | None, **more: Any) -> dict[str, Any]:
    """A row; what is not finite is null.

    Args:
        split: the point; empty for what is of none.
        part: what kind of measurement.
        measure: its name.
        value: or mean.
        more: further columns.
    """
    found: Mapping[str, Any] = {"split": split, "part": part, "measure": measure, "value": value, **more}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
