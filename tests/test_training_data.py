"""What is trained on and what is held out."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from splitsight.errors import UserError
from splitsight.training_data import TrainingSet, held_out


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, shades, labels=None):
    columns = {"image": [{"bytes": png(s), "path": None} for s in shades]}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), path)
    return path


def classes(folder, count=3):
    (folder / "classes.tsv").write_text("".join(f"{i}\tn{i}\tthing {i}, object {i}\n" for i in range(count)))


def shades(images):
    return images[:, 0, 0, 0].tolist()


def test_of_shards_the_last_is_held_out(tmp_path):
    for i in (10, 9, 1):
        write(tmp_path / f"train-{i}.parquet", [i, i + 100], [0, 2])
    classes(tmp_path)
    data = TrainingSet.open(tmp_path, labelled=True)
    train, held = data.images(8)
    assert shades(train) == [1, 101, 9, 109] and shades(held) == [10, 110]
    assert [part.tolist() for part in data.classified(8)] == [[0, 2, 0, 2], [0, 2]]
    assert data.description.startswith("2 shards of ") and "train-10.parquet" in data.description


@pytest.mark.parametrize("kind", ["folder", "parquet", "one shard"])
def test_of_anything_else_a_tenth_is_held_out(tmp_path, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "folder":
        for i in range(40):
            (folder / f"{i}.png").write_bytes(png(i))
    else:
        write(folder / "x.parquet", list(range(40)), [i % 3 for i in range(40)])
        classes(folder)
    data = TrainingSet.open(folder / "x.parquet" if kind == "parquet" else folder)
    train, held = data.images(8)
    assert len(train) == 36 and len(held) == 4 and sorted(shades(train) + shades(held)) == list(range(40))
    again = TrainingSet.open(data.source).images(8)
    assert (again[0] == train).all() and (again[1] == held).all()
    labels = data.labels(8)
    for part, images in zip(labels, (train, held), strict=True):
        assert part.tolist() == [-1 if kind == "folder" else s % 3 for s in shades(images)]
    assert "a tenth" in data.description


def images_of(numbers):
    return np.stack([np.full((2, 2, 3), n, np.uint8) for n in numbers])


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (9, 1), (10, 1), (19, 1), (20, 2), (250, 25)])
def test_how_many_are_held_out(count, expected):
    assert held_out(images_of(range(count))).sum() == expected


def test_at_most_two_thousand_are_held_out():
    rng = np.random.default_rng(0)
    assert held_out(rng.integers(0, 256, (25_000, 2, 2, 3), np.uint8)).sum() == 2000


def test_who_is_held_out_depends_on_the_pixels_alone():
    images = images_of(range(50))
    order = np.random.default_rng(0).permutation(50)
    assert (held_out(images)[order] == held_out(images[order])).all()


def test_equal_images_are_on_one_side():
    numbers = [i % 25 for i in range(200)]
    held = held_out(images_of(numbers))
    assert 1 <= held.sum() <= 20
    assert not {n for n, h in zip(numbers, held, strict=True) if h} & {
        n for n, h in zip(numbers, held, strict=True) if not h
    }
    # also where that makes more than a tenth
    assert held_out(images_of([1] * 30 + [2] * 10)).sum() in (10, 30)
    with pytest.raises(ValueError, match="1 differ"):
        held_out(images_of([7, 7, 7]))


def test_labels_may_be_names(tmp_path):
    classes(tmp_path)
    data = TrainingSet.open(write(tmp_path / "x.parquet", range(20), ["Thing 1", "object_2"] * 10), labelled=True)
    images, labels = data.images(8), data.classified(8)
    for part, known in zip(images, labels, strict=True):
        assert known.tolist() == [1 + s % 2 for s in shades(part)]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (None, "20 images .* have no label"),
        ([0] * 19 + [None], "1 images .* have no label"),
        ([0] * 19 + [3], r"has the label 3 and .*classes\.tsv lists 3 classes"),
        (["thing 0"] * 19 + ["thing 9"], "'thing 9' .* none of the known classes"),
    ],
)
def test_labels_that_a_classifier_cannot_use(tmp_path, labels, match):
    classes(tmp_path)
    data = TrainingSet.open(write(tmp_path / "x.parquet", range(20), labels), labelled=True)
    with pytest.raises(UserError, match=match):
        data.classified(8)


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        TrainingSet.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing to train on"):
        TrainingSet.open(tmp_path / "empty")
    path = write(tmp_path / "x.parquet", range(20), [0] * 20)
    with pytest.raises(UserError, match=r"classes\.tsv is missing"):
        TrainingSet.open(path, labelled=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="pictures without labels"):
        TrainingSet.open(tmp_path / "pictures", labelled=True)
    with pytest.raises(UserError, match="holds 1 images and no two different ones"):
        TrainingSet.open(tmp_path / "pictures").images(8)
