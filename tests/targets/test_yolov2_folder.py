"""A YOLOv2-style detector out of a folder: its files, its halves, what its output means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import yolov2
from torchvision.models import resnet50

from splitsight.errors import UserError
from splitsight.targets import load
from splitsight.targets.yolo_small import ResNet50Yolo


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt", "model.pth"])
@torch.no_grad()
def test_folder(tmp_path, file):
    model = yolov2(tmp_path / "garden", file)
    made = load(f"yolov2:{tmp_path / 'garden'}")
    assert made.name == "yolov2:garden" and made.input_size == 64 and made.labels == ["cat", "dog", "cow"]
    assert made.points() == ["L12", "L24", "L36", "L48"]
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(made.model(made.preprocess(x)), model(made.preprocess(x)))
    for point in made.points():
        cut = made.cut(point)
        torch.testing.assert_close(cut.tail(cut.head(x)), model(made.preprocess(x)))
        f1, f2 = made.traced.split(made.aliases[point])
        torch.testing.assert_close(f2(*f1(made.preprocess(x))), model(made.preprocess(x)))
    for reading in made.task.read(model(made.preprocess(x))):
        assert all(box.label.name in made.labels for box in reading.boxes)


@torch.no_grad()
def test_what_the_output_means(tmp_path):
    """One predictor that is sure: cell (row 1, column 0), the second anchor, the third class."""
    yolov2(tmp_path / "garden")
    made = load(f"yolov2:{tmp_path / 'garden'}")
    output = torch.full((1, 2, 8, 2, 2), -20.0)
    output[0, 1, :, 1, 0] = torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0, 0.0, 0.0, 20.0])
    (box,) = made.task.read(output.flatten(1, 2))[0].boxes
    assert box.label.name == "cow" and box.label.probability > 0.99
    # 0.6 × 0.5 about (0.25, 0.75), cut at the image's left side
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0.0, 0.5, 0.55, 1.0))


def test_the_body_is_torchvisions():
    theirs = {k: v.shape for k, v in resnet50().state_dict().items() if not k.startswith("fc.")}
    ours = {k: v.shape for k, v in ResNet50Yolo(75).state_dict().items()}
    assert {k: v for k, v in ours.items() if not k.startswith("detector.")} == theirs
    assert {k for k in ours if k not in theirs and "num_batches" not in k} == {
        *(f"detector.{i}.0.weight" for i in (0, 1)),
        *(f"detector.{i}.1.{name}" for i in (0, 1) for name in ("weight", "bias", "running_mean", "running_var")),
        *(f"detector.2.{name}" for name in ("weight", "bias")),
    }


def test_other_weights_and_sizes(tmp_path):
    folder = tmp_path / "garden"
    yolov2(folder)
    save_file({k: v + 1 for k, v in load_file(folder / "model.safetensors").items()}, tmp_path / "w.safetensors")
    assert load(f"yolov2:{folder}", tmp_path / "w.safetensors").digest != load(f"yolov2:{folder}").digest
    assert load(f"yolov2:{folder}@96").cut("output").specs[0].shape == (16, 3, 3)
    (folder / "model.safetensors").unlink()
    assert load(f"yolov2:{folder}", Path("random")).digest == load(f"yolov2:{folder}", Path("random")).digest


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": None}, r"config.json: 'labels': .*: mend it"),
        ({"anchors": [[0.2, 1.3]]}, r"config.json: 'anchors\.0\.1': .*less than or equal to 1"),
        ({"input_size": 100}, r"config.json: 'input_size': .*multiple of 32"),
        ({"labels": ["cat"]}, r"'detector.2.bias' is \(16,\) where \(12,\) is needed"),
        ({"width": 8}, r"does not fit yolov2:.*'.*' is .* where .* is needed"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, change, match):
    yolov2(tmp_path / "garden")
    file = tmp_path / "garden" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=match) as error:
        load(f"yolov2:{tmp_path / 'garden'}")
    assert "\n" not in str(error.value)


def test_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder: give one with config.json and model.safetensors"):
        load(f"yolov2:{tmp_path / 'nowhere'}")
    yolov2(tmp_path / "garden")
    (tmp_path / "garden" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is not there: .*`splitsight train target yolo-small`"):
        load(f"yolov2:{tmp_path / 'garden'}")
    (tmp_path / "garden" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is no readable JSON"):
        load(f"yolov2:{tmp_path / 'garden'}")
    (tmp_path / "garden" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is not there"):
        load(f"yolov2:{tmp_path / 'garden'}")
