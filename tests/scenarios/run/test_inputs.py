"""What is attacked: draws, windows, galleries, prompts."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scenarios.run.inputs import load_inputs
from scenarios.run.plan import plan
from scenarios.run.prompts import background, check_template, fill
from scenarios.run.spec import Data, load_scenario
from splitsight.errors import UserError
from splitsight.pictures import write_video


def test_stills_are_drawn_by_seed_and_told_from_all_others(parquet):
    data = Data(path=parquet, count=4, gallery=10)
    one, two = load_inputs(data, 64), load_inputs(data, 64)
    other = load_inputs(data.model_copy(update={"seed": 1}), 64)
    assert one.hashes == two.hashes and one.digest == two.digest and one.digest != other.digest
    assert one.images.shape == (4, 64, 64, 3) and len(set(one.hashes)) == 4 and set(one.labels) <= set(range(5))
    assert one.rivals(2).tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    # fewer images are the same first ones
    assert load_inputs(data.model_copy(update={"count": 2}), 64).hashes == one.hashes[:2]


def test_stills_that_are_too_few(parquet):
    with pytest.raises(UserError, match="holds 20 different images and the scenario asks for 64"):
        load_inputs(Data(path=parquet), 64)
    with pytest.raises(UserError, match="--data"):
        load_inputs(Data(), 64)
    with pytest.raises(UserError, match="no such file"):
        load_inputs(Data(path=parquet.parent / "none"), 64)


def test_labels_that_are_names_are_those_of_the_classes(parquet, tmp_path):
    table = pq.read_table(parquet)
    names = pa.array([("cat", "dog", None, "newt", "Dog")[i % 5] for i in range(20)])
    pq.write_table(table.set_column(1, "label", names), tmp_path / "names.parquet")
    data = Data(path=tmp_path / "names.parquet", count=20, gallery=20)
    known = load_inputs(data, 64, [["hound", "dog"], ["cat"]])
    numbers = load_inputs(data.model_copy(update={"path": parquet}), 64)
    assert known.hashes == numbers.hashes
    assert known.labels.tolist() == [{0: 1, 1: 0, 2: -1, 3: -1, 4: 0}[i] for i in numbers.labels.tolist()]
    # what is no label at all is none that is known
    pq.write_table(table.set_column(1, "label", pa.array([[i] for i in range(20)])), tmp_path / "lists.parquet")
    assert (load_inputs(data.model_copy(update={"path": tmp_path / "lists.parquet"}), 64).labels == -1).all()


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, frames in (("a", 40), ("b", 70)):
        pictures = rng.integers(0, 255, (frames, 64, 64, 3), np.uint8)
        write_video(folder / f"{name}.mp4", list(pictures), 10)
    return folder


def test_windows_of_clips_come_by_turns(clips, parquet):
    inputs = load_inputs(Data(kind="clips", path=clips, count=2, frames=3, stride=0.5), 64)
    # 8 frames of a: two windows; 14 of b: four, of which the first and the last
    assert inputs.windows == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [inputs.clips[w[0]] for w in inputs.windows] == ["a.mp4", "b.mp4", "a.mp4", "b.mp4"]
    assert [inputs.times[i] for i in inputs.windows[0]] == pytest.approx([0, 0.5, 1.0])
    assert [inputs.times[i] for i in inputs.windows[3]] == pytest.approx([4.5, 5.0, 5.5])
    # frames are told from those of other clips only
    for i in range(12):
        rivals = inputs.rivals(i)
        assert len(rivals) == (14 if inputs.clips[i] == "a.mp4" else 8)
        assert all(inputs.pool_clips[r] != inputs.clips[i] for r in rivals)
        assert (inputs.pool[inputs.places[i]] == inputs.images[i]).all()
    # or from still images
    data = Data(kind="clips", path=clips, count=1, frames=3, stride=0.5, rivals=parquet, gallery=6)
    stills = load_inputs(data, 64)
    assert stills.rivals(4).tolist() == [0, 1, 2, 3, 4] and len(stills.pool) == 5 + 6
    assert (stills.pool[stills.places[4]] == stills.images[4]).all()


def test_clips_come_in_natural_order_whatever_their_names(clips):
    (clips / "b.mp4").rename(clips / "10.mp4")
    (clips / "a.mp4").rename(clips / os.fsdecode(b"9\xe9.mp4"))
    (clips / "._10.mp4").write_bytes(b"\x00\x05\x16\x07")
    inputs = load_inputs(Data(kind="clips", path=clips, count=1, frames=3, stride=0.5), 64)
    assert [inputs.clips[w[0]] for w in inputs.windows] == ["9\\xe9.mp4", "10.mp4"]
    "".join([*inputs.names, *inputs.clips]).encode()  # so that rows can be written


def test_a_clip_shorter_than_a_window(clips):
    with pytest.raises(UserError, match=r"a\.mp4 gives 8 frames 0\.5 s apart and a window takes 9"):
        load_inputs(Data(kind="clips", path=clips, frames=9, stride=0.5), 64)
    with pytest.raises(UserError, match="holds no videos"):
        (clips.parent / "empty").mkdir()
        load_inputs(Data(kind="clips", path=clips.parent / "empty"), 64)


def test_units_cover_every_image_of_every_cell_once(parquet):
    cells = [{"method": "do"}, {"method": "db", "count": 3, "batch": 1}]
    scenario = load_scenario({"title": "", "about": "", "batch": 4, "cells": cells})
    units = plan(scenario, load_inputs(Data(path=parquet, count=6, gallery=10), 64))
    covered = {cell: [i for u in units if u.cell == cell for i in u.indices] for cell in (0, 1)}
    assert covered == {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2]}
    assert [u.name for u in units] == ["c000-0000", "c001-0000", "c000-0001", "c001-0001", "c001-0002"]


def test_prompts():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32] = (120, 170, 255)
    image[32:] = (40, 160, 40)
    assert background(image) == "blue sky, grass"
    names = ["goldfish", "panda", "crane"]
    assert fill("a photo of a {class}, {background}", image, 1, names, 0) == "a photo of a panda, blue sky, grass"
    assert {fill("{other}", image, 1, names, seed) for seed in range(20)} == {"goldfish", "crane"}
    assert fill("{other}", image, 1, names, 7) == fill("{other}", image, 1, names, 7)
    assert fill("", image, -1, names, 0) == ""
    with pytest.raises(UserError, match="column 'label'"):
        fill("a {class}", image, -1, names, 0)
    for bad in ("a {klass}", "a {", "{}"):
        with pytest.raises(UserError, match="the prompt"):
            check_template(bad)
