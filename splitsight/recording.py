"""Recordings: what a tap saw, in order, with the session's description, in a folder.

Layout::

    session.json          what the session said about itself: target, cut, features, defence, digests, codec
    part-00000.parquet …  one row a frame; complete files only, each renamed into place
    tail.bin              frames not yet in a part: length, checksum, serialized ``TappedFrame``, one after another

Every frame is handed to the operating system as it comes, so that a killed process loses none that it had
appended; Parquet alone cannot do that, its footer comes last. :meth:`RecordingWriter.close` leaves Parquet
only, and :meth:`Recording.open` reads either state.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError

from splitsight.errors import UserError
from splitsight.files import read_parquet, write_parquet, write_text
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, WireError, decode
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

__all__ = ["PART", "SESSION", "TAIL", "Recording", "RecordingWriter", "Session", "records"]

_SCHEMA_NAME = "splitsight.recording/2"
SESSION = "session.json"
TAIL = "tail.bin"
PART = re.compile(r"part-(\d{5,})\.parquet")
"""What the files of a recording are called."""
_RECORD = struct.Struct("<II")  # bytes of the message, CRC-32 of them
_MAX_FRAME_BYTES = 1 << 30
_SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("sequence", pa.uint64()),
        ("capture_time_us", pa.int64()),
        ("arrival_time_us", pa.int64()),
        ("dropped", pa.uint64()),
        ("frame", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Session:
    """What a session said about itself when it opened.

    Attributes:
        session_id: chosen by the edge.
        about: what the edge does to its images.
        codec: how it encodes the features.
    """

    session_id: str
    about: SessionDescription
    codec: CodecSpec = field(default_factory=CodecSpec)

    @classmethod
    def from_open(cls, message: split_inference_pb2.SessionOpen) -> Session:
        """From the message with which the edge opened its session (the tap forwards it).

        Raises:
            ValueError: it describes no session; one sentence.
        """
        try:
            codec = CodecSpec.read(message.codec)
        except WireError as error:
            raise ValueError(error.message) from error
        return cls(message.session_id, SessionDescription.read(message.session), codec)

    def to_json(self) -> str:
        """As :meth:`from_json` reads it."""
        codec = {"dtype": self.codec.dtype, "compression": self.codec.compression}
        data = {"schema": _SCHEMA_NAME, "session_id": self.session_id, **self.about.to_dict(), "codec": codec}
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Session:
        """Reads :meth:`to_json`.

        Raises:
            ValueError: not JSON, another schema, or a field is missing or of the wrong kind.
        """
        data: Any = json.loads(text)
        if not isinstance(data, dict) or data.get("schema") != _SCHEMA_NAME:
            raise ValueError(f"its schema is not {_SCHEMA_NAME}")
        if not isinstance(data.get("session_id"), str):
            raise ValueError("'session_id' is missing")
        try:
            codec = CodecSpec(**data["codec"])
        except (KeyError, TypeError) as error:
            raise ValueError("'codec' is missing or incomplete") from error
        except WireError as error:
            raise ValueError(error.message) from error
        return cls(data["session_id"], SessionDescription.from_dict(data), codec)


def _full(folder: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk of {folder} is full: free some space; what was recorded so far is readable", code=1)
    return UserError(f"{folder} cannot be written ({error.strerror}): give another folder", code=1)


def records(data: bytes) -> tuple[list[tap_pb2.TappedFrame], int]:
    """Intact records at the beginning of (what is left of) a tail, and how many bytes they take."""
    frames, at = [], 0
    while at + _RECORD.size <= len(data):
        length, check = _RECORD.unpack_from(data, at)
        body = data[at + _RECORD.size : at + _RECORD.size + length]
        if len(body) < length or zlib.crc32(body) != check:
            break
        try:
            frames.append(tap_pb2.TappedFrame.FromString(body))
        except DecodeError:
            break
        at += _RECORD.size + length
    return frames, at


def _records(path: Path) -> tuple[list[tap_pb2.TappedFrame], int, int]:
    """Intact records of a tail, how many bytes they take, and how many bytes the file has."""
    data = path.read_bytes()
    return *records(data), len(data)


class RecordingWriter:
    """Appends tapped frames to a recording; a context manager.

    A folder that holds a recording of the same session is continued, so that an adversary that lost its tap
    and came back goes on where it was.

    Args:
        folder: created if missing.
        session: description to store.
        frames_per_part: rows of one Parquet file, ≥ 1.

    Raises:
        UserError: the folder holds another session, or cannot be written.
    """

    def __init__(self, folder: Path, session: Session, *, frames_per_part: int = 64) -> None:
        self.folder = folder
        self.session = session
        self.frames = 0
        self._per_part = frames_per_part
        self._pending: list[tap_pb2.TappedFrame] = []
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._part = 1 + max((int(m[1]) for p in folder.iterdir() if (m := PART.fullmatch(p.name))), default=-1)
            self._describe()
            tail = folder / TAIL
            if tail.is_file():
                self._pending, intact, size = _records(tail)
                if intact < size:
                    os.truncate(tail, intact)  # appending after a torn record would lose all that follows
            self._tail = tail.open("ab", buffering=0)
        except OSError as error:
            raise _full(folder, error) from error

    def _describe(self) -> None:
        file = self.folder / SESSION
        if file.exists():
            try:
                old = Session.from_json(file.read_text())
            except ValueError:
                old = None
            if old != self.session:
                raise UserError(f"{self.folder} already holds another recording: give another folder, or remove it")
            return
        if self._part > 0:
            raise UserError(f"{self.folder} holds parts of a recording without {SESSION}: give another folder")
        write_text(file, self.session.to_json())

    def append(self, tapped: tap_pb2.TappedFrame) -> None:
        """Stores one frame; when this returns, a kill of this process does not lose it.

        Raises:
            UserError: the disk is full or gone; everything appended before stays readable.
        """
        body = tapped.SerializeToString()
        try:
            at = self._tail.seek(0, os.SEEK_END)
            record = _RECORD.pack(len(body), zlib.crc32(body)) + body
            if self._tail.write(record) != len(record):  # unbuffered: a disk that fills up takes a part of it
                self._tail.truncate(at)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._pending.append(tapped)
            self.frames += 1
            if len(self._pending) >= self._per_part:
                self._flush()
        except OSError as error:
            raise _full(self.folder, error) from error

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = []
        for t in self._pending:
            try:
                frame = split_inference_pb2.Frame.FromString(t.frame)
                sequence, capture = frame.sequence, frame.capture_time_us
            except DecodeError:  # keep what the tap saw even so
                sequence, capture = 0, 0
            rows.append((t.session_id, sequence, capture, t.arrival_time_us, t.dropped, t.frame))
        table = pa.Table.from_pydict(dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=_SCHEMA)
        final = self.folder / f"part-{self._part:05d}.parquet"
        # The part is on disk before the tail is emptied; a kill in between leaves frames twice, never none.
        write_parquet(final, table, sync=True)
        self._part += 1
        self._pending.clear()
        self._tail.truncate(0)

    def close(self) -> None:
        """Moves what is left into a part; may be called twice.

        Raises:
            UserError: the disk is full; everything stays readable.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
            self._tail.close()
            (self.folder / TAIL).unlink(missing_ok=True)
        except OSError as error:
            raise _full(self.folder, error) from error
        finally:
            self._tail.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Row(NamedTuple):
    sequence: int
    capture_time_us: int
    arrival_time_us: int
    dropped: int
    part: int  # −1: the tail
    row: int


@dataclass
class Recording:
    """A recording opened for reading; see :meth:`open`.

    Attributes:
        folder: where it lies.
        session: how the session described itself.
        skipped: one sentence for each thing that could not be read; grows while frames are decoded.
        dropped: frames that the tap dropped because the recorder read too slowly.
    """

    folder: Path
    session: Session
    skipped: list[str] = field(default_factory=list)
    dropped: int = 0
    _parts: list[Path] = field(default_factory=list, repr=False)
    _tail: list[tap_pb2.TappedFrame] = field(default_factory=list, repr=False)
    _rows: list[_Row] = field(default_factory=list, repr=False)

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Opens a recording, complete or cut off, and notes in :attr:`skipped` what is damaged.

        Raises:
            UserError: there is no recording, or nothing in it can be read.
        """
        if not folder.is_dir():
            raise UserError(f"no such recording: {folder} is not a folder")
        try:
            session = Session.from_json((folder / SESSION).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} holds no recording: it has no {SESSION}") from None
        except OSError as error:
            raise UserError(f"{folder / SESSION} cannot be read ({error.strerror}): check its permissions") from error
        except ValueError as error:
            raise UserError(f"{folder / SESSION} does not describe a recording ({error}): record again") from error
        recording = cls(folder, session)
        recording._index()
        if not recording._rows:
            because = f" ({recording.skipped[0]})" if recording.skipped else ""
            raise UserError(f"{folder} holds no readable frames{because}: record again")
        return recording

    def _index(self) -> None:
        columns = [n for n in _SCHEMA.names if n != "frame"]
        rows: list[_Row] = []
        self._parts = sorted(
            (p for p in self.folder.iterdir() if PART.fullmatch(p.name)), key=lambda p: int(p.stem.split("-")[1])
        )
        for number, part in enumerate(self._parts):
            try:
                with part.open("rb") as file:  # pyarrow takes names in UTF-8 only
                    table = read_parquet(file, columns)
                for i, r in enumerate(table.cast(pa.schema([_SCHEMA.field(n) for n in columns])).to_pylist()):
                    if r["session_id"] == self.session.session_id:
                        row = (r["sequence"], r["capture_time_us"], r["arrival_time_us"], r["dropped"])
                        rows.append(_Row(*row, number, i))
            except (pa.ArrowException, ValueError, KeyError, OSError) as error:
                self.skipped.append(f"{part.name} is damaged ({type(error).__name__})")
        tail = self.folder / TAIL
        if tail.is_file():
            self._tail, intact, size = _records(tail)
            if intact < size:
                self.skipped.append(f"{TAIL} ends with {size - intact} bytes of an incomplete frame")
            for i, t in enumerate(self._tail):
                if t.session_id != self.session.session_id:
                    continue
                try:
                    frame = split_inference_pb2.Frame.FromString(t.frame)
                except DecodeError:
                    self.skipped.append(f"frame {i} of {TAIL} is damaged")
                    continue
                rows.append(_Row(frame.sequence, frame.capture_time_us, t.arrival_time_us, t.dropped, -1, i))
        self.dropped = max((r.dropped for r in rows), default=0)
        # A frame that the edge sent again after an outage was seen twice; the first one counts.
        seen: dict[int, _Row] = {}
        for r in rows:
            seen.setdefault(r.sequence, r)
        self._rows = [seen[s] for s in sorted(seen)]

    def __len__(self) -> int:
        """Distinct frames that were recorded, before decoding them."""
        return len(self._rows)

    @property
    def sequences(self) -> list[int]:
        """Sequence numbers that were recorded, ascending."""
        return [r.sequence for r in self._rows]

    def messages(self) -> Iterator[split_inference_pb2.Frame]:
        """Frames as they were sent, ascending by sequence number, each once; damaged ones are skipped."""
        part, column = -1, None
        for r in self._rows:
            if r.part < 0:
                data = self._tail[r.row].frame
            else:
                if r.part != part:
                    part, column = r.part, None
                    try:
                        with self._parts[part].open("rb") as file:
                            column = read_parquet(file, ["frame"]).column(0)
                    except (pa.ArrowException, ValueError, OSError) as error:
                        self.skipped.append(f"{self._parts[part].name} is damaged ({type(error).__name__})")
                if column is None:
                    continue
                data = column[r.row].as_py()
            try:
                yield split_inference_pb2.Frame.FromString(data)
            except DecodeError:
                self.skipped.append(f"frame {r.sequence} is damaged")

    def frames(self) -> Iterator[tuple[int, int, list[np.ndarray]]]:
        """Yields ``(sequence, capture_time_us, features)``, ascending by sequence number, each once.

        ``features`` holds one float32 array for each of ``session.about.features``, without batch dimension; frames
        that do not decode to that are skipped and noted in :attr:`skipped`.
        """
        for message in self.messages():
            try:
                if len(message.features) != len(self.session.about.features):
                    raise ValueError(f"{len(message.features)} tensors instead of {len(self.session.about.features)}")
                features = [
                    decode(tensor, spec, max_bytes=_MAX_FRAME_BYTES)
                    for tensor, spec in zip(message.features, self.session.about.features, strict=True)
                ]
            except (WireError, ValueError) as error:
                self.skipped.append(f"frame {message.sequence} is damaged: {error}")
                continue
            yield message.sequence, message.capture_time_us, features
