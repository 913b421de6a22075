"""An oracle of a few lines on loopback whose failures can be chosen; its F1 shrinks a picture to 4 × 4."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import cv2
import grpc
import numpy as np

from splitsight.features import FeatureSpec
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import oracle_pb2 as pb
from splitsight.wire.v1 import oracle_pb2_grpc as rpc
from splitsight.wire.v1 import session_pb2, tensor_pb2


def features(image: np.ndarray) -> np.ndarray:
    """``(S, S, 3)`` uint8 → ``(3, 4, 4)`` float32."""
    return cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA).transpose(2, 0, 1).astype(np.float32) / 255 - 0.5


class FakeOracle(rpc.OracleServicer):
    def __init__(
        self,
        *,
        port: int = 0,
        budget: int = 1000,
        digest: str = "a" * 64,
        size: int = 16,
        codec: CodecSpec = CodecSpec(),  # noqa: B008 (frozen)
        token: str | None = None,
        max_side: int = 64,
        die_after: int | None = None,  # pictures, then every query is answered with UNAVAILABLE
        change_after: int | None = None,  # pictures, then another shape
        slow_down: int = 0,  # so many queries are refused for their rate
        **described: object,
    ) -> None:
        self.budget, self.codec, self.token, self.max_side = budget, codec, token, max_side
        self.die_after, self.change_after, self.slow_down = die_after, change_after, slow_down
        about = {"target": "net", "split": "L1", "defense": "identity", "head_digest": digest, "input_size": size}
        about |= {"features": [tensor_pb2.TensorSpec(name="z0", shape=(3, 4, 4), layout="map")], "task": "classify"}
        self.about = pb.DescribeOracleResponse(
            session=session_pb2.SessionDescription(**(about | described)),
            codec=self.codec.proto(),
            max_batch=8,
            max_side=max_side,
            budget=budget,
            instance=uuid.uuid4().hex,
        )
        self.asked: list[np.ndarray] = []
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        rpc.add_OracleServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        assert self.port
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> FakeOracle:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _admit(self, context: grpc.ServicerContext) -> None:
        if self.token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the oracle asks for a token")

    def Describe(self, request, context):
        self._admit(context)
        self.about.left = self.budget - len(self.asked)
        return self.about

    def Query(self, request, context):
        self._admit(context)
        if self.slow_down:
            self.slow_down -= 1
            context.set_trailing_metadata((("splitsight-reason", "rate"), ("splitsight-retry-ms", "5")))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slowly")
        if self.die_after is not None and len(self.asked) >= self.die_after:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        images = [np.frombuffer(p.rgb, np.uint8).reshape(p.height, p.width, 3) for p in request.pictures]
        if max(images[0].shape) > self.max_side:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a picture is too large")
        if len(self.asked) + len(images) > self.budget:
            context.set_trailing_metadata((("splitsight-reason", "budget"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the budget of {self.budget} queries is spent")
        self.asked += images
        answers = []
        for image in images:
            z = features(image)
            if self.change_after is not None and len(self.asked) > self.change_after:
                z = z[:, :2]
            answers.append(pb.PictureFeatures(features=[encode(z, self.codec, FeatureSpec("z0", z.shape))]))
        return pb.QueryResponse(answers=answers, left=self.budget - len(self.asked), instance=self.about.instance)
