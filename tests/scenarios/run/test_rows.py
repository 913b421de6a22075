"""Rows of every version load; the columns of this one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scenarios
from scenarios.run.rows import VERSION, read_rows, row_schema
from splitsight.errors import UserError

RESULTS = sorted((Path(scenarios.__file__).parent / "results").glob("*.parquet"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_load(path):
    table, raw = read_rows(path), pq.read_table(path)
    assert set(row_schema().names) <= set(table.column_names) and len(table) == len(raw)
    assert "judge_digest" not in table.column_names
    assert table.schema.metadata[b"splitsight.rows"] == b"2"
    for name in ("psnr", "ssim", "seconds", "name"):
        assert table[name].to_pylist() == raw[name].to_pylist()
    if "judge_digest" in raw.column_names:
        assert table["evaluator_digest"].to_pylist() == raw["judge_digest"].to_pylist()
        assert table["match_rank"].to_pylist() == raw["match_rank"].to_pylist()


def test_there_are_results():
    assert len(RESULTS) >= 14


def test_columns_that_a_file_lacks_are_null_and_others_are_kept(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"index": [0, 1], "psnr": [1.0, 2.0], "sharpness": [3.0, 4.0]}), path)
    table = read_rows(path)
    assert table.column_names == [*row_schema().names, "sharpness"]
    assert table["ssim"].to_pylist() == [None, None] and table["recognised"].type == pa.bool_()
    assert table["psnr"].to_pylist() == [1.0, 2.0] and table["sharpness"].to_pylist() == [3.0, 4.0]


def test_what_this_version_writes_comes_back(tmp_path):
    schema = row_schema(["a", "b"])
    assert {"recognised", "recognised:b", "match_rank:b", "evaluator_digest:b"} <= set(schema.names)
    table = pa.Table.from_pylist([{"index": 1, "recognised:b": True, "curve": [1.0]}], schema=schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet", schema).equals(table)


def test_later_versions_and_other_files_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"psnr": ["high"]})
    pq.write_table(table.replace_schema_metadata({"splitsight.rows": str(VERSION + 1)}), path)
    with pytest.raises(UserError, match=rf"has rows of version {VERSION + 1} and this splitsight knows {VERSION}"):
        read_rows(path)
    pq.write_table(table, path)
    with pytest.raises(UserError, match="is no file of rows: its column 'psnr' is not of type double"):
        read_rows(path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cannot be read as rows \(ArrowInvalid\)"):
        read_rows(path)
