"""``splitsight train evaluator`` makes a folder that loads."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from splitsight import evaluators
from splitsight.errors import UserError
from splitsight.evaluators.training import train_evaluator_command


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two shards of plain colours; the class is the colour."""
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(2):
        images, labels = [], []
        for i in range(64):
            pixels = rng.integers(0, 40, (64, 64, 3), np.uint8)
            pixels[..., i % 3] += 200
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
            labels.append(i % 3 if i < 60 else 3 + i % 3)
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"train-{shard}.parquet")
    (folder / "classes.tsv").write_text("".join(f"{i}\tn{i}\tcolour {i}, hue {i}\n" for i in range(6)))
    return folder


def test_trains_resumes_and_loads(data, tmp_path, capsys):
    out = tmp_path / "out"
    folder = train_evaluator_command(data=data, out=out, minutes=None, steps=2, threads=1)
    before = evaluators.load(folder)
    assert before.name == evaluators.EMBEDDED and before.labels[2] == "colour 2" and len(before.labels) == 6
    folder = train_evaluator_command(data=data, out=out, minutes=None, steps=3, threads=1)
    after = evaluators.load(folder)
    assert after.digest != before.digest
    said = capsys.readouterr().err
    assert "train evaluator: resumed at step 2" in said and "train target" not in said
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "mbconv" and config["num_classes"] == 6
    assert "splitsight train evaluator --data DIR --steps 3" in (folder / "README.md").read_text()
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        assert file.get_tensor("classifier.weight").dtype == torch.float16


def test_needs_a_budget(data, tmp_path):
    with pytest.raises(UserError, match="--minutes or --steps"):
        train_evaluator_command(data=data, out=tmp_path / "out", minutes=None, steps=None)
