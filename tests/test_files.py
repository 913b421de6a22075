"""Files are complete or not there, whoever reads, ends or fills the disk meanwhile."""

from __future__ import annotations

import json
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from splitsight.errors import UserError
from splitsight.files import write_bytes, write_json, write_parquet, write_text, writing


def test_content_and_folder(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "x.bin", b"\x00\xff", sync=True)
    write_text(tmp_path / "x.txt", "σ\n")
    write_json(tmp_path / "x.json", {"σ": (1, 2)})
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "x.txt").read_bytes() == "σ\n".encode()
    assert json.loads((tmp_path / "x.json").read_text()) == {"σ": [1, 2]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "x.json", "x.txt"]
    write_json(tmp_path / "x.json", {"file": "caf\udce9.png"})  # as the system gives a name that is not UTF-8
    assert json.loads((tmp_path / "x.json").read_text()) == {"file": "caf\udce9.png"}
    write_parquet(tmp_path / "caf\udce9.parquet", pa.table({"x": [1]}))
    with (tmp_path / "caf\udce9.parquet").open("rb") as file:
        assert pq.read_table(file).to_pydict() == {"x": [1]}
    write_text(tmp_path / ("n" * 255), "as long as a name can be")


def test_others_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "rows.parquet"
    write_text(path, "old")
    with writing(path) as partial:
        assert partial.name.startswith(".") and partial.parent == tmp_path
        partial.write_text("ne")
        assert path.read_text() == "old" and list(tmp_path.glob("*.parquet")) == [path]
        partial.write_text("new")
    assert path.read_text() == "new" and not partial.exists()


def test_a_block_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(KeyError), writing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    path = tmp_path / "x"
    threads = [threading.Thread(target=write_text, args=(path, str(i) * 10_000)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(path.read_text())) == 1 and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_and_a_wrong_place_are_sentences(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*x.txt \(File exists\): give another place") as error:
        write_text(tmp_path / "file" / "x.txt", "")
    assert error.value.code == 2

    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: the disk is full .*: free some space") as error:
        write_text(tmp_path / "x", "text", sync=True)
    assert error.value.code == 1 and not (tmp_path / "x").exists()


def test_files_are_readable_by_whoever_the_umask_says(tmp_path):
    write_text(tmp_path / "x", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
