"""A cloud server of a few lines whose failures can be chosen; answers nothing but the sequence number."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc

from splitsight.pipeline import EdgePipeline
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import split_inference_pb2_grpc as rpc
from splitsight.wire.v1 import tensor_pb2


class FakeCloud(rpc.SplitInferenceServicer):
    def __init__(
        self,
        description: pb.DescribeResponse | None = None,
        *,
        port: int = 0,
        max_in_flight: int = 4,
        delay_s: float = 0.0,
        break_after: int | None = None,  # answers of one stream, then it breaks
        hang_after: int | None = None,  # answers of one stream, then silence
        twice: bool = False,  # answers everything since the start again when resumed
        refuse: tuple[grpc.StatusCode, str] | None = None,
    ) -> None:
        self.description = description or pb.DescribeResponse()
        self.max_in_flight = max_in_flight
        self.delay_s, self.break_after, self.hang_after = delay_s, break_after, hang_after
        self.twice, self.refuse = twice, refuse
        self.opens: list[pb.SessionOpen] = []
        self.frames: list[pb.Frame] = []
        self.most_waiting = 0
        self._lock = threading.Lock()
        self.silent = threading.Event()  # set once it hangs
        self._released = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        rpc.add_SplitInferenceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        assert self.port
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._released.set()
        self._server.stop(0).wait()

    def Describe(self, request, context):
        return self.description

    def Infer(self, requests, context):
        opening = next(requests).open
        self.opens.append(opening)
        if self.refuse is not None:
            context.abort(*self.refuse)
        queue: list[pb.Frame] = []
        ended = threading.Event()

        def read():
            try:
                for r in requests:
                    with self._lock:
                        queue.append(r.frame)
                        self.frames.append(r.frame)
                        self.most_waiting = max(self.most_waiting, len(queue))
            except Exception:
                pass
            ended.set()

        yield pb.InferResponse(opened=pb.SessionOpened(max_in_flight=self.max_in_flight))
        threading.Thread(target=read, daemon=True).start()
        if self.twice:
            for sequence in range(opening.resume_after + 1):
                yield pb.InferResponse(answer=pb.Answer(sequence=sequence))
        answered = 0
        while context.is_active() and not (ended.is_set() and not queue):
            if not queue:
                time.sleep(0.002)
                continue
            if self.break_after is not None and answered >= self.break_after:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
            if self.hang_after is not None and answered >= self.hang_after:
                self.silent.set()
                while context.is_active() and not self._released.wait(0.02):
                    pass
                return
            time.sleep(self.delay_s)
            with self._lock:
                frame = queue.pop(0)
            answer = pb.Answer(sequence=frame.sequence, batch_size=1)
            answer.classes.top.add(index=1, name="thing", probability=0.5)
            yield pb.InferResponse(answer=answer)
            answered += 1


def description(target, point: str, /, **changes) -> pb.DescribeResponse:
    """What a server that fits ``target`` says of itself, changed here and there."""
    about = replace(EdgePipeline(target, point).description(), defense="")
    session = {k: changes.pop(k) for k in list(changes) if k in about.__dataclass_fields__}
    fields = {
        "session": replace(about, **session).proto(),
        "dtypes": [tensor_pb2.DTYPE_FLOAT32, tensor_pb2.DTYPE_FLOAT16, tensor_pb2.DTYPE_INT8],
        "compressions": [tensor_pb2.COMPRESSION_NONE, tensor_pb2.COMPRESSION_ZSTD],
        "max_message_bytes": 4 << 20,
        "max_in_flight": 4,
    }
    return pb.DescribeResponse(**(fields | changes))
