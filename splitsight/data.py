"""Still images: folders of PNG/JPEG and Parquet in Hugging Face image format, as uint8 arrays; PNG, to write them.

The Hugging Face format holds one struct column ``image`` with fields ``bytes`` (an encoded file) and
``path``, and optionally a column ``label`` of class numbers or class names, which is read only when it is asked for.
A folder's files come in natural order (:func:`splitsight.names.natural_key`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from torch import Tensor

from splitsight.artifacts import home
from splitsight.errors import UserError
from splitsight.files import held, write_bytes, writing
from splitsight.names import files_of, printable, safe_names

__all__ = [
    "BACKGROUND",
    "IMAGE_SUFFIXES",
    "ImageSet",
    "Labels",
    "cached_images",
    "class_names",
    "corresponding",
    "decode_image",
    "draw_images",
    "encode_png",
    "fit",
    "image_hash",
    "load_images",
    "read_classes",
    "to_pixels",
    "to_tensor",
    "write_png",
]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


BACKGROUND = 255
"""What shows through transparent pixels, in each channel: white, the page on which drawings, logos and cut-out
products are made to be seen (dark strokes on nothing would vanish on black). The colours that an editor leaves under
transparent pixels are never seen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """The labels of some images, which are read, and their meaning asked, only where one is needed.

    Attributes:
        source: the Parquet file; ``None`` for images without labels.
        rows: of the images in it.
    """

    source: Path | None
    rows: Sequence[int]

    def numbers(self, classes: Sequence[Sequence[str]] | None = None) -> np.ndarray:
        """Class numbers, ``(N,)`` int64, −1 where unknown.

        Args:
            classes: names of each class, in the order of the numbers, for labels that are names; letters of either
                case do, and ``_`` for a blank.

        Raises:
            UserError: a label is a name and ``classes`` is missing or lacks it, or it is neither name nor number.
        """
        table = _by_name(classes or ())
        return np.asarray([self._strict(value, table) for value in self._values()], np.int64)

    def known(self, classes: Sequence[Sequence[str]]) -> np.ndarray:
        """Class numbers as :meth:`numbers` gives them, but −1 for whatever is no number and not among the classes.

        Where the source says what its numbers mean (:func:`class_names`), they are those of the classes of these names;
        where it does not, or shares no name with the classes, they are taken as they are.
        """
        table, values = _by_name(classes), self._values()
        numbers = [_number(value, table) for value in values]
        theirs = None if self.source is None else class_names(self.source)
        place = None if theirs is None else corresponding(theirs, classes)
        if place is not None:
            numbers = [
                n if isinstance(value, str) or n is None or n < 0 else place[n] if n < len(place) else -1
                for n, value in zip(numbers, values, strict=True)
            ]
        return np.asarray([-1 if number is None else number for number in numbers], np.int64)

    def _values(self) -> list[Any]:
        column = None if self.source is None else _column(self.source, "label")
        return [None] * len(self.rows) if column is None else [column[i].as_py() for i in self.rows]

    def _strict(self, value: Any, table: dict[str, int]) -> int:
        number = _number(value, table)
        if number is not None:
            return number
        shown, source = _brief(value), printable(self.source or "")
        if not isinstance(value, str):
            raise UserError(
                f"the label {shown} in {source} is neither a class number nor a class name: give each image one "
                "label, in a column 'label'"
            )
        if not table:
            raise UserError(
                f"the labels of {source} are names such as {shown} and class numbers are needed: give the class "
                "names as classes.tsv beside it, or a column 'label' of numbers"
            )
        raise UserError(f"the label {shown} in {source} names none of the known classes: correct it, or classes.tsv")


def _brief(value: Any) -> str:
    text = " ".join(printable(repr(value)).split())
    return text if len(text) <= 40 else text[:39] + "…"


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def corresponding(of: Sequence[Sequence[str]], to: Sequence[Sequence[str]]) -> list[int] | None:
    """Which class of one list is which of another: those that share a name, one of the same number first.

    Args:
        of: names of each class.
        to: likewise.

    Returns:
        For each class of ``of`` its number in ``to``, −1 where it has none; ``None`` where the lists share no name.
    """
    table = _by_name(to)

    def place(number: int, names: Sequence[str]) -> int:
        plain = {_plain(name) for name in names}
        if number < len(to) and plain & {_plain(name) for name in to[number]}:
            return number
        return next((table[name] for name in map(_plain, names) if name in table), -1)

    found = [place(number, names) for number, names in enumerate(of)]
    return found if any(number >= 0 for number in found) else None


def class_names(source: Path) -> list[list[str]] | None:
    """What the numbers in the column ``label`` of a Parquet file mean: names of each class.

    They stand in the file, where the library ``datasets`` has written it (a ``ClassLabel``), or in the only table
    ``*classes.tsv`` beside it.

    Returns:
        ``None`` where neither is there.

    Raises:
        UserError: the table cannot be read.
    """
    features = _features(source)
    label = features.get("label")
    if isinstance(label, dict) and isinstance(names := label.get("names"), list):
        return [[part.strip() for part in str(name).split(",")] for name in names]
    tables = sorted(source.parent.glob("*classes.tsv"))
    return read_classes(tables[0]) if len(tables) == 1 else None


def _features(source: Path) -> dict[str, Any]:
    """Columns as ``datasets`` has described them in a Parquet file; none where it has not."""
    try:
        with source.open("rb") as file:
            stored = (_open_parquet(source, file).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        return json.loads(stored)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def _by_name(classes: Sequence[Sequence[str]]) -> dict[str, int]:
    # backwards, so that of two classes of one name the first is meant
    return {_plain(name): i for i, names in reversed([*enumerate(classes)]) for name in names}


def _number(value: Any, table: dict[str, int]) -> int | None:
    if value is None or value != value:  # NaN is how some writers leave a number out
        return -1
    if isinstance(value, str):
        return table.get(_plain(value))
    return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        images: ``(N, H, W, 3)`` uint8 RGB.
        names: N names, unique, usable as file names (:func:`splitsight.names.safe_names`).
        stored_labels: their labels as the source has them, not read so far.
    """

    images: np.ndarray
    names: list[str]
    stored_labels: Labels

    @property
    def labels(self) -> np.ndarray:
        """``(N,)`` int64, −1 where unknown.

        Raises:
            UserError: they are not numbers (see :meth:`Labels.numbers`, which takes names of classes).
        """
        return self.stored_labels.numbers()

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
    """Decode a PNG or JPEG to ``(h, w, 3)`` uint8 RGB, turned as its EXIF orientation says.

    Transparent pixels are composited on :data:`BACKGROUND`, whatever way the file holds transparency. Of 16 bits a
    channel the upper eight are kept; a 16-bit PNG whose values all fit in 10 or 12 bits (but not in 8), as cameras
    and microscopes write them, is taken for data of that depth, its transparency too where that fits likewise, which
    is said once: read as 16 bits it would be almost black, or vanish.

    Raises:
        UserError: the bytes are not an image; ``what`` names it in the message.
    """
    if data.startswith(_APPLE_DOUBLE):
        raise UserError(f"{what} is not a picture but metadata that macOS keeps beside one (AppleDouble): remove it")
    buffer = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"{what} is not a readable PNG or JPEG: remove or replace it")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    png = _Png.read(data)
    if data.startswith(_JPEG) or (png is not None and png.plain):
        return image
    stored = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if stored is None:
        return image
    if png is not None and png.depth == 16 and stored.dtype == np.uint16:
        image = _shallow(stored, image, data, what)
    alpha = _alpha(stored, png)
    if alpha is None:
        return image
    alpha = _upright(alpha, data)[..., None]
    if alpha.shape[:2] != image.shape[:2]:
        raise UserError(f"{what} has a transparency that does not fit its picture: convert it to a plain PNG")
    return (image * alpha + BACKGROUND * (1 - alpha)).round().astype(np.uint8)


_JPEG, _APPLE_DOUBLE, _PNG = b"\xff\xd8", b"\x00\x05\x16\x07", b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Png:
    """What a PNG's header says: bits a channel, colour type, and the content of its chunk tRNS (empty for none)."""

    depth: int
    colour: int
    transparency: bytes

    @property
    def plain(self) -> bool:
        """Neither transparent nor deep."""
        return self.colour in (0, 2, 3) and not self.transparency and self.depth < 16

    @classmethod
    def read(cls, data: bytes) -> _Png | None:
        if not data.startswith(_PNG) or len(data) < 33:
            return None
        at, found = 33, b""  # behind the header chunk
        while at + 8 <= len(data):
            length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            if kind == b"IDAT":
                break
            if kind == b"tRNS":
                found = data[at + 8 : at + 8 + length]
            at += length + 12
        return cls(data[24], data[25], found)


def _alpha(stored: np.ndarray, png: _Png | None) -> np.ndarray | None:
    """``(h, w)`` float32 in [0, 1], as the file holds it; ``None`` for an image without."""
    most = np.iinfo(stored.dtype).max if stored.dtype in (np.uint8, np.uint16) else 1
    if stored.ndim == 3 and stored.shape[2] == 4:
        alpha = stored[..., 3]
        bits = _few_bits(stored) if png is not None and png.depth == 16 else None
        if bits is not None and 255 < int(alpha.max()) < 2**bits:
            most = 2**bits - 1
        return alpha.astype(np.float32) / most
    if png is not None and png.colour == 0 and png.transparency and stored.ndim == 2:
        # OpenCV leaves out the one grey level that a PNG may declare transparent
        level = int.from_bytes(png.transparency[:2], "big") * (255 // (2**png.depth - 1) if png.depth < 8 else 1)
        return (stored != level).astype(np.float32)
    return None


def _upright(stored: np.ndarray, data: bytes) -> np.ndarray:
    """Turn what OpenCV decoded unchanged as the file's EXIF orientation says."""
    orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    if orientation == 1:
        return stored
    places = Image.fromarray(np.arange(stored.shape[0] * stored.shape[1], dtype=np.int32).reshape(stored.shape[:2]))
    places.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(places))
    return stored.reshape(-1, *stored.shape[2:])[turned]


def _colours(stored: np.ndarray) -> np.ndarray:
    """RGB, or grey as one channel, of what OpenCV decoded unchanged."""
    return stored[..., None] if stored.ndim == 2 else stored[..., 2::-1]


def _few_bits(stored: np.ndarray) -> int | None:
    """10 or 12 where 16-bit colours fit in as many bits and not in 8, else ``None``."""
    largest = int(_colours(stored).max())
    if not 255 < largest < 4096:
        return None
    return 10 if largest < 1024 else 12


def _shallow(stored: np.ndarray, image: np.ndarray, data: bytes, what: str) -> np.ndarray:
    """``image``, or where its 16-bit values fit in 10 or 12 bits, the values scaled from there."""
    bits = _few_bits(stored)
    if bits is None:
        return image
    _say_shallow(what, bits)
    colours = _colours(stored)
    scaled = (colours.astype(np.float32) * (255 / (2**bits - 1))).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(_upright(scaled, data), image.shape))


_said_shallow: set[int] = set()


def _say_shallow(what: str, bits: int) -> None:
    if bits not in _said_shallow:
        _said_shallow.add(bits)
        _log.warning(
            "%s is a 16-bit PNG whose values fit in %d bits, almost black as it stands: it and others like it are "
            "read as %d-bit data; if they are really that dark, convert them to 8 bits",
            printable(what),
            bits,
            bits,
        )


_Item = Callable[[int], tuple[np.ndarray, str]]
"""What gives image i of a source, and its name."""


def _open_parquet(path: Path, file: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(path, error) from error


def _not_parquet(path: Path, error: Exception) -> UserError:
    return UserError(f"{printable(path)} is not a readable Parquet file ({' '.join(str(error).split())})")


def _column(path: Path, name: str) -> pa.ChunkedArray | None:
    """One column of a Parquet file; ``None`` where it has none of that name."""
    # opened here: pyarrow takes names in UTF-8 only
    try:
        with path.open("rb") as file:
            parquet = _open_parquet(path, file)
            if name not in parquet.schema_arrow.names:
                return None
            return parquet.read(columns=[name]).column(name)
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(path, error) from error


def _columns(path: Path) -> list[str]:
    with path.open("rb") as file:
        return _open_parquet(path, file).schema_arrow.names


def _parquet(path: Path, size: int) -> tuple[int, _Item]:
    cells = _column(path, "image")
    if cells is None or not pa.types.is_struct(cells.type) or cells.type.get_field_index("bytes") < 0:
        raise UserError(
            f"{printable(path)} is not in Hugging Face image format: it needs a struct column 'image' with a field "
            f"'bytes' (it has {', '.join(_columns(path)) or 'no columns'})"
        )

    def item(i: int) -> tuple[np.ndarray, str]:
        row = cells[i].as_py() or {}
        if not row.get("bytes") and row.get("path"):
            raise UserError(
                f"row {i} of {printable(path)} is not a readable image: it holds a path, '{printable(row['path'])}', "
                "and no bytes; give the folder of the image files, or write the content of each file into image.bytes"
            )
        image = fit(decode_image(row.get("bytes") or b"", f"row {i} of {printable(path)}"), size)
        name = f"{i:06d}" + (f"-{Path(row['path']).stem}" if row.get("path") else "")
        return image, safe_names([name])[0]

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
    return safe_names(names)


def _files(files: list[Path], size: int) -> tuple[int, _Item]:
    names = _unique_names(files)

    def item(i: int) -> tuple[np.ndarray, str]:
        return fit(decode_image(files[i].read_bytes(), printable(files[i])), size), names[i]

    return len(files), item


def _source(path: Path, size: int) -> tuple[int, _Item]:
    if not path.exists():
        raise UserError(f"no such file or folder: {printable(path)}")
    if path.is_dir():
        files = files_of(path, IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"{printable(path)} holds no PNG or JPEG files")
        return _files(files, size)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _files([path], size)
    count, item = _parquet(path, size)
    if not count:
        raise UserError(f"{printable(path)} holds no images")
    return count, item


def _set(path: Path, items: Mapping[int, tuple[np.ndarray, str]]) -> ImageSet:
    images, names = zip(*items.values(), strict=True)
    parquet = None if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES else path
    return ImageSet(np.stack(images), list(names), Labels(parquet, list(items)))


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
    return _set(path, {i: item(i) for i in (range(count - take, count) if tail else range(take))})


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
    drawn: dict[int, tuple[np.ndarray, str]] = {}
    seen: set[bytes] = set()
    for i in np.random.default_rng(seed).permutation(total):
        one = item(int(i))
        pixels = one[0].tobytes()
        if pixels not in seen:
            seen.add(pixels)
            drawn[int(i)] = one
        if len(drawn) == count:
            break
    return _set(path, drawn)


def cached_images(sources: Sequence[Path], size: int) -> np.ndarray:
    """Decode each source once and map it into memory afterwards (several trainers share the pages).

    Args:
        sources: as :func:`load_images` reads them.
        size: likewise.

    Returns:
        ``(N, size, size, 3)`` uint8, in the order of ``sources``.

    Raises:
        UserError: as for :func:`load_images`.
    """
    folder = home() / "decoded"
    folder.mkdir(exist_ok=True)
    images = []
    for path in sources:
        if not path.exists():
            raise UserError(f"no such data file: {printable(path)}")
        files = files_of(path, IMAGE_SUFFIXES) if path.is_dir() else [path]
        key = hashlib.sha256(f"{_DECODER}|{size}".encode())
        for file in files:
            stat = file.stat()
            key.update(os.fsencode(f"|{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"))
        place = folder / f"{key.hexdigest()[:24]}.npy"
        # several trainers may come here at once: one decodes
        with nullcontext() if place.is_file() else held(place.with_suffix(".lock")):
            if not place.is_file():
                found = load_images(path, size).images
                with writing(place) as partial, partial.open("wb") as file:
                    np.save(file, found)
        images.append(np.load(place, mmap_mode="r"))
    return np.concatenate(images)


_DECODER = 2
"""To be raised whenever :func:`decode_image` or :func:`fit` give other pixels for the same bytes."""


def read_classes(path: Path) -> list[list[str]]:
    """Synonyms of each class, in label order, from ``label ⟶ WordNet id ⟶ names`` (tab- and comma-separated).

    Raises:
        UserError: the file is missing or a line is not in that form.
    """
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [[name.strip() for name in row[2].split(",")] for row in sorted(rows, key=lambda row: int(row[0]))]
    except (OSError, IndexError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable class table ({type(error).__name__}): it needs label, id and names on each line"
        ) from error
