"""Natural order, what a folder's files are, and names that every file system takes."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitsight.names import files_of, natural_key, printable, safe_names


def test_natural_order():
    names = ["10.png", "2.png", "1.png", "a.png", "f9-10.png", "f9-9.png", "f10-1.png", "01.png", "B.png"]
    expected = ["01.png", "1.png", "2.png", "10.png", "B.png", "a.png", "f9-9.png", "f9-10.png", "f10-1.png"]
    assert sorted(names, key=natural_key) == expected
    assert sorted(reversed(names), key=natural_key) == expected
    padded = [f"train-{i:05d}-of-00012.parquet" for i in range(12)]
    assert sorted(padded, key=natural_key) == padded
    # digits of other scripts, and numbers of any length, are names like others
    assert len(sorted(["²", "٣", "1", "9" * 200], key=natural_key)) == 4


def test_files_of_a_folder(tmp_path):
    for name in ("10.PNG", "9.png", "._9.png", "notes.txt", "day 2/1.png", "day 10/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in files_of(tmp_path, {".png"})] == ["9.png", "10.PNG"]
    deep = [str(p.relative_to(tmp_path)) for p in files_of(tmp_path, {".png"}, deep=True)]
    assert deep == ["9.png", "10.PNG", "day 2/1.png", "day 10/0.png"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a", "a"),
        ("photo 1 (2), März", "photo 1 (2), März"),
        ("10:15:00", "10:15:00"),
        ("a\nb\r\x00\x7f\x85\u2028", "a_b_____"),
        ("../../etc/passwd", "_._.._etc_passwd"),
        ("C:\\x", "C:_x"),
        ("latin\udce9", "latin_"),
        (".hidden", "_hidden"),
        ("", "_"),
        ("..", "__"),
        ("end. ", "end._"),
        ("NUL", "NUL_"),
        ("com1.tar", "com1.tar_"),
        ("console", "console"),
    ],
)
def test_safe_name(name, safe):
    assert safe_names([name]) == [safe]


def test_safe_names_stay_apart():
    assert safe_names(["a/b", "a\\b", "a_b", "a_b-2"]) == ["a_b", "a_b-2", "a_b-3", "a_b-2-2"]
    assert safe_names(["Cat", "cat", "CAT-2", "É", "é"]) == ["Cat", "cat-2", "CAT-2-2", "É", "é-2"]
    long = ["ü" * 150 + end for end in ("1", "2", "2")]
    safe = safe_names(long)
    assert len(set(safe)) == 3 and all(len(n.encode()) <= 242 for n in safe) and safe[0] == safe_names(long[:1])[0]
    assert safe_names(["n" * 242]) == ["n" * 242]


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=6))
def test_safe_names_can_be_written(names):
    safe = safe_names(names)
    assert len(set(safe)) == len(names)
    for name in safe:
        assert len(f".{name}.png.partial".encode()) <= 255
        assert not set("/\\\0\n\r") & set(name) and name not in ("", ".", "..")


def test_printable():
    assert printable("a\nü\udce9\u2028") == "a\\nü\\xe9\\u2028"
    assert printable(os.fsdecode(b"/x/latin\xe9.mp4")) == "/x/latin\\xe9.mp4"
