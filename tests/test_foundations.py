"""Registry, artifacts, data and the training harness."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import signal
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from splitsight import data as data_module
from splitsight.artifacts import digest, home, load_weights, save_weights
from splitsight.data import (
    cached_images,
    decode_image,
    draw_images,
    encode_png,
    fit,
    load_images,
    to_pixels,
    to_tensor,
    write_png,
)
from splitsight.devices import pick_device
from splitsight.errors import UserError, unknown_name
from splitsight.registry import PathRegistry, Registry
from splitsight.training import (
    Best,
    Budget,
    Run,
    ema,
    flattened,
    gradient_distance,
    learning_curve,
    one_cycle,
    progress_of,
    random_crops,
    warmup_stable_decay,
)

# ---------------------------------------------------------------- errors, registry


def test_user_errors_are_one_sentence():
    error = unknown_name("fruit", "pear", ["plum", "apple"])
    assert str(error) == "unknown fruit 'pear': choose one of apple, plum" and error.code == 2
    assert UserError("x", code=130).code == 130


def test_registry():
    registry = Registry("fruit")

    @registry.register("plum")
    class Plum:
        pass

    assert registry.get("plum") is Plum and registry.names() == ["plum"] and dict(registry) == {"plum": Plum}
    registry.register("plum")(Plum)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("plum")(object())
    with pytest.raises(UserError, match="unknown fruit 'pear'"):
        registry.get("pear")


class Point:
    """An entry point that names ``found``, or raises it."""

    value = "outside.fruit:thing"

    def __init__(self, name, found):
        self.name, self.found = name, found

    def load(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def declare(monkeypatch):
    """Declare entry points of the group ``splitsight.fruits``."""

    def declare(*points):
        monkeypatch.setattr(
            "splitsight.registry.entry_points", lambda group: points if group == "splitsight.fruits" else ()
        )

    return declare


def test_entry_points_fill_a_registry(declare):
    declare(Point("pear", "a pear"))
    assert Registry("fruit").get("pear") == "a pear"


def test_an_entry_point_that_cannot_be_used_is_named(declare):
    registry = Registry("fruit")
    registry.register("plum")("a plum")
    declare(Point("pear", ImportError("no module\nnamed pear")))
    for _ in range(2):  # and again, rather than a registry without it
        with pytest.raises(UserError, match=r"fruit 'pear' .* \(outside.fruit:thing\) cannot be loaded .*named pear\)"):
            registry.names()
    declare(Point("plum", "another plum"))
    with pytest.raises(UserError, match=r"fruit 'plum' .* has a name that is taken"):
        registry.names()
    declare(Point("pear", SimpleNamespace(name="apple")))
    with pytest.raises(UserError, match=r"fruit 'pear' .* calls itself 'apple'"):
        registry.names()


def test_paths_by_name(declare, tmp_path):
    def made():
        (tmp_path / "made").mkdir()
        return tmp_path / "made"

    registry = PathRegistry("fruit", lambda: {"plum": tmp_path / "plum"})
    declare(Point("pear", made), Point("apple", str(tmp_path)))
    assert registry.names() == ["apple", "pear", "plum"] and not (tmp_path / "made").exists()
    assert [registry.get(name) for name in registry.names()] == [tmp_path, tmp_path / "made", tmp_path / "plum"]
    with pytest.raises(UserError, match="unknown fruit 'cherry': choose one of apple, pear, plum"):
        registry.get("cherry")
    with pytest.raises(UserError, match=r"fruit 'pear' .* cannot be found .FileExistsError"):
        registry.get("pear")


@pytest.mark.parametrize("found", [3, None, lambda: "/nowhere/at/all"])
def test_what_is_no_path_is_refused(declare, found):
    declare(Point("pear", found))
    with pytest.raises(UserError, match=r"fruit 'pear' .* is no path that exists"):
        PathRegistry("fruit", dict).get("pear")


def test_a_path_whose_name_is_taken_is_refused(declare, tmp_path):
    declare(Point("plum", tmp_path))
    with pytest.raises(UserError, match="has a name that is taken"):
        PathRegistry("fruit", lambda: {"plum": tmp_path}).names()


# ---------------------------------------------------------------- artifacts


def test_digest_is_the_same_for_float16_and_its_float32(tmp_path):
    state = {"a": torch.randn(3, 4), "n": torch.tensor(3), "b": torch.randn(2)}
    save_weights(tmp_path / "w.safetensors", state, {"hours": 1.5})
    back = load_weights(tmp_path / "w.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    assert digest(back) == digest(half) == digest(dict(reversed(half.items())))
    assert back["a"].dtype == torch.float32 and back["n"].dtype == torch.int64
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"a": s["a"] + 1e-3},
        lambda s: s | {"a": s["a"].T.contiguous()},
        lambda s: {"c" if k == "a" else k: v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if k != "n"},
    ],
)
def test_digest_changes_with_values_shapes_and_names(change):
    state = {"a": torch.arange(12.0).view(3, 4), "n": torch.tensor(3)}
    assert digest(change(dict(state))) != digest(state)


def test_weights_of_strided_and_shared_tensors(tmp_path):
    base = torch.randn(4, 4)
    save_weights(tmp_path / "w.safetensors", {"t": base.t(), "row": base[1]})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["t"], base.t().half().float())


def test_weights_in_eight_bits(tmp_path):
    generator = torch.Generator().manual_seed(0)
    size = 10.0 ** torch.arange(-6.0, 2.0)  # of each row; float16 alone would lose the first
    state = {"w": torch.randn(8, 64, 3, 3, generator=generator) * size.view(-1, 1, 1, 1), "b": torch.randn(8)}
    state["w"][3] = 0
    save_weights(tmp_path / "all.safetensors", state)
    save_weights(tmp_path / "less.safetensors", state, eight_bit=["w"])
    back = load_weights(tmp_path / "less.safetensors")
    assert set(back) == {"w", "b"} and all(v.dtype == torch.float32 for v in back.values())
    assert torch.equal(back["b"], state["b"].half().float()) and not back["w"][3].any()
    largest = state["w"].flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    assert ((back["w"] - state["w"]).abs() <= 1.001 * largest / 254).all()
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("less", "all")]
    assert sizes[0] < 0.6 * sizes[1]
    # rounding what was rounded changes nothing: a file can be read and written again
    save_weights(tmp_path / "again.safetensors", back, eight_bit=["w"])
    assert digest(load_weights(tmp_path / "again.safetensors")) == digest(back)
    for odd in ({"w:scales": torch.ones(8)}, {"w": torch.ones(8, 2), "w:scales": torch.ones(3)}):
        save_weights(tmp_path / "odd.safetensors", odd)
        with pytest.raises(UserError, match=r"odd\.safetensors has scales without weights that they fit"):
            load_weights(tmp_path / "odd.safetensors")


def test_of_triangular_matrices_one_side_is_stored(tmp_path):
    state = {"low": torch.randn(5, 7, 24, 24).tril(), "up": torch.randn(9, 9).triu(), "full": torch.randn(3, 3)}
    save_weights(tmp_path / "w.safetensors", state)
    back = load_weights(tmp_path / "w.safetensors")
    assert set(back) == set(state) and all(torch.equal(back[k], v.half().float()) for k, v in state.items())
    whole = 2 * sum(v.numel() for v in state.values())
    assert (tmp_path / "w.safetensors").stat().st_size < 0.6 * whole
    save_weights(tmp_path / "w.safetensors", {"a:lower": torch.zeros(2, 4)})
    with pytest.raises(UserError, match=r"a matrix that is incomplete \(4 numbers are no triangle\)"):
        load_weights(tmp_path / "w.safetensors")


def test_integer_views_of_the_same_memory_are_saved(tmp_path):
    base = torch.arange(6)
    save_weights(tmp_path / "w.safetensors", {"all": base, "same": base})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["same"], base)


def test_weights_that_are_not_there_or_corrupt(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        load_weights(tmp_path / "absent.safetensors")
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(100)})
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:50])
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_weights(tmp_path / "w.safetensors")


def test_home_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "a" / "b"))
    assert home() == tmp_path / "a" / "b" and home().is_dir()
    monkeypatch.delenv("SPLITSIGHT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert home() == tmp_path / "c" / "splitsight"


# ---------------------------------------------------------------- data


def png(color=(255, 0, 0), size=(10, 20)):
    image = np.full((*size, 3), color, np.uint8)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def parquet(path, rows, labels=None):
    columns = {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if labels is not None:
        columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), path)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 32, 64]))
def test_fit_always_gives_the_size(h, w, size):
    assert fit(np.zeros((h, w, 3), np.uint8), size).shape == (size, size, 3)


def test_fit_keeps_the_centre_and_does_not_touch_what_fits():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200
    assert (fit(image, 20) == 200).all() and fit(image[:, :20], 20) is not None
    square = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    assert fit(square, 16) is square


def test_folder_in_name_order_with_unique_names(tmp_path):
    for name in ("b.png", "a.png", "c.JPG"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "a.jpg").write_bytes(png((0, 255, 0)))
    (tmp_path / "notes.txt").write_text("no image")
    data = load_images(tmp_path, 8)
    assert data.names == ["a-jpg", "a-png", "b", "c"] and data.images.shape == (4, 8, 8, 3)
    assert data.images[1, 0, 0].tolist() == [255, 0, 0] and (data.labels == -1).all()
    assert load_images(tmp_path, 8, limit=2).names[0].startswith("a")


def test_names_are_unique_whatever_the_files_are_called(tmp_path):
    for name in ("a.png", "a.jpg", "a-png.png"):
        (tmp_path / name).write_bytes(png())
    names = load_images(tmp_path, 8).names
    assert len(set(names)) == 3


def test_name_does_not_depend_on_the_limit(tmp_path):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(png())
    assert load_images(tmp_path, 8, limit=1).names == load_images(tmp_path, 8).names[:1]


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    parquet(path, [{"bytes": png(), "path": "d/one.png"}, {"bytes": png((0, 0, 255)), "path": None}], [7, None])
    data = load_images(path, 8)
    assert data.names == ["000000-one", "000001"] and data.labels.tolist() == [7, -1]
    assert data.images[1, 0, 0].tolist() == [0, 0, 255]
    assert len(load_images(path, 8, limit=1)) == 1 and len(load_images(path, 8, limit=99)) == 2


def test_draw_depends_on_the_seed_and_never_repeats(tmp_path):
    colours = [(i, 10, 200) for i in range(30)]
    parquet(tmp_path / "x.parquet", [{"bytes": png(c), "path": None} for c in (*colours, *colours)])
    draw = lambda seed, count=12: draw_images(tmp_path / "x.parquet", 8, count, seed)  # noqa: E731
    first = draw(1)
    assert len(first) == 12 == len({image.tobytes() for image in first.images})
    assert draw(1).names == first.names and draw(2).names != first.names
    assert draw(1, 5).names == first.names[:5]
    every = draw(3, 99)
    assert sorted(every.images[:, 0, 0, 0].tolist()) == list(range(30))
    whole = load_images(tmp_path / "x.parquet", 8)
    assert all((whole.images[int(n)] == i).all() for n, i in zip(first.names, first.images, strict=True))


def test_png_and_pixels_round_trip(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3), np.uint8)
    assert (to_pixels(to_tensor(images)) == images).all()
    assert (to_pixels(to_tensor(images)[1]) == images[1]).all()
    assert to_pixels(torch.tensor([-1.0, 0.4999 / 255, 2.0]).view(3, 1, 1)).tolist() == [[[0, 0, 255]]]
    write_png(tmp_path / "x.png", images[0])
    assert (cv2.imread(str(tmp_path / "x.png"))[..., ::-1] == images[0]).all()
    assert (tmp_path / "x.png").read_bytes() == encode_png(images[0])
    for wrong in (images, images[0, :, :, :2], images[0].astype(float), images[0][:0]):
        with pytest.raises(ValueError, match="not an RGB image"):
            encode_png(wrong)


def test_a_png_is_complete_or_not_there(tmp_path, monkeypatch):
    image = np.zeros((8, 8, 3), np.uint8)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_png(tmp_path / "x.png", image)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_sentence(tmp_path):
    def refused(path, match):
        with pytest.raises(UserError, match=match) as error:
            load_images(path, 8)
        assert "\n" not in str(error.value)

    refused(tmp_path / "absent", "no such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no PNG or JPEG")
    (tmp_path / "zero.png").write_bytes(b"")
    refused(tmp_path / "zero.png", "not a readable PNG")
    (tmp_path / "noise.jpg").write_bytes(b"\xff\xd8\xffgarbage")
    refused(tmp_path / "noise.jpg", "not a readable PNG")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    refused(tmp_path / "bad.parquet", "not a readable Parquet")
    parquet(tmp_path / "cut.parquet", [{"bytes": png(), "path": None}])
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.parquet", "not a readable Parquet")
    # same length, so the footer is intact, but the pages are not
    (tmp_path / "flip.parquet").write_bytes(whole[:4] + b"\x00" * 60 + whole[64:])
    refused(tmp_path / "flip.parquet", "not a readable")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    refused(tmp_path / "other.parquet", r"needs a struct column 'image'.*it has x")
    parquet(tmp_path / "none.parquet", [])
    refused(tmp_path / "none.parquet", "holds no images")
    parquet(tmp_path / "null.parquet", [{"bytes": None, "path": "x"}])
    refused(tmp_path / "null.parquet", "row 0 of .* is not a readable")


def raw_png(depth, colour, pixels, **chunks):
    """A PNG of the given rows of packed samples, with further chunks before the data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    width = len(pixels[0]) * 8 // (depth * samples)
    header = struct.pack(">IIBBBBB", width, len(pixels), depth, colour, 0, 0, 0)
    more = b"".join(chunk(k.encode(), v) for k, v in chunks.items())
    rows = zlib.compress(b"".join(b"\0" + row for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def flat(*pixel):
    return Image.fromarray(np.full((4, 6, len(pixel)), pixel, np.uint8).squeeze())


HALF = [round(c * 128 / 255 + 127) for c in (200, 100, 50)]  # at an alpha of 128 on white


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(saved(flat(255, 0, 0, 0)), [255] * 3, id="hidden colours"),
        pytest.param(saved(flat(200, 100, 50, 255)), [200, 100, 50], id="opaque"),
        pytest.param(saved(flat(200, 100, 50, 128)), HALF, id="half"),
        pytest.param(saved(flat(200, 128)), [HALF[0]] * 3, id="grey with alpha"),
        pytest.param(saved(flat(200, 100, 50).quantize(2), transparency=0), [255] * 3, id="palette"),
        pytest.param(saved(flat(200, 100, 50).quantize(2), transparency=bytes([128])), HALF, id="palette, half"),
        pytest.param(saved(flat(200, 100, 50), transparency=(200, 100, 50)), [255] * 3, id="one colour"),
        pytest.param(saved(flat(200, 100, 50), transparency=(1, 2, 3)), [200, 100, 50], id="another colour"),
        pytest.param(saved(flat(7), transparency=7), [255] * 3, id="one grey"),
        pytest.param(saved(flat(7), transparency=8), [7] * 3, id="another grey"),
        pytest.param(raw_png(4, 0, [b"\x33"] * 2, tRNS=struct.pack(">H", 3)), [255] * 3, id="grey of 4 bits"),
        pytest.param(raw_png(16, 6, [struct.pack(">4H", 51400, 25700, 12850, 32896)] * 2), HALF, id="16 bits"),
        pytest.param(raw_png(16, 4, [struct.pack(">2H", 51400, 0)] * 2), [255] * 3, id="grey, 16 bits"),
        pytest.param(saved(flat(200, 100, 50, 128), "WEBP", lossless=True), HALF, id="WebP"),
    ],
)
def test_transparency_is_composited_on_white(data, expected):
    image = decode_image(data, "x.png")
    assert image.dtype == np.uint8
    assert np.abs(image.reshape(-1, 3).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("mode", "form"), [("RGB", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG")])
def test_pictures_are_turned_as_their_orientation_says(orientation, mode, form):
    """A bright corner, and in the RGBA picture a transparent one, which is white."""
    pixels = np.full((32, 48, 3), 60, np.uint8)
    if mode == "RGB":
        pixels[:16, :16] = 255
    else:
        alpha = np.full((32, 48), 255, np.uint8)
        alpha[:16, :16] = 0
        pixels = np.dstack([pixels, alpha])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(saved(Image.fromarray(pixels), form, exif=exif), "x")
    assert image.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    bright = [place for place in ((0, 0), (0, -1), (-1, -1), (-1, 0)) if image[place].mean() > 200]
    assert bright == [corners[orientation]]


def test_other_pictures_are_decoded_as_they_were():
    cmyk = saved(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG", quality=95)
    red, green, blue = decode_image(cmyk, "x.jpg")[8, 8].tolist()
    assert red > 240 and abs(green - 55) < 15 and abs(blue - 55) < 15
    assert decode_image(saved(flat(200, 100, 50).quantize(2)), "x.png")[0, 0].tolist() == [200, 100, 50]
    deep = raw_png(16, 2, [struct.pack(">3H", 51455, 25700, 12850)] * 2)
    assert decode_image(deep, "x.png")[0, 0].tolist() == [200, 100, 50]  # the upper byte of each
    assert decode_image(raw_png(1, 0, [b"\xf0"]), "x.png")[0, :, 0].tolist() == [255] * 4 + [0] * 4


def test_deep_pictures_of_few_bits_are_scaled_and_that_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(data_module, "_said_shallow", set())
    with caplog.at_level(logging.WARNING, "splitsight"):
        twelve = [decode_image(raw_png(16, 0, [struct.pack(">2H", 2048, 4095)]), f"{i}.png") for i in range(2)]
        assert twelve[1][0, :, 0].tolist() == [128, 255]
        assert len(caplog.messages) == 1 and "0.png is a 16-bit PNG whose values fit in 12 bits" in caplog.messages[0]
        colours = decode_image(raw_png(16, 2, [struct.pack(">3H", 1000, 500, 0)]), "ten.png")
        assert colours[0, 0].tolist() == [249, 125, 0] and "10 bits" in caplog.messages[1]
        caplog.clear()
        for opaque in (4095, 65535):  # transparency of the same depth, and of 16 bits
            seen = decode_image(raw_png(16, 6, [struct.pack(">4H", 4000, 2000, 0, opaque)] * 2), "alpha.png")
            assert seen[0, 0].tolist() == [249, 125, 0]
        hidden = decode_image(raw_png(16, 6, [struct.pack(">8H", 4000, 2000, 0, 0, 4000, 2000, 0, 4095)]), "alpha.png")
        assert hidden[0].tolist() == [[255, 255, 255], [249, 125, 0]]
        assert decode_image(raw_png(16, 0, [struct.pack(">2H", 0, 255)]), "black.png").max() == 0
        assert decode_image(raw_png(16, 0, [struct.pack(">2H", 0, 4096)]), "dark.png").max() == 16
        assert not caplog.messages


def test_folders_come_in_natural_order_without_metadata(tmp_path):
    for i in range(1, 13):
        (tmp_path / f"{i}.png").write_bytes(png((20 * i, 0, 0)))
    (tmp_path / "._1.png").write_bytes(bytes.fromhex("00051607") + bytes(100))
    data = load_images(tmp_path, 8)
    assert data.names == [str(i) for i in range(1, 13)]
    assert data.images[:, 0, 0, 0].tolist() == [20 * i for i in range(1, 13)]
    with pytest.raises(UserError, match="AppleDouble"):
        load_images(tmp_path / "._1.png", 8)


def test_numbers_are_those_of_classes_of_the_same_name(tmp_path):
    path, rows = tmp_path / "x.parquet", [{"bytes": png((i, 0, 0)), "path": None} for i in range(5)]
    parquet(path, rows, [0, 1, 2, 7, None])

    def known(classes):
        return load_images(path, 8).stored_labels.known(classes).tolist()

    others = [["tench"], ["Carassius auratus", "goldfish"], ["crane"], ["tabby cat"], ["crane"]]
    assert known(others) == [0, 1, 2, 7, -1]  # nobody says what they mean
    table = tmp_path / "some-classes.tsv"
    table.write_text("0\tn01\tgoldfish\n1\tn02\tteapot\n2\tn03\tCrane, machine\n")
    assert known(others) == [1, -1, 2, -1, -1]
    assert known([*others[:2], ["x"], *others[3:]])[2] == 4
    assert known([["a"], ["b"]]) == [0, 1, 2, 7, -1]  # no name in common: the lists cannot be compared
    assert known([["goldfish"], ["teapot"], ["crane"]]) == [0, 1, 2, -1, -1]
    # what the file itself says comes first
    stored = pq.read_table(path)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["tabby_cat, tabby", "tench"]}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(stored.replace_schema_metadata(about), path)
    assert known(others) == [3, 0, -1, -1, -1]
    pq.write_table(stored.replace_schema_metadata({b"huggingface": b"{"}), path)
    assert known(others) == [1, -1, 2, -1, -1]


def test_labels_are_read_only_where_they_are_asked_for(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [{"bytes": png((i, 0, 0)), "path": None} for i in range(3)]
    classes = [["goldfish", "Carassius auratus"], ["tabby cat"], ["goldfish"]]
    parquet(path, rows, ["Tabby_cat", "goldfish", None])
    for data in (load_images(path, 8), draw_images(path, 8, 3, 0)):
        order = data.images[:, 0, 0, 0].tolist()
        assert [data.stored_labels.numbers(classes)[order.index(i)] for i in range(3)] == [1, 0, -1]
        with pytest.raises(UserError, match=r"names such as .* class numbers are needed"):
            _ = data.labels
    with pytest.raises(UserError, match=r"'Tabby_cat' in .* names none of the known classes"):
        load_images(path, 8).stored_labels.numbers(classes[:1])
    assert load_images(path, 8).stored_labels.known(classes[:1]).tolist() == [-1, 0, -1]
    for labels in ([[0], [1], [2]], [{"id": 1}] * 3, [b"cat"] * 3, [0.5, 1.0, 2.0]):
        parquet(path, rows, labels)
        assert len(load_images(path, 8)) == 3
        with pytest.raises(UserError, match="neither a class number nor a class name") as error:
            _ = load_images(path, 8).labels
        assert "\n" not in str(error.value)
    for labels in ([0.0, 2.0, None], [0.0, 2.0, float("nan")], [0, 2, None]):
        parquet(path, rows, labels)
        assert load_images(path, 8).labels.tolist() == [0, 2, -1]


def test_names_out_of_a_data_set_are_safe(tmp_path):
    path = tmp_path / "x.parquet"
    paths = ["a\0b.png", "a\nb.png", "n" * 300 + ".png", "d\\e.png", "x" * 200 + "/.png", "CON.png"]
    parquet(path, [{"bytes": png((i, 0, 0)), "path": p} for i, p in enumerate(paths)])
    names = load_images(path, 8).names
    assert names[:2] == ["000000-a_b", "000001-a_b"] and names[3] == "000003-d_e"
    for name in names:
        write_png(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    assert draw_images(path, 8, 9, 0).names != names and set(draw_images(path, 8, 9, 0).names) == set(names)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a\nb.png", "a\tb.png", "a_b.jpg"):
        (folder / name).write_bytes(png())
    assert len(set(load_images(folder, 8).names)) == 3 and load_images(folder, 8, 1).names == ["a_b"]


def test_file_names_that_are_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"in\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"a\xe9.png")).write_bytes(png())
    (folder / "b.png").write_bytes(b"junk")
    assert load_images(folder, 8, 1).names == ["a_"]
    with pytest.raises(UserError, match=r"in\\xe9/b\.png is not a readable PNG"):
        load_images(folder, 8)
    parquet(tmp_path / "x.parquet", [{"bytes": png(), "path": None}], [3])
    data = load_images((tmp_path / "x.parquet").rename(folder / os.fsdecode(b"\xff.parquet")), 8)
    assert data.names == ["000000"] and data.labels.tolist() == [3]


def test_a_data_set_of_paths_says_what_to_do(tmp_path):
    parquet(tmp_path / "x.parquet", [{"bytes": None, "path": "train/1.png"}])
    with pytest.raises(UserError, match=r"holds a path, 'train/1\.png', and no bytes; give the folder"):
        load_images(tmp_path / "x.parquet", 8)


def test_several_that_come_to_the_cache_at_once_decode_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    path = tmp_path / "x.parquet"
    parquet(path, [{"bytes": png(), "path": None}], [1])
    both, decoded, real = threading.Barrier(2), [], data_module.load_images

    def slow(source, size):
        decoded.append(source)
        time.sleep(0.05)
        return real(source, size)

    def trainer(_):
        both.wait()
        return cached_images([path], 8)

    monkeypatch.setattr(data_module, "load_images", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(trainer, range(2)))
    assert decoded == [path] and np.array_equal(found[0], found[1])
    assert [p.suffix for p in (tmp_path / "home" / "decoded").glob("*.npy*")] == [".npy"]


def test_cache_decodes_once_and_follows_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    path = tmp_path / "x.parquet"
    parquet(path, [{"bytes": png(), "path": None}], [1])
    assert cached_images([path, path], 8).shape == (2, 8, 8, 3)
    monkeypatch.setattr("splitsight.data.load_images", lambda *_: pytest.fail("decoded twice"))
    cached_images([path], 8)
    monkeypatch.undo()
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    parquet(path, [{"bytes": png((0, 0, 255)), "path": None}] * 2, [1, 2])
    images = cached_images([path], 8)
    assert images.shape == (2, 8, 8, 3) and images[0, 0, 0].tolist() == [0, 0, 255]
    (tmp_path / "folder").mkdir()
    for name, colour in (("10.png", (0, 255, 0)), ("9.png", (255, 0, 0))):
        (tmp_path / "folder" / name).write_bytes(png(colour))
    assert cached_images([tmp_path / "folder"], 8)[:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    (tmp_path / "folder" / "9.png").unlink()
    assert len(cached_images([tmp_path / "folder"], 8)) == 1
    with pytest.raises(UserError, match="no such data file"):
        cached_images([tmp_path / "absent"], 8)


# ---------------------------------------------------------------- training


def test_budget():
    assert Budget(seconds=10).fraction(5, 10**9) == 0.5
    assert Budget(steps=4).fraction(10**9, 1) == 0.25
    assert Budget(seconds=10, steps=100).fraction(1, 90) == 0.9
    assert Budget(steps=4).fraction(0, 9) == 1.0
    # what another process has the core for does not count; sleep stands for that
    wall, own = Budget(seconds=10), Budget(seconds=10, computing=True)
    before = wall.now(), own.now()
    time.sleep(0.05)
    assert wall.now() - before[0] >= 0.05 > 0.04 > own.now() - before[1]
    for wrong in ({}, {"seconds": 0}, {"steps": -1}):
        with pytest.raises(UserError, match="budget"):
            Budget(**wrong)


def test_the_best_weights_are_remembered_by_a_checkpoint(tmp_path):
    model, best = nn.Linear(1, 1), Best()
    for value, weight in ((3.0, 1.0), (math.nan, 2.0), (1.0, 3.0), (2.0, 4.0), (1.0, 5.0)):
        nn.init.constant_(model.weight, weight)
        best.offer(value, model)
    assert best.value == 1.0 and best.weights["weight"].item() == 3.0
    run = Run(tmp_path, Budget(steps=1), {"best": best}, title="t")
    run.save()
    again = Best()
    assert again.weights is None
    Run(tmp_path, Budget(steps=1), {"best": again}, title="t")
    again.offer(1.5, model)
    assert again.value == 1.0 and again.weights["weight"].item() == 3.0


def test_one_cycle():
    rates = [one_cycle(f / 1000, 0.1) for f in range(1001)]
    assert max(rates) == pytest.approx(0.1, rel=1e-3) and rates.index(max(rates)) == pytest.approx(50, abs=1)
    assert rates[0] > 0 and rates[-1] == pytest.approx(0.0002)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_a_stable_rate_knows_nothing_of_the_end_until_it_is_near():
    rates = [warmup_stable_decay(f / 1000, 0.1) for f in range(1001)]
    assert 0 < rates[0] < rates[2] < 0.1 and set(rates[3:851]) == {0.1}
    assert rates[851:] == sorted(rates[851:], reverse=True) and rates[-1] == pytest.approx(0.0002)
    assert rates[925] == pytest.approx(0.0501)


def test_a_learning_curve_is_a_thinned_table_of_complete_rows(tmp_path):
    assert learning_curve(tmp_path, ["loss"]).splitlines() == ["| minutes | loss |", "| --- | --- |"]
    rows = [{"minutes": i, "loss": 1 / (i + 1)} for i in range(100)] + [{"minutes": 100.0, "other": 1}]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    lines = learning_curve(tmp_path, ["loss"], rows=4).splitlines()
    assert lines[2:] == ["| 0 | 1 |", "| 33 | 0.02941 |", "| 66 | 0.01493 |", "| 99 | 0.01 |"]


def parts(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), 0.01), "average": ema(model, 0.9)}


def train(run):
    for fraction in run.steps():
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(run.step))
        for group in run.parts["optimizer"].param_groups:
            group["lr"] = one_cycle(fraction, 0.1)
        run.parts["optimizer"].zero_grad()
        run.parts["model"](x).square().mean().backward()
        run.parts["optimizer"].step()
        run.parts["average"].update_parameters(run.parts["model"])
        yield run.step


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    with Run(tmp_path / "whole", Budget(steps=10), whole := parts(), title="t") as run:
        list(train(run))
    with Run(tmp_path / "cut", Budget(steps=10), parts(), title="t") as run:
        for step in train(run):
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
    assert run.interrupted and run.step == 6
    with Run(tmp_path / "cut", Budget(steps=10), resumed := parts(seed=99), title="t") as run:
        assert run.step == 6 and run.seconds > 0
        list(train(run))
    assert run.step == 10 and run.fraction() == 1.0
    for name in ("model", "average"):
        a, b = whole[name].state_dict(), resumed[name].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_larger_budget_goes_on_and_a_spent_one_does_nothing(tmp_path):
    for steps, ran in ((3, 3), (3, 0), (5, 2)):
        with Run(tmp_path, Budget(steps=steps), parts(), title="t") as run:
            assert len(list(train(run))) == ran
        assert run.step == max(3, steps)


def test_what_follows_a_training_says_what_it_does(capsys):
    with progress_of("samples", 2000) as done:
        done(50)
    assert capsys.readouterr().err == "samples: 2,000 to go\n"


def test_time_budget_counts_only_training(tmp_path):
    with Run(tmp_path, Budget(seconds=0.05), parts(), title="t") as run:
        for _ in run.steps():
            time.sleep(0.02)
    assert 2 <= run.step <= 3 and run.seconds >= 0.05


def test_checkpoint_that_does_not_fit(tmp_path):
    with Run(tmp_path, Budget(steps=1), parts(), title="t") as run:
        list(train(run))
    other = {"model": nn.Linear(2, 2)}
    with pytest.raises(UserError, match="does not fit this run"):
        Run(tmp_path, Budget(steps=1), other, title="t")
    for garbage in (b"", b"garbage", (tmp_path / "checkpoint.pt").read_bytes()[:200]):
        (tmp_path / "checkpoint.pt").write_bytes(garbage)
        with pytest.raises(UserError, match="does not fit this run"):
            Run(tmp_path, Budget(steps=1), parts(), title="t")
    torch.save({"something": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="does not fit this run"):
        Run(tmp_path, Budget(steps=1), parts(), title="t")


def test_a_failed_step_keeps_the_last_checkpoint(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with Run(tmp_path, Budget(steps=2), parts(), title="t") as run:
        list(train(run))
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ZeroDivisionError), Run(tmp_path, Budget(steps=9), parts(), title="t") as run:
        for _ in run.steps():
            raise ZeroDivisionError
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept and signal.getsignal(signal.SIGINT) is before


def test_log_is_one_json_object_a_line(tmp_path):
    with Run(tmp_path, Budget(steps=2), parts(), title="t") as run:
        for _ in train(run):
            run.log(loss=0.5, note="x")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 1] and rows[0]["loss"] == 0.5 and rows[0]["note"] == "x"


def test_device():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            pick_device("cuda")
    with pytest.raises(UserError, match="device"):
        pick_device("toaster")


def test_random_crops():
    x = torch.rand(6, 3, 32, 32)
    draw = lambda seed: random_crops(x, 16, (0.5, 1.1), torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(0).shape == (6, 3, 16, 16) and torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert draw(2).min() >= 0 and draw(2).max() <= 1
    whole = random_crops(x, 32, (1.0, 1.0), torch.Generator().manual_seed(0))
    flipped = [torch.allclose(w, o.flip(-1), atol=1e-4) for w, o in zip(whole, x, strict=True)]
    straight = [torch.allclose(w, o, atol=1e-4) for w, o in zip(whole, x, strict=True)]
    assert all(a or b for a, b in zip(flipped, straight, strict=True))


def test_gradient_distance_of_ramps_is_their_slopes():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    ramp = (0.02 * rows - 0.05 * columns).expand(2, 3, 8, 6)
    assert torch.allclose(gradient_distance(torch.zeros_like(ramp), ramp), torch.tensor(0.07))
    # a shift of brightness has no edges
    assert torch.allclose(gradient_distance(ramp + 0.3, ramp), torch.tensor(0.0), atol=1e-6)


def test_flattened_keeps_edges_and_loses_grain():
    rng = np.random.default_rng(0)
    picture = np.zeros((32, 32, 3), np.int64) + 60
    picture[:, 16:] = 190
    images = np.stack([(picture + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)] * 12)
    draw = lambda share: flattened(images, share, torch.Generator().manual_seed(0))  # noqa: E731
    assert np.array_equal(draw(0.5), draw(0.5))
    same = [np.array_equal(a, b) for a, b in zip(draw(0.5), images, strict=True)]
    assert any(same) and not all(same)
    assert np.array_equal(draw(0.0), images)
    grain = lambda x: np.abs(np.diff(x[:, :14].astype(int), axis=1)).mean()  # noqa: E731
    edge = lambda x: x[:, 16].mean() - x[:, 15].mean()  # noqa: E731
    for flat, image in zip(draw(1.0), images, strict=True):
        assert grain(flat) < 0.5 * grain(image) and edge(flat) > 0.95 * edge(image)


def test_flushing_subnormals_ends_with_its_block():
    import torch

    from splitsight.numerics import subnormals_flushed

    tiny = torch.tensor([1e-40])
    with subnormals_flushed():
        assert float((tiny * 1).sum()) == 0
    assert float((tiny * 1).sum()) > 0
