"""Training on pictures as they are: a folder of files, or one Parquet file."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import save_prior

from adversary.blackbox.inversion import inversion_width
from adversary.blackbox.pictures import draw_groups
from adversary.training import train_inversion_command
from splitsight.artifacts import load_weights
from splitsight.errors import UserError


@pytest.fixture
def prior(tmp_path):
    return save_prior(tmp_path / "tiny")


def pictures(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        yield buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_an_inversion_network_from_plain_pictures(tmp_path, monkeypatch, prior, kind):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    data = tmp_path / "photos"
    if kind == "folder":
        data.mkdir()
        for i, content in enumerate(pictures(12)):
            (data / f"{i}.png").write_bytes(content)
    else:
        rows = [{"bytes": content, "path": None} for content in pictures(12)]
        pq.write_table(pa.table({"image": rows, "label": ["a"] * 12}), data)
    file = train_inversion_command(
        data=data, out=tmp_path / "out", minutes=None, steps=2, prior=prior, width=8, threads=1
    )
    assert all(bool(torch.isfinite(v).all()) for v in load_weights(file).values() if v.is_floating_point())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "photos, of which a tenth (at most 2,000 images) was held out" in card


def test_a_network_that_is_gone_on_with_keeps_its_width(tmp_path, monkeypatch, prior):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    (tmp_path / "photos").mkdir()
    for i, content in enumerate(pictures(12)):
        (tmp_path / "photos" / f"{i}.png").write_bytes(content)
    options = {"data": tmp_path / "photos", "minutes": None, "steps": 1, "prior": prior, "threads": 1}
    first = train_inversion_command(out=tmp_path / "first", width=8, **options)
    second = train_inversion_command(out=tmp_path / "second", start=first, defense="noise:ratio=1", **options)
    assert inversion_width(second) == 8
    with pytest.raises(UserError, match="another shape"):
        train_inversion_command(out=tmp_path / "third", start=first, width=16, **options)


def test_a_larger_target_has_a_larger_prior_and_further_pictures(tmp_path, monkeypatch, prior):
    """At 96 pixels: latents of 24 × 24, smaller batches, and half of each from pictures that are enlarged."""
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    for name in ("photos", "more"):
        (tmp_path / name).mkdir()
        for i, content in enumerate(pictures(6)):
            (tmp_path / name / f"{i}.png").write_bytes(content)
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(4 * 24 * 24, 2))\n"
    )
    file = train_inversion_command(
        data=tmp_path / "photos",
        also=tmp_path / "more",
        out=tmp_path / "out",
        target=f"{tmp_path / 'own.py'}:net@96",
        split="1",
        minutes=None,
        steps=2,
        prior=prior,
        width=8,
        threads=1,
    )
    assert file.name.startswith("own-net-96")
    state = load_weights(file)
    assert state["errors.latent"].shape[:2] == (24, 24) and state["pixels.latent"].shape[:2] == (96, 96)
    card = (tmp_path / "out" / "README.md").read_text()
    # 16 of 64 pixels are 7 of 96
    assert "Half of each batch is enlarged pictures of more." in card and "| images_seen | 14 |" in card


def test_who_is_asked_about_with_one_shard(tmp_path):
    """Only of several shards is the last kept back."""
    rows = [{"bytes": content, "path": None} for content in pictures(6)]
    labels = ["cat", "dog", "cat", "newt", "dog", None]
    pq.write_table(pa.table({"image": rows[:3], "label": labels[:3]}), tmp_path / "9.parquet")
    assert len(draw_groups(tmp_path, 16, {"train": 9})["train"]) == 3
    pq.write_table(pa.table({"image": rows[3:], "label": labels[3:]}), tmp_path / "10.parquet")
    (tmp_path / "classes.tsv").write_text("0\tn0\tdog\n1\tn1\tcat, puss\n")
    drawn = draw_groups(tmp_path, 16, {"train": 9})["train"]
    assert sorted(g[0].caption for g in drawn) == ["a photo of a cat", "a photo of a cat", "a photo of a dog"]
