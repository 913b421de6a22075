"""Asking an oracle, and keeping what it answered.

A store is a folder::

    oracle.json           what answered: target, split, digests, feature schema, defence with its parameters
    part-00000.parquet …  one row a pair; complete files only, each renamed into place

Rows hold the picture (``image``, Hugging Face image format), the SHA-256 of its pixels, its caption, the features as
they came, and whether the pair is for training or for measuring. Pictures of a window of frames carry the window's
number (``clip``) and their place in it (``frame``). Whatever stops a collection, what was answered before is kept,
and the next one goes on from there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError

from splitsight.data import decode_image, encode_png, fit, image_hash
from splitsight.errors import UserError
from splitsight.files import read_parquet
from splitsight.wire.channels import parse_address
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import WireError, decode
from splitsight.wire.v1 import oracle_pb2 as pb
from splitsight.wire.v1 import oracle_pb2_grpc as rpc
from splitsight.wire.v1 import tensor_pb2

__all__ = ["Collected", "OracleClient", "Pairs", "Picture", "QueryStore", "collect", "victim_of"]

Role = Literal["train", "test"]
Answer = list[tensor_pb2.Tensor]
"""What the oracle answers for one picture: one encoded tensor for each that crosses the split."""

_PART = re.compile(r"part-(\d{5,})\.parquet")
_SCHEMA_NAME = "splitsight.queries/2"
_VICTIM = "oracle.json"
_MAX_BYTES = 1 << 28
_TIMEOUT_S = 60.0
_NAME = re.compile(r"\w[\w .,:=()+-]{0,299}")
# a trained one may be named by the path of its weights; file names hold a hash of it (splitsight.names.file_stem)
_DEFENSE = re.compile(r"\w[\w .,:=()+~/-]{0,299}")
_MOST_PIXELS = 4096
_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),
        ("role", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("caption", pa.string()),
        ("clip", pa.int64()),
        ("frame", pa.int32()),
        ("features", pa.list_(pa.binary())),
    ]
)


def victim_of(session: SessionDescription) -> SessionDescription:
    """What an attacker is told about the network that it attacks: names, digests and shapes of what comes before the
    features; neither weights nor structure, and nothing of F2, which changes no answer.
    """
    return replace(session, tail_digest="", task="")


class Picture(NamedTuple):
    """One picture to ask about.

    Attributes:
        image: ``(S, S, 3)`` uint8.
        caption: what the attacker knows it to show; empty for nothing.
        clip: number of the window of frames it belongs to; −1 for a still image.
        frame: its place there.
    """

    image: np.ndarray
    caption: str = ""
    clip: int = -1
    frame: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells two pictures apart."""
        return image_hash(self.image), self.clip, self.frame


class OracleClient(AbstractContextManager["OracleClient"]):
    """A connection to an oracle that keeps to its rate and survives its restart.

    Args:
        address: ``HOST:PORT``.
        credentials: what it asks for; none by default.
        patience: seconds to go on trying to reach it, at the start and after it was lost.

    Attributes:
        victim: what answers, once connected.
        left: pictures left of its budget, as it said last.
        max_batch: pictures of one query.

    Raises:
        UserError: no such address or certificate.
    """

    def __init__(self, address: str, *, credentials: ClientCredentials = ANONYMOUS, patience: float = 10.0) -> None:
        where = parse_address(address, "--oracle 127.0.0.1:50053")
        self.address, self.patience = address, patience
        self._metadata = credentials.metadata
        self._channel = credentials.channel(where, receive_bytes=1 << 30)
        self._stub = rpc.OracleStub(self._channel)
        self.left = self.max_batch = 0

    def __enter__(self) -> OracleClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()

    def connect(self) -> SessionDescription:
        """Ask what answers there.

        Raises:
            UserError: nothing does within ``patience``, or it refuses.
        """
        described: pb.DescribeOracleResponse = self._call(self._stub.Describe, pb.DescribeOracleRequest())
        try:
            session = SessionDescription.read(described.session)
            wrong = _impossible(session)
        except ValueError as error:
            wrong = f"features that cannot be ({error})"
        if wrong is not None:
            raise UserError(f"the oracle {self.address} announces {wrong}: ask another", code=1)
        self.left, self.max_batch = described.left, max(1, described.max_batch)
        self._instance = described.instance
        self.victim = victim_of(session)
        return self.victim

    def query(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """Features of some pictures, at most :attr:`max_batch`, each ``(h, w, 3)`` uint8.

        Raises:
            UserError: the oracle refuses, is gone, became another one, or answers with another shape.
        """
        pictures = [pb.Picture(height=i.shape[0], width=i.shape[1], rgb=i.tobytes()) for i in images]
        response: pb.QueryResponse = self._call(self._stub.Query, pb.QueryRequest(pictures=pictures))
        if response.instance != self._instance:
            known = self.victim
            if (what := self.connect().difference(known)) is not None:
                raise UserError(f"the oracle {self.address} came back with {what}: start the one from before", code=1)
        self.left = response.left
        if len(response.answers) != len(images):
            raise self._strange(f"{len(response.answers)} answers came for {len(images)} pictures")
        answers = [list(answer.features) for answer in response.answers]
        for answer in answers:
            self._check(answer)
        return answers

    def _check(self, answer: Answer) -> None:
        if len(answer) != len(self.victim.features):
            raise self._strange(f"{len(answer)} tensors came where {len(self.victim.features)} were announced")
        for tensor, spec in zip(answer, self.victim.features, strict=True):
            try:
                decode(tensor, spec, max_bytes=_MAX_BYTES)
            except WireError as error:
                raise self._strange(error.message) from error

    def _strange(self, what: str) -> UserError:
        return UserError(f"the oracle {self.address} no longer answers as it announced: {what}", code=1)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        lost_since: float | None = None
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                if (wait := _retry_after(error)) is not None:
                    time.sleep(wait)
                    continue
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    what = f"the oracle {self.address} did not answer within {_TIMEOUT_S:g} s"
                    raise UserError(what, code=1) from error
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    details = " ".join((error.details() or error.code().name).split()).rstrip(".")
                    raise UserError(f"the oracle {self.address} refuses: {details}", code=1) from error
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > self.patience:
                    raise self._gone() from error
                time.sleep(min(0.2, self.patience / 4))

    def _gone(self) -> UserError:
        if hasattr(self, "victim"):
            what = f"the oracle {self.address} was lost and did not come back within {self.patience:g} s"
        else:
            what = (
                f"nothing answers at the oracle {self.address}: start it with `splitsight oracle`, or check the address"
            )
        return UserError(what, code=1)


def _impossible(session: SessionDescription) -> str | None:
    """What of an announcement cannot be; names become parts of file names, and sizes memory."""
    for what, form in (("target", _NAME), ("split", _NAME), ("defense", _DEFENSE)):
        if not form.fullmatch(name := getattr(session, what)):
            return f"{name[:40]!r} as the name of its {what}"
    if not re.fullmatch(r"[0-9a-f]{64}", session.head_digest):
        return "weights of F1 without a SHA-256"
    if not re.fullmatch(r"([0-9a-f]{64})?", session.defense_digest):
        return "weights of its defence without a SHA-256"
    if not 1 <= session.input_size <= _MOST_PIXELS:
        return f"images of {session.input_size} pixels"
    if not session.features:
        return "no features"
    for spec in session.features:
        if not spec.shape or min(spec.shape) < 1 or spec.bytes > _MAX_BYTES:
            return f"features of shape {spec.show}"
    return None


def _retry_after(error: grpc.RpcError) -> float | None:
    """Seconds after which a refusal for its rate should be asked again; ``None`` for any other refusal."""
    trailing = {str(entry.key): str(entry.value) for entry in error.trailing_metadata() or ()}
    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or trailing.get("splitsight-reason") != "rate":
        return None
    return max(0.001, int(trailing.get("splitsight-retry-ms", "100")) / 1000)


@dataclass(frozen=True)
class Pairs:
    """Pictures and their features, ready to train on; windows of frames lie side by side.

    Attributes:
        images: ``(N, S, S, 3)`` uint8.
        features: for each tensor that crosses the split ``(N, …)`` float32.
        captions: one a picture; empty where nothing is known.
        hashes: SHA-256 of each picture's pixels.
    """

    images: np.ndarray
    features: list[np.ndarray]
    captions: list[str]
    hashes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> Pairs:
        return Pairs(self.images[rows], [z[rows] for z in self.features], self.captions[rows], self.hashes[rows])

    def sized(self, size: int) -> Pairs:
        """The same with pictures of another size, and their hashes: those that a network is to answer with."""
        if self.images.shape[1:3] == (size, size):
            return self
        images = np.stack([fit(image, size) for image in self.images])
        return replace(self, images=images, hashes=[image_hash(image) for image in images])


def _read(text: str) -> SessionDescription:
    """What a store's file says.

    Raises:
        ValueError: not JSON, another schema, or a field is missing or of the wrong kind.
    """
    data: Any = json.loads(text)
    if not isinstance(data, dict) or data.pop("schema", None) != _SCHEMA_NAME:
        raise ValueError(f"its schema is not {_SCHEMA_NAME}")
    return SessionDescription.from_dict(data)


@dataclass
class QueryStore:
    """The pairs of one oracle in a folder; see the module.

    Attributes:
        folder: where they lie.
        victim: what answered.
        skipped: one sentence for each part that could not be read.
    """

    folder: Path
    victim: SessionDescription
    skipped: list[str] = field(default_factory=list)
    _keys: dict[tuple[str, int, int], Role] = field(default_factory=dict, repr=False)
    _parts: list[Path] = field(default_factory=list, repr=False)

    @classmethod
    def open(cls, folder: Path, victim: SessionDescription | None = None) -> QueryStore:
        """Open a store, or begin one.

        Args:
            folder: created where there is none yet and ``victim`` is given.
            victim: what is asked now; ``None`` to take what is there.

        Raises:
            UserError: nothing is there, it is damaged, or it holds pairs of another network.
        """
        file = folder / _VICTIM
        try:
            found = _read(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if victim is None:
                raise UserError(f"{folder} holds no query pairs: collect some with --oracle HOST:PORT") from None
            if folder.is_dir() and any(_PART.fullmatch(p.name) for p in folder.iterdir()):
                raise UserError(f"{folder} holds query pairs without {_VICTIM}: give another folder") from None
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            about = {"schema": _SCHEMA_NAME, **victim.to_dict()}
            partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            partial.replace(file)
            found = victim
        except ValueError as error:
            raise UserError(f"{file} does not describe an oracle ({error}): give another folder") from error
        if victim is not None and (what := found.difference(victim)) is not None:
            raise UserError(f"{folder} holds query pairs of another network ({what}): give another --pairs")
        store = cls(folder, found)
        store._index()
        return store

    def _index(self) -> None:
        found = sorted((int(m[1]), p) for p in self.folder.iterdir() if (m := _PART.fullmatch(p.name)))
        for _, part in found:
            try:
                rows = read_parquet(part, ["sha256", "role", "clip", "frame"]).to_pylist()
                keys = {(r["sha256"], r["clip"], r["frame"]): r["role"] for r in rows}
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                self.skipped.append(f"{part.name} is damaged ({type(error).__name__})")
                continue
            self._parts.append(part)
            self._keys |= keys

    def __contains__(self, picture: Picture) -> bool:
        return picture.key in self._keys

    def count(self, role: Role, frames: int = 1) -> int:
        """Pairs of a role: still pictures, or for more than one frame those in whole windows of so many."""
        clips: dict[int, set[int]] = {}
        for (_, clip, frame), r in self._keys.items():
            if r == role:
                clips.setdefault(clip, set()).add(frame)
        if frames == 1:
            return sum(r == role and clip < 0 for (_, clip, _), r in self._keys.items())
        return frames * sum(clip >= 0 and found >= set(range(frames)) for clip, found in clips.items())

    def hashes(self, role: Role) -> set[str]:
        """SHA-256 of the pictures of a role."""
        return {key[0] for key, r in self._keys.items() if r == role}

    def add(self, role: Role, pictures: Sequence[Picture], answers: Sequence[Answer]) -> None:
        """File answered pictures as one more part.

        Raises:
            OSError: the disk is full; what was there before stays.
        """
        rows = [
            {
                "sha256": picture.key[0],
                "role": role,
                "image": {"bytes": encode_png(picture.image), "path": None},
                "caption": picture.caption,
                "clip": picture.clip,
                "frame": picture.frame,
                "features": [tensor.SerializeToString() for tensor in answer],
            }
            for picture, answer in zip(pictures, answers, strict=True)
        ]
        number = 1 + max((int(m[1]) for p in self.folder.iterdir() if (m := _PART.fullmatch(p.name))), default=-1)
        final = self.folder / f"part-{number:05d}.parquet"
        partial = final.with_suffix(".partial")
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), partial, compression="zstd")
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
        self._parts.append(final)
        self._keys |= {picture.key: role for picture in pictures}

    def _rows(self, role: Role, frames: int) -> Iterator[tuple[Path, int, tuple[str, int, int]]]:
        """Place and key of what can be used, in the order of collection; windows whole and in order."""
        windows: dict[int, dict[int, tuple[Path, int, tuple[str, int, int]]]] = {}
        seen: set[tuple[str, int, int]] = set()
        for part in self._parts:
            table = read_parquet(part, ["sha256", "role", "clip", "frame"])
            for i, r in enumerate(table.to_pylist()):
                key = (r["sha256"], r["clip"], r["frame"])
                if r["role"] != role or key in seen:
                    continue
                seen.add(key)
                if frames == 1 and r["clip"] < 0:
                    yield part, i, key
                elif frames > 1 and r["clip"] >= 0:
                    window = windows.setdefault(r["clip"], {})
                    window[r["frame"]] = (part, i, key)
                    if sorted(window) == list(range(frames)):
                        yield from (window[f] for f in range(frames))

    def pairs(self, role: Role, count: int | None = None, *, frames: int = 1) -> Pairs:
        """The first pairs of a role, in the order in which they were collected.

        Args:
            role: ``train`` or ``test``.
            count: pictures; ``None`` for all.
            frames: K; for more than one only whole windows of K frames, side by side.

        Raises:
            UserError: there are fewer, or a pair is damaged.
        """
        found = list(self._rows(role, frames))
        if count is not None and len(found) < count:
            what = f"pairs in whole windows of {frames} frames" if frames > 1 else "pairs"
            because = f" ({'; '.join(self.skipped)})" if self.skipped else ""
            raise UserError(
                f"{self.folder} holds {len(found)} {what} for {role}ing, fewer than {count}{because}: "
                "collect more, or ask for fewer"
            )
        images, captions, hashes = [], [], []
        features: list[list[np.ndarray]] = [[] for _ in self.victim.features]
        opened: Path | None = None
        for part, row, key in found[:count]:
            if part != opened:
                opened, table = part, read_parquet(part, ["image", "caption", "features"])
            cell = table.slice(row, 1).to_pylist()[0]
            try:
                image = decode_image(cell["image"]["bytes"], f"a picture of {part}")
                tensors = [tensor_pb2.Tensor.FromString(data) for data in cell["features"]]
                arrays = [
                    decode(tensor, spec, max_bytes=_MAX_BYTES)
                    for tensor, spec in zip(tensors, self.victim.features, strict=True)
                ]
            except (UserError, DecodeError, WireError, ValueError) as error:
                raise UserError(f"{part} holds a damaged pair ({error}): remove that file and collect again") from error
            if image_hash(image) != key[0]:
                raise UserError(f"{part} holds a picture that is not the one asked about: remove that file")
            images.append(image)
            captions.append(cell["caption"])
            hashes.append(key[0])
            for column, array in zip(features, arrays, strict=True):
                column.append(array)
        if not images:
            raise UserError(f"{self.folder} holds no pairs for {role}ing: collect some with --oracle HOST:PORT")
        return Pairs(np.stack(images), [np.stack(column) for column in features], captions, hashes)


@dataclass(frozen=True)
class Collected:
    """How a collection ended.

    Attributes:
        asked: pictures that were answered this time.
        stopped: the sentence that ended it early; ``None`` where nothing did.
    """

    asked: int
    stopped: str | None


def collect(
    client: OracleClient,
    store: QueryStore,
    role: Role,
    groups: Iterable[Sequence[Picture]],
    count: int,
    *,
    frames: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Collected:
    """Ask about pictures until a role has so many pairs.

    Pictures that were answered before are not asked about again, nor groups with pixels that the other role has.

    Args:
        client: connected.
        store: receives each batch as it is answered.
        role: what for.
        groups: windows of ``frames`` pictures, or single ones, in the order in which they are asked about.
        count: pairs that the role should have in the end.
        frames: K.
        progress: called with (pairs, pairs wanted, what is going on).
    """
    other = store.hashes("test" if role == "train" else "train")
    asked, have = 0, store.count(role, frames)
    batch: list[Picture] = []
    queued: set[tuple[str, int, int]] = set()

    def ask() -> None:
        nonlocal asked
        while batch:
            some = batch[: min(client.max_batch, max(1, client.left))]
            store.add(role, some, client.query([p.image for p in some]))
            del batch[: len(some)]
            asked += len(some)
            if progress is not None:
                progress(store.count(role, frames), count, f"asking, {client.left} queries left")

    try:
        for group in groups:
            if have >= count:
                break
            new = [p for p in group if p not in store and p.key not in queued]
            if not new or any(p.key[0] in other for p in group):
                continue
            queued |= {p.key for p in new}
            batch += new
            have += len(group)
            if len(batch) >= client.max_batch:
                ask()
        ask()
    except UserError as error:
        return Collected(asked, str(error))
    if have < count:
        return Collected(asked, f"there are no more than {have} different pictures to ask about")
    return Collected(asked, None)
