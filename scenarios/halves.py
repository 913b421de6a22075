"""What the two halves of a split network cost a single frame on this machine: milliseconds, and bytes between them.

The edge half is all that an edge does to a frame (resize, preprocessing, F1, defence, encoding), the cloud half all
that a server does (parsing, decoding, F2, reading the output, writing the answer), by the code that the processes run.
Both are timed in turn, frame by frame, so that neither finds its weights in a cache that the other would have emptied.
What lies between them (gRPC, queues, threads) is in neither: :mod:`scenarios.link` measures that with real processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from cloud_server.model import Tail
from edge_client.client import Encoder
from splitsight.data import fit
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.wire.tensors import COMPRESSIONS, DTYPES, CodecSpec, WireError, decode, encode
from splitsight.wire.v1 import split_inference_pb2 as pb

__all__ = ["CODECS", "Halves", "Timing", "frame_bytes", "time_halves"]

CODECS: dict[str, CodecSpec] = {
    dtype + ("" if compression == "none" else f"+{compression}"): CodecSpec(dtype, compression)
    for dtype, compression in product(DTYPES, COMPRESSIONS)
}
"""Every codec by a short name: ``float32``, ``float32+zstd``, …"""
_TIME_US = 1 << 50  # of a capture; its size on the wire is that of a present one


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a part: median, quartiles, and of how many frames."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From what single frames took."""
        low, median, high = (1e3 * float(x) for x in np.percentile(seconds, [25, 50, 75]))
        return cls(median, low, high, len(seconds))


@dataclass(frozen=True)
class Halves:
    """What a frame costs on both sides.

    Attributes:
        edge: from an image to the encoded features.
        cloud: from the message to the answer's.
        up_bytes: size of a frame's message, mean.
        down_bytes: size of its answer's, mean.
        threads: of PyTorch, on either side.
    """

    edge: Timing
    cloud: Timing
    up_bytes: float
    down_bytes: float
    threads: int


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_halves(
    pipeline: EdgePipeline,
    images: Sequence[np.ndarray],
    *,
    rounds: int = 3,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Halves:
    """Time both halves on single frames.

    Args:
        pipeline: with the codec that frames are sent in.
        images: each ``(h, w, 3)`` uint8 RGB, of any size; at least one.
        rounds: passes over the images, ≥ 1; one more goes before them unmeasured.
        threads: of PyTorch, ≥ 1.
        clock: seconds.

    Raises:
        UserError: features that cannot be sent, or that F2 makes overflow.
    """
    if not images or rounds < 1:
        raise ValueError("timing takes at least one image and one round")
    edge: list[float] = []
    cloud: list[float] = []
    up: list[int] = []
    down: list[int] = []
    with _threads(threads):
        encoder, tail = Encoder(pipeline), Tail(pipeline)
        tail.warm_up(1)
        for index, image in enumerate([image for _ in range(rounds + 1) for image in images]):
            start = clock()
            sent = encoder(index, _TIME_US, fit(image, pipeline.input_size))
            encoded = clock()
            message = pb.InferRequest(frame=sent.frame).SerializeToString()
            arrived = clock()
            answer = _answered(message, tail)
            done = clock()
            if index >= len(images):
                edge.append(encoded - start)
                cloud.append(done - arrived)
                up.append(len(message))
                down.append(len(answer))
    return Halves(Timing.of(edge), Timing.of(cloud), float(np.mean(up)), float(np.mean(down)), threads)


def _answered(message: bytes, tail: Tail) -> bytes:
    """What a server does with a frame's message."""
    frame = pb.InferRequest.FromString(message).frame
    features = [decode(tensor, spec) for tensor, spec in zip(frame.features, tail.specs, strict=True)]
    (reading,), seconds = tail([features])
    if reading is None:
        raise UserError(f"the features of frame {frame.sequence} make the network overflow: check its weights")
    answer = pb.Answer(sequence=frame.sequence, queue_us=200, compute_us=round(seconds * 1e6), batch_size=1)
    reading.put(answer)
    return pb.InferResponse(answer=answer).SerializeToString()


@torch.inference_mode()
def frame_bytes(pipeline: EdgePipeline, images: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Mean size of a frame's message in each codec.

    Args:
        pipeline: its own codec does not matter.
        images: each ``(h, w, 3)`` uint8 RGB, of any size; at least one.

    Returns:
        By the names of :data:`CODECS`; ``None`` where a codec cannot hold the features (float16 beyond ±65504).

    Raises:
        UserError: features that no codec can hold.
    """
    sizes: dict[str, list[int] | None] = {name: [] for name in CODECS}
    for image in images:
        pixels = torch.from_numpy(fit(image, pipeline.input_size)).permute(2, 0, 1)[None].float() / 255
        arrays = [z[0].cpu().numpy() for z in pipeline.protected(pixels)]
        for name, codec in CODECS.items():
            if (so_far := sizes[name]) is None:
                continue
            try:
                tensors = [encode(z, codec, spec) for z, spec in zip(arrays, pipeline.specs, strict=True)]
            except WireError as error:
                if codec.dtype != "float16":
                    raise UserError(f"the features at {pipeline.split} cannot be sent: {error}") from error
                sizes[name] = None
                continue
            frame = pb.Frame(sequence=100, capture_time_us=_TIME_US, features=tensors)
            so_far.append(pb.InferRequest(frame=frame).ByteSize())
    return {name: None if found is None else float(np.mean(found)) for name, found in sizes.items()}
