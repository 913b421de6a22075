"""Malformed messages: valid ones of each service, changed in structure and in bytes.

Two sources. :class:`Mutator` draws from one seeded generator and makes some ten thousand a second, for the million.
The hypothesis strategies below it build messages from nothing and shrink what they find.
"""

import random

import numpy as np
from hypothesis import strategies as st

from splitsight.features import FeatureSpec
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import COMPRESSIONS, DTYPES, CodecSpec, encode
from splitsight.wire.v1 import operator_pb2, oracle_pb2, tap_pb2, tensor_pb2
from splitsight.wire.v1 import split_inference_pb2 as pb

SPECS = (FeatureSpec("map", (4, 3, 3)), FeatureSpec("tokens", (5, 6)), FeatureSpec("vector", (7,)))
ABOUT = SessionDescription("net", "S1", SPECS, head_digest="a" * 64, tail_digest="b" * 64, input_size=16)
CODECS = [CodecSpec(dtype, compression) for dtype in DTYPES for compression in COMPRESSIONS]
MAX_BATCH, MAX_SIDE = 3, 8

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "net", "identity", "L8", "map", "\x00", "\n\r", "\u2028", "𐍈" * 300, "é" * 70_000, "%s%n", "../../x",
          "clip:norm=1e-320+gaussian:sigma=1e300", "clip:norm=1,order=1+laplace:epsilon=8", "permutation:key=/dev/zero",
          "+" * 200, "a:" * 300)  # fmt: skip
# fields that no message here has: a number, eight bytes, a text, a group, a group within one
_UNKNOWN = (
    b"\xa0\x1f\x07",
    b"\xa1\x1f" + bytes(8),
    b"\xa2\x1f\x03abc",
    b"\xa3\x1f\xa4\x1f",
    b"\xa3\x1f\xab\x1f\xac\x1f\xa4\x1f",
)


def tensors(codec: CodecSpec, seed: int = 0) -> list[tensor_pb2.Tensor]:
    """What a frame holds, valid."""
    rng = np.random.default_rng(seed)
    return [encode(np.maximum(rng.normal(size=s.shape), 0), codec, s) for s in SPECS]


_TENSORS = {codec: tensors(codec) for codec in CODECS}


def opening_of(session, name: str, codec: CodecSpec) -> bytes:
    """How a session of that description opens; a server that takes any defence names none."""
    opening = pb.SessionOpen(session_id=name, session=session, codec=codec.proto(), resume_after=-1)
    opening.session.defense = opening.session.defense or "identity"
    return pb.InferRequest(open=opening).SerializeToString()


class Mutator:
    """Messages out of one seeded generator; the same seed gives the same messages.

    Args:
        seed: of all draws.
    """

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def opening(self, codec: CodecSpec, changes: int = 0) -> bytes:
        """How a session opens, changed so many times in structure."""
        about = ABOUT.proto()
        opening = pb.SessionOpen(
            session_id=f"{self.r.getrandbits(64):x}", session=about, codec=codec.proto(), resume_after=-1
        )
        for _ in range(changes):
            which = self.r.randrange(6)
            if which == 0:
                opening.resume_after = self._signed()
            elif which == 1:
                opening.session_id = self._text()
            elif which == 2:
                opening.codec.dtype, opening.codec.compression = self._enum(), self._enum()
            elif which == 3:
                name = self.r.choice(("target", "split", "defense", "head_digest", "tail_digest", "task"))
                setattr(opening.session, name, self._text())
            elif which == 4:
                self._respecify(opening.session.features)
            else:
                opening.session.input_size = self.r.choice(_NUMBERS) % 2**32
        return pb.InferRequest(open=opening).SerializeToString()

    def frame(self, codec: CodecSpec, sequence: int, changes: int = 0) -> bytes:
        """A frame, changed so many times in structure."""
        frame = pb.Frame(sequence=sequence, capture_time_us=self.r.choice(_NUMBERS) % 2**63, features=_TENSORS[codec])
        for _ in range(changes):
            which = self.r.randrange(4)
            if which == 0:
                frame.sequence = self.r.choice((sequence + 1, max(0, sequence - 1), *_NUMBERS))
            elif which == 1 and frame.features:
                del frame.features[self.r.randrange(len(frame.features))]
            elif which == 2:
                frame.features.add().CopyFrom(self.r.choice(_TENSORS[self.r.choice(CODECS)]))
            elif frame.features:
                self._damage(self.r.choice(frame.features))
        return pb.InferRequest(frame=frame).SerializeToString()

    def query(self, changes: int = 0) -> bytes:
        """A question to the oracle."""
        request = oracle_pb2.QueryRequest()
        for _ in range(self.r.randint(1, MAX_BATCH)):
            h, w = self.r.randint(1, MAX_SIDE), self.r.randint(1, MAX_SIDE)
            request.pictures.add(height=h, width=w, rgb=self.r.randbytes(3 * h * w))
        for _ in range(changes):
            which = self.r.randrange(4)
            if which == 0:
                request.pictures.add()
            elif which == 1 and request.pictures:
                del request.pictures[self.r.randrange(len(request.pictures)) :]
            elif request.pictures:
                picture = self.r.choice(request.pictures)
                if which == 2:
                    picture.height, picture.width = (self.r.choice(_NUMBERS) % 2**32 for _ in range(2))
                else:
                    picture.rgb = self.r.randbytes(self.r.randrange(300))
        return request.SerializeToString()

    def subscription(self, changes: int = 0) -> bytes:
        """A request for the tap."""
        text = self._text() if changes else ""
        return tap_pb2.SubscribeRequest(session_id=text, ring=self.r.choice(_NUMBERS) % 2**32).SerializeToString()

    def change(self, changes: int = 0) -> bytes:
        """What an operator asks of an edge."""
        request = operator_pb2.ChangeRequest()
        for _ in range(changes):
            which = self.r.randrange(5)
            if which == 0:
                request.source = self.r.choice(
                    (self._text(), "~nobody", "/", "/dev/null", "file:///x", "a\nb", "x" * 300)
                )
            elif which == 1:
                request.speed = self.r.choice((*_FLOATS, 2.0, 1e300))
            elif which == 2:
                request.step = self.r.choice(_NUMBERS) % 2**32
            elif which == 3:
                request.paused = self.r.random() < 0.5
            else:
                setattr(request, self.r.choice(("attack", "prompt")), self._text())
        return request.SerializeToString()

    def tensor(self, codec: CodecSpec, index: int, changes: int = 1) -> bytes:
        """One tensor, changed so many times in structure."""
        tensor = tensor_pb2.Tensor()
        tensor.CopyFrom(_TENSORS[codec][index])
        for _ in range(changes):
            self._damage(tensor)
        return tensor.SerializeToString()

    def spoilt(self, raw: bytes) -> bytes:
        """Other bytes: flipped, cut, repeated, put in, taken out, or none of the message's at all."""
        data = bytearray(raw)
        for _ in range(self.r.choice((1, 1, 1, 2, 5))):
            at = self.r.randrange(len(data) + 1)
            which = self.r.randrange(9)
            if which == 0 and data:
                data[at % len(data)] ^= 1 << self.r.randrange(8)
            elif which == 1:
                del data[at:]
            elif which == 2:
                data[at:at] = data[self.r.randrange(len(data) + 1) :]
            elif which == 3:
                data[at:at] = self.r.randbytes(self.r.randint(1, 9))
            elif which == 4:
                del data[at : at + self.r.randint(1, 9)]
            elif which == 5:
                data += self.r.choice(_UNKNOWN)
            elif which == 6:
                data[at : at + 1] = b"\xff" * self.r.randint(1, 11)
            elif which == 7:
                data[:0] = self.r.choice(_UNKNOWN)
            else:
                data = bytearray(self.r.randbytes(self.r.randrange(64)))
        return bytes(data)

    def _damage(self, tensor: tensor_pb2.Tensor) -> None:
        which = self.r.randrange(7)
        if which == 0:
            tensor.dtype = self._enum()
        elif which == 1:
            tensor.compression = self._enum()
        elif which == 2:
            tensor.shape[:] = [self.r.choice(_NUMBERS) % 2**32 for _ in range(self.r.choice((0, 1, 2, 3, 4, 500)))]
        elif which == 3:
            tensor.scales[:] = [self.r.choice(_FLOATS) for _ in range(self.r.randrange(6))]
        elif which == 4:
            tensor.data = self.spoilt(tensor.data)
        elif which == 5:
            tensor.data = np.full(self.r.randrange(80), self.r.choice(_FLOATS), "<f4").tobytes()
        else:
            tensor.data = self.r.randbytes(self.r.choice((0, 1, 35, 36, 72, 144, 145, 5000)))

    def _respecify(self, features) -> None:
        for _ in range(self.r.choice((1, 1, 2, 400))):
            features.add(
                name=self._text()[:50],
                shape=[self.r.choice(_NUMBERS) % 2**32 for _ in range(self.r.randrange(5))],
                layout=self.r.choice(("", "map", "tokens", "vector", self._text()[:5000])),
            )

    def _enum(self) -> int:
        return self.r.choice((0, 1, 2, 3, 4, -1, 99, 2**31 - 1))

    def _signed(self) -> int:
        return self.r.choice((-1, 1)) * (self.r.choice(_NUMBERS) % 2**63)

    def _text(self) -> str:
        return self.r.choice(_TEXTS)


# -- hypothesis --------------------------------------------------------------------------------------------

_uint32, _enum = st.integers(0, 2**32 - 1), st.integers(-1, 5)
tensor_messages = st.builds(
    tensor_pb2.Tensor,
    dtype=_enum,
    shape=st.one_of(st.sampled_from([s.shape for s in SPECS]), st.lists(_uint32, max_size=5)),
    data=st.one_of(st.sampled_from([t.data for ts in _TENSORS.values() for t in ts]), st.binary(max_size=200)),
    compression=_enum,
    scales=st.lists(st.floats(width=32), max_size=6),
)
frame_messages = st.builds(
    pb.Frame,
    sequence=st.one_of(st.just(0), st.integers(0, 2**64 - 1)),
    capture_time_us=st.integers(-(2**63), 2**63 - 1),
    features=st.one_of(st.sampled_from(list(_TENSORS.values())), st.lists(tensor_messages, max_size=4)),
)
_specs = st.builds(
    tensor_pb2.TensorSpec, name=st.text(max_size=20), shape=st.lists(_uint32, max_size=4), layout=st.text(max_size=8)
)
opening_messages = st.builds(
    pb.SessionOpen,
    session_id=st.text(max_size=200),
    session=st.one_of(
        st.just(ABOUT.proto()),
        st.builds(
            type(ABOUT.proto()), target=st.text(max_size=99), defense=st.text(max_size=99), features=st.lists(_specs)
        ),
    ),
    codec=st.builds(tensor_pb2.Codec, dtype=_enum, compression=_enum),
    resume_after=st.integers(-(2**63), 2**63 - 1),
)
picture_messages = st.builds(
    oracle_pb2.Picture,
    height=_uint32 | st.integers(0, 9),
    width=_uint32 | st.integers(0, 9),
    rgb=st.binary(max_size=99),
)
query_messages = st.builds(oracle_pb2.QueryRequest, pictures=st.lists(picture_messages, max_size=5))
