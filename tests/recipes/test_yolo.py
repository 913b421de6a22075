"""Composed pictures and their boxes; YOLOv2's decoding and loss against boxes worked out by hand."""

import math

import numpy as np
import pytest
import torch

from splitsight.compositions import Composer
from splitsight.errors import UserError
from splitsight.photographs import Photographs
from splitsight.recipes.yolo_small import GROUPS, grouped
from splitsight.tasks.detect import Detect
from splitsight.yolov2 import YoloV2


@pytest.fixture
def composer(photos):
    """Red and blue objects, and one of no class, on grey-free backgrounds of one colour each."""
    objects = np.zeros((3, 64, 64, 3), np.uint8)
    objects[0, ..., 0], objects[1, ..., 2], objects[2, ..., 1] = 255, 255, 255
    return Composer(objects, np.array([4, 1, -1]), Photographs([photos]), [0, 1, 2])


def test_compositions_depend_on_the_seed_alone(composer):
    first, again, other = (composer(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)
    assert first.image.dtype == np.uint8 and first.image.shape == (64, 64, 3)


def test_boxes_follow_what_was_pasted(composer):
    rng, counts, sides = np.random.default_rng(0), set(), []
    for _ in range(60):
        picture = composer(rng)
        counts.add(len(picture.boxes))
        boxes = (picture.boxes * 64).round().astype(int)
        assert np.allclose(boxes / 64, picture.boxes) and (boxes >= 0).all() and (boxes <= 64).all()
        outside = np.ones((64, 64), bool)
        for (left, top, right, bottom), label, source in zip(boxes, picture.labels, picture.sources, strict=True):
            assert label == (4, 1)[source]
            outside[top:bottom, left:right] = False
            sides += [right - left, bottom - top]
        background = picture.image[outside]
        assert (background == background[0]).all()
        if len(boxes) == 1:
            (left, top, right, bottom), source = boxes[0], picture.sources[0]
            inner = picture.image[(top + bottom) // 2, (left + right) // 2]
            assert inner.tolist() == [[255, 0, 0], [0, 0, 255]][source]
            # something of it is seen up to each side of the box
            inside = picture.image[top:bottom, left:right]
            changed = (inside != background[0]).any(-1)
            assert all(edge.any() for edge in (changed[0], changed[-1], changed[:, 0], changed[:, -1]))
    assert counts == {1, 2, 3} and min(sides) >= 13 and max(sides) <= 52


def test_compositions_need_objects_and_photographs(photos):
    photographs = Photographs([photos])
    with pytest.raises(ValueError, match="objects with a class, and photographs"):
        Composer(np.zeros((1, 8, 8, 3), np.uint8), np.array([-1]), photographs, [0])
    with pytest.raises(ValueError, match="objects with a class, and photographs"):
        Composer(np.zeros((1, 8, 8, 3), np.uint8), np.array([0]), photographs, [])


def test_groups():
    names = [["banana", "kind"], ["slug"], ["goose"]]
    assert grouped(np.array([0, 1, 2, 0]), names).tolist() == [7, -1, 3, 7]
    members = [name for group in GROUPS.values() for name in group]
    assert len(members) == len(set(members))
    with pytest.raises(UserError, match="give Tiny-ImageNet"):
        grouped(np.array([0]), [["colour 0"]])


ANCHORS = ((0.2, 0.4), (0.5, 0.25))


def raw(grid=2, classes=3):
    return torch.zeros(1, len(ANCHORS) * (5 + classes), grid, grid)


def test_decoding_by_hand():
    reader, output = YoloV2(ANCHORS, 3), raw()
    at = 8  # the second anchor's first channel
    # row 1, column 0: middle (σ(ln 3), σ(0)) = (.75, .5) of the cell, twice as wide as the anchor
    output[0, at : at + 5, 1, 0] = torch.tensor([math.log(3), 0.0, math.log(2), 0.0, math.log(4)])
    output[0, at + 5 : at + 8, 1, 0] = torch.tensor([0.0, 0.0, math.log(2)])
    (found,) = reader.decode(output)
    assert found["boxes"].shape == (8, 4) and reader.channels == 16
    one = 4 + 2  # second anchor, third cell
    # middle (.375, .75), sides (1, .25); confidence .8 · ½
    assert found["boxes"][one].tolist() == pytest.approx([-0.125, 0.625, 0.875, 0.875])
    assert found["scores"][one].item() == pytest.approx(0.4) and found["labels"][one] == 2
    # nothing said: the middle of the cell, the anchor's own shape
    assert found["boxes"][0].tolist() == pytest.approx([0.15, 0.05, 0.35, 0.45])
    assert found["scores"][0].item() == pytest.approx(0.5 / 3)
    (reading,) = Detect(["a", "b", "c"], reader.decode).read(output)
    assert [b.label.name for b in reading.boxes] == ["c"]


def test_which_predictor_a_truth_belongs_to():
    reader = YoloV2(ANCHORS, 3)
    boxes = torch.tensor([[0.1, 0.5, 0.3, 0.9], [0.4, 0.0, 1.0, 0.3], [0.9, 0.9, 1.0, 1.0]])
    anchor, row, column = reader.assign(boxes, (2, 2))
    assert anchor.tolist()[:2] == [0, 1] and row.tolist() == [1, 0, 1] and column.tolist() == [0, 1, 1]


def test_the_loss_by_hand():
    reader, output = YoloV2(ANCHORS, 3), raw()
    # middle (.3, .25): cell (0, 0), at (.6, .5) of it; 1.5 times the first anchor's width, its height
    truth = [{"boxes": torch.tensor([[0.15, 0.05, 0.45, 0.45]]), "labels": torch.tensor([1])}]
    found = {name: value.item() for name, value in reader.loss(output, truth).items()}
    assert found["box"] == pytest.approx((2 - 0.3 * 0.4) * (0.1**2 + math.log(1.5) ** 2), abs=1e-6)
    # it predicted [.15, .05, .35, .45]: .2 · .4 of the truth's .3 · .4
    assert found["object"] == pytest.approx(5 * (0.5 - 2 / 3) ** 2, abs=1e-6)
    assert found["class"] == pytest.approx(math.log(3), abs=1e-6)
    # seven other predictors, none of which overlaps by more than .6
    assert found["nothing"] == pytest.approx(7 * 0.25, abs=1e-6)
    none = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]
    quiet = {name: value.item() for name, value in reader.loss(output, none).items()}
    assert quiet == {"box": 0, "object": 0, "class": 0, "nothing": pytest.approx(8 * 0.25)}
    both = reader.loss(output.repeat(2, 1, 1, 1), truth + none)
    assert both["nothing"].item() == pytest.approx((7 + 8) / 2 * 0.25) and both["class"].item() == pytest.approx(
        math.log(3) / 2
    )


def test_a_predictor_that_overlaps_is_not_punished():
    reader, output = YoloV2(ANCHORS, 3), raw()
    # the second anchor of the same cell says nearly the truth, which is the first's
    output[0, 8 : 8 + 4, 0, 0] = torch.tensor([0.0, 0.0, math.log(0.22 / 0.5), math.log(0.4 / 0.25)])
    truth = [{"boxes": torch.tensor([[0.15, 0.05, 0.35, 0.45]]), "labels": torch.tensor([0])}]
    parts = reader.loss(output, truth)
    assert parts["nothing"].item() == pytest.approx(6 * 0.25) and parts["box"].item() == pytest.approx(0, abs=1e-6)


def test_what_the_loss_asks_for_is_what_decoding_reads():
    """Gradient descent on a map of answers ends in the truth."""
    reader = YoloV2(ANCHORS, 3)
    truth = [
        {"boxes": torch.tensor([[0.1, 0.1, 0.4, 0.45], [0.5, 0.55, 1.0, 0.85]]), "labels": torch.tensor([2, 0])},
    ]
    torch.manual_seed(0)
    output = torch.randn(1, reader.channels, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([output], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        torch.stack(list(reader.loss(output, truth).values())).sum().backward()
        optimizer.step()
    task = Detect(["a", "b", "c"], reader.decode)
    (reading,) = task.read(output)
    found = sorted((b.left, b.top, b.right, b.bottom, b.label.index) for b in reading.boxes)
    assert [f[4] for f in found] == [2, 0]
    assert np.allclose([f[:4] for f in found], truth[0]["boxes"], atol=0.02)
    assert task.utility(output, truth)["map_50"] == pytest.approx(1.0)
