"""Two shards of small pictures, plain colours by class, and photographs."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

NAMES = ("Chihuahua", "goose", "banana", "slug")
"""Of classes; a detector has no group for the last."""


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def picture(label, rng):
    pixels = rng.integers(0, 60, (64, 64, 3), np.uint8)
    pixels[..., label % 3] += 160 if label < 3 else 90
    return pixels


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard, count in enumerate((64, 32)):
        labels = [i % 4 for i in range(count)]
        images = [encoded(picture(label, rng)) for label in labels]
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"train-{shard}.parquet")
    (folder / "classes.tsv").write_text("".join(f"{i}\tn{i}\t{name}, kind {i}\n" for i, name in enumerate(NAMES)))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    rng = np.random.default_rng(1)
    images = [encoded(np.full((80, 100, 3), rng.integers(0, 256, 3), np.uint8)) for _ in range(20)]
    path = tmp_path_factory.mktemp("photos") / "photos.parquet"
    pq.write_table(pa.table({"image": images}), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the tests' own, shared by them."""
    home = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("SPLITSIGHT_HOME", str(home))
    return home
