"""Files that appear complete or not at all: written beside their place under a hidden name, then renamed.

A process that is killed leaves at most a hidden file, never half a file under the name that others read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, BinaryIO

from splitsight.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "cannot_write",
    "held",
    "read_parquet",
    "write_bytes",
    "write_json",
    "write_parquet",
    "write_text",
    "writing",
]


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a file that could not be written; exit status 1 where the disk is full, else 2."""
    # pyarrow and safetensors say so in words only
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return UserError(f"cannot write {path}: the disk is full (No space left on device): free some space", code=1)
    return UserError(f"cannot write {path} ({error.strerror or error}): give another place")


@contextmanager
def writing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place when the block ends well.

    Args:
        path: the file; its folder is created. A file that is there is replaced.
        sync: wait until the disk has the content before it gets its name.

    Yields:
        Where the block writes. Nothing needs to be there at the end of the block that is left by an exception.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    # with another ending, so that no search for files of a kind finds it; short, however long the file's own name is
    partial = path.with_name(f".{token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file within the block; the kernel releases it however its owner ends.

    Args:
        path: of the file, which is made.
        wait: until it is free.

    Yields:
        Whether it is held; always where ``wait``.

    Raises:
        UserError: the file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
            # for a person who wonders who is at it
            os.truncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise UserError(f"the file system of {path.parent} has no locks: give another folder") from error
            raise
        yield mine
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write ``data``; see :func:`writing` for arguments and errors."""
    with writing(path, sync=sync) as partial, partial.open("wb") as file:
        file.write(data)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write ``text`` in UTF-8; see :func:`writing` for arguments and errors."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def read_parquet(source: Path | BinaryIO, columns: Sequence[str]) -> pa.Table:
    """These columns of one file; folders named ``key=value`` on its path add none.

    Args:
        source: the file, or its path; Arrow takes paths in UTF-8 only.
        columns: names.

    Raises:
        pyarrow.ArrowException: no Parquet file, or a column is missing.
        OSError: it cannot be read.
    """
    import pyarrow.parquet as pq

    # pyarrow has no annotations: the type is inferred from the default, "hive"
    return pq.read_table(source, columns=list(columns), partitioning=None)  # pyright: ignore[reportArgumentType]


def write_parquet(path: Path, table: pa.Table, *, sync: bool = False) -> None:
    """Write a table; see :func:`writing` for arguments and errors."""
    import pyarrow.parquet as pq

    # opened here, since Arrow takes no path that is not UTF-8
    with writing(path, sync=sync) as partial, partial.open("wb") as file:
        pq.write_table(table, file, compression="zstd")


def write_json(path: Path, data: Any, *, sync: bool = False) -> None:
    """Write JSON for people and programs, tuples and sets as lists; see :func:`writing` for arguments and errors."""
    text = json.dumps(data, indent=2, default=list, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the name of a file need not be UTF-8: its bytes are kept, escaped
        text = json.dumps(data, indent=2, default=list)
    write_text(path, text + "\n", sync=sync)
