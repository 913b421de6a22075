"""Still images: folders of PNG/JPEG and Parquet in Hugging Face image format, as uint8 arrays; PNG, to write them.

The Hugging Face format holds one struct column ``image`` with fields ``bytes`` (an encoded file) and
``path``, and optionally an integer column ``label``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from splitsight.artifacts import home
from splitsight.errors import UserError
from splitsight.files import write_bytes

__all__ = [
    "ImageSet",
    "cached_images",
    "decode_image",
    "draw_images",
    "encode_png",
    "fit",
    "image_hash",
    "load_images",
    "shards_of",
    "to_pixels",
    "to_tensor",
    "write_png",
]

_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        images: ``(N, H, W, 3)`` uint8 RGB.
        names: N names, unique, usable as file names (no separators, no suffix).
        labels: ``(N,)`` int64, −1 where unknown.
    """

    images: np.ndarray
    names: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side to ``size`` pixels and crop the centre: ``(h, w, 3)`` → ``(size, size, 3)``.

    Area averaging when shrinking, so that fine texture does not alias; cubic when enlarging.
    """
    h, w = image.shape[:2]
    if (h, w) == (size, size):
        return image
    scale = size / min(h, w)
    new = (max(size, round(w * scale)), max(size, round(h * scale)))
    image = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def image_hash(image: np.ndarray) -> str:
    """SHA-256 (hex) of an image's pixels, ``(S, S, 3)`` uint8: by it a test image is known among training images."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def to_tensor(images: np.ndarray) -> Tensor:
    """``(N, H, W, 3)`` uint8 → ``(N, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255)


def to_pixels(images: Tensor) -> np.ndarray:
    """``(…, 3, H, W)`` in [0, 1] (clamped) → ``(…, H, W, 3)`` uint8, rounded: what :func:`to_tensor` takes back."""
    pixels = (images.detach().clamp(0, 1) * 255).round().byte().movedim(-3, -1)
    return np.ascontiguousarray(pixels.cpu().numpy())


def encode_png(image: np.ndarray) -> bytes:
    """``(h, w, 3)`` uint8 RGB as PNG.

    Raises:
        ValueError: not an image of that form.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"not an RGB image: {image.dtype} of shape {image.shape}")
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Write ``(h, w, 3)`` uint8 RGB; the file appears complete or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    write_bytes(path, encode_png(image))


def decode_image(data: bytes, what: str) -> np.ndarray:
    """Decode a PNG or JPEG to ``(h, w, 3)`` uint8 RGB.

    Raises:
        UserError: the bytes are not an image; ``what`` names it in the message.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"{what} is not a readable PNG or JPEG: remove or replace it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


_Item = Callable[[int], tuple[np.ndarray, str, int]]
"""What gives image i of a source, its name and its label."""


def _parquet(path: Path, size: int) -> tuple[int, _Item]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({' '.join(str(error).split())})") from error
    kind = table.schema.field("image").type if "image" in table.column_names else None
    if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise UserError(
            f"{path} is not in Hugging Face image format: it needs a struct column 'image' with a field 'bytes' "
            f"(it has {', '.join(table.column_names) or 'no columns'})"
        )
    cells = table.column("image")
    labels = table.column("label").to_pylist() if "label" in table.column_names else None

    def item(i: int) -> tuple[np.ndarray, str, int]:
        row = cells[i].as_py() or {}
        image = fit(decode_image(row.get("bytes") or b"", f"row {i} of {path}"), size)
        name = f"{i:06d}" + (f"-{Path(row['path']).stem}" if row.get("path") else "")
        return image, name, -1 if labels is None or labels[i] is None else int(labels[i])

    return len(cells), item


def _unique_names(files: list[Path]) -> list[str]:
    """Stems, extended where two files share one: a.png and a.jpg must not overwrite each other's reconstruction."""
    count = Counter(p.stem for p in files)
    names: list[str] = []
    taken = {stem for stem, n in count.items() if n == 1}
    for p in files:
        name = p.stem if count[p.stem] == 1 else p.name.replace(".", "-")
        while count[p.stem] > 1 and name in taken:
            name += "-"
        taken.add(name)
        names.append(name)
    return names


def _files(files: list[Path], size: int) -> tuple[int, _Item]:
    names = _unique_names(files)

    def item(i: int) -> tuple[np.ndarray, str, int]:
        return fit(decode_image(files[i].read_bytes(), str(files[i])), size), names[i], -1

    return len(files), item


def _source(path: Path, size: int) -> tuple[int, _Item]:
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise UserError(f"{path} holds no PNG or JPEG files")
        return _files(files, size)
    if path.suffix.lower() in _SUFFIXES:
        return _files([path], size)
    count, item = _parquet(path, size)
    if not count:
        raise UserError(f"{path} holds no images")
    return count, item


def _set(items: Iterable[tuple[np.ndarray, str, int]]) -> ImageSet:
    images, names, labels = zip(*items, strict=True)
    return ImageSet(np.stack(images), list(names), np.asarray(labels, np.int64))


def load_images(path: Path, size: int, limit: int | None = None, *, tail: bool = False) -> ImageSet:
    """Read a folder of PNG/JPEG files, one such file, or a Parquet file.

    Args:
        path: folder, image file, or ``*.parquet``.
        size: pixels; every image is scaled and centre-cropped to ``size × size`` (see :func:`fit`).
        limit: read at most this many, in name or row order; ≥ 1.
        tail: where there are more, the last ones instead of the first.

    Raises:
        UserError: nothing there, nothing readable, or not the expected format.
    """
    count, item = _source(path, size)
    take = count if limit is None else min(count, limit)
    return _set(item(i) for i in (range(count - take, count) if tail else range(take)))


def draw_images(path: Path, size: int, count: int, seed: int) -> ImageSet:
    """Draw images without replacement out of what :func:`load_images` reads; no two of them are equal.

    Only what is drawn is decoded, so that a small draw from a large source is quick.

    Args:
        path: as for :func:`load_images`.
        size: likewise.
        count: how many, ≥ 1; fewer come where the source has no more different ones.
        seed: of the draw.

    Raises:
        UserError: as for :func:`load_images`.
    """
    total, item = _source(path, size)
    drawn: dict[bytes, tuple[np.ndarray, str, int]] = {}
    for i in np.random.default_rng(seed).permutation(total):
        one = item(int(i))
        drawn.setdefault(one[0].tobytes(), one)
        if len(drawn) == count:
            break
    return _set(drawn.values())


def cached_images(paths: list[Path], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode Parquet shards once and map them into memory afterwards (several trainers share the pages).

    Returns:
        ``(N, size, size, 3)`` uint8 (read-only map) and ``(N,)`` int64 labels, in the order of ``paths``.
    """
    images, labels = [], []
    folder = home() / "decoded"
    folder.mkdir(exist_ok=True)
    for path in paths:
        if not path.is_file():
            raise UserError(f"no such data file: {path}")
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{size}".encode()).hexdigest()[:24]
        file, label_file = folder / f"{key}.npy", folder / f"{key}.labels.npy"
        if not (file.is_file() and label_file.is_file()):
            part = load_images(path, size)
            np.save(label_file, part.labels)
            partial = folder / f"{key}.partial.npy"
            np.save(partial, part.images)
            partial.replace(file)
        images.append(np.load(file, mmap_mode="r"))
        labels.append(np.load(label_file))
    return np.concatenate(images), np.concatenate(labels)


def shards_of(folder: Path) -> tuple[list[Path], Path]:
    """The Parquet shards of a training folder, sorted, and its table of class names.

    Raises:
        UserError: fewer than two shards (one is held out), or no ``classes.tsv``.
    """
    shards = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    if len(shards) < 2:
        raise UserError(
            f"{folder} holds {len(shards)} Parquet files: training needs at least two, the last one is held out"
        )
    classes = folder / "classes.tsv"
    if not classes.is_file():
        raise UserError(f"{classes} is missing: it lists label, WordNet id and names, tab-separated")
    return shards, classes
