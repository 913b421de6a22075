"""Names of files: the order in which a folder is read, and names of outputs that every file system takes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["file_stem", "files_of", "natural_key", "printable", "safe_names"]

_DIGITS = re.compile(r"([0-9]+)")
_APPLE_DOUBLE = "._"
"""How macOS begins the names of files that hold another file's metadata; such a ``._a.png`` is no picture."""

_LONGEST = 255 - len("..png.partial")
"""Bytes of a name: with a suffix, and as the hidden file that is renamed once it is complete, it must fit in 255."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
"""What Windows takes for devices, whatever follows after a dot."""
_SEPARATORS = {"/", "\\"}
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control, surrogate (how Python holds a byte that is not UTF-8), line and paragraph ends."""


def natural_key(name: str | Path) -> tuple[tuple[list[str | int], str], ...]:
    """Sort key by which ``2.png`` comes before ``10.png``: runs of digits count as numbers, a path folder by folder."""
    parts = name.parts if isinstance(name, Path) else (name,)
    return tuple(
        ([int(piece) if i % 2 else piece for i, piece in enumerate(_DIGITS.split(part))], part) for part in parts
    )


def files_of(folder: Path, suffixes: Collection[str], *, deep: bool = False) -> list[Path]:
    """A folder's files with one of the suffixes, in natural order.

    Args:
        folder: where to look.
        suffixes: lower case, with the dot; letters of either case are found.
        deep: also in the folders under it.

    Returns:
        Files only, without those that macOS keeps metadata in (AppleDouble, ``._*``).

    Raises:
        OSError: the folder cannot be read.
    """
    found = folder.rglob("*") if deep else folder.iterdir()
    files = (p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(_APPLE_DOUBLE) and p.is_file())
    return sorted(files, key=natural_key)


def printable(name: str | Path) -> str:
    """A name to be shown on one line and stored as text: bytes that are not UTF-8, and controls, as ``\\xe9``."""
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if unicodedata.category(c) not in _UNSAFE else ascii(c)[1:-1] for c in text)


def safe_names(names: Iterable[str]) -> list[str]:
    """Names for output files, without a suffix: each usable on every POSIX file system, no two alike.

    Separators, control characters, line ends, and bytes that are not UTF-8 become ``_``, as does a dot in front
    (the file would be hidden); what Windows reserves gets a ``_``; a name longer than 242 bytes is cut and ends in
    a hash of the whole; a second one of the same name, letters of either case, gets ``-2``. A harmless name stays as
    it is.

    Args:
        names: stems of inputs, or whatever a data set calls its images.
    """
    taken: set[str] = set()
    safe: list[str] = []
    for name in names:
        first = one = _cut(_clean(name), name)
        number = 2
        while (key := one.casefold()) in taken:  # macOS and Windows take A.png and a.png for one file
            one = _cut(f"{first}-{number}", f"{name}-{number}")
            number += 1
        taken.add(key)
        safe.append(one)
    return safe


def _clean(name: str) -> str:
    clean = "".join("_" if c in _SEPARATORS or unicodedata.category(c) in _UNSAFE else c for c in name)
    if clean.startswith("."):
        clean = "_" + clean[1:]
    if clean.endswith((".", " ")):  # Windows drops them
        clean = clean[:-1] + "_"
    if clean.partition(".")[0].casefold() in _RESERVED:
        clean += "_"
    return clean or "_"


def _cut(clean: str, whole: str) -> str:
    data = clean.encode()
    if len(data) <= _LONGEST:
        return clean
    mark = "-" + hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return data[: _LONGEST - len(mark)].decode("utf-8", "ignore") + mark


def file_stem(*words: str) -> str:
    """A file name, without a suffix, of words joined by ``-``: letters, digits, ``_`` and ``.`` as they are.

    A word that holds anything else ends in a hash of the whole, so that no two words become one:
    ``gaussian:sigma=0.5`` is ``gaussian-sigma-0.5-2b1d0e``.
    """
    return "-".join(map(_stem, words))


def _stem(word: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", word)[:60].strip(".-")
    return plain if plain == word else f"{plain}-{hashlib.sha256(word.encode()).hexdigest()[:6]}".lstrip("-")
