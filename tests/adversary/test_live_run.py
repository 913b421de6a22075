"""The live adversary's deadlines, with an engine that only takes notes."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adversary.live.engine import WindowResult
from adversary.live.run import LiveOptions, _Adversary
from splitsight.split import FeatureSpec
from splitsight.wire import tensors
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

SPEC = FeatureSpec("z0", (2, 4, 4))
PERIOD, MARGIN = 4 * 0.1, 0.25


class Notes:
    """An engine that writes down how long it was given."""

    def __init__(self):
        self.room = []

    def preview(self, frame):
        return torch.zeros(3, 8, 8)

    def refine(self, window, deadline):
        self.room.append(deadline - time.monotonic())
        return WindowResult(window, torch.zeros(len(window.frames), 3, 8, 8), 0.0, 1, 1, 0.0)


def stream(frames, pause):
    """What a tap sends: frames 0.1 s of capture time apart, then nothing for a while, then the end."""
    opening = split_inference_pb2.SessionOpen(session_id="s", target="t", split="L1", weights_digest="d")
    opening.features.add(name=SPEC.name, shape=SPEC.shape)
    yield tap_pb2.TapEvent(session=opening)
    for i in range(frames):
        frame = split_inference_pb2.Frame(sequence=i, capture_time_us=100_000 * i)
        frame.features.append(tensors.encode(np.zeros(SPEC.shape, np.float32), tensors.CodecSpec()))
        tapped = tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString())
        yield tap_pb2.TapEvent(frame=tapped)
    time.sleep(pause)
    yield tap_pb2.TapEvent(end=tap_pb2.SessionEnd(session_id="s"))


@pytest.mark.parametrize("frames", [4, 6])
def test_the_last_window_has_as_much_time_as_any(tmp_path, frames):
    engine = Notes()
    target = SimpleNamespace(name="t", digest="d", feature_specs=lambda split: [SPEC])
    reader = SimpleNamespace(events=lambda: stream(frames, 0.5), close=lambda: None)
    options = LiveOptions(tap="", out=tmp_path, split="L1", frames=4, stride=0.1, margin=MARGIN)
    adversary = _Adversary(options, engine, target, reader)
    thread = threading.Thread(target=adversary.read)
    thread.start()
    adversary.solve()
    thread.join()
    assert adversary.error is None
    events = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    windows = [e for e in events if e["event"] == "window"]
    assert [w["sequences"] for w in windows] == [[0, 1, 2, 3], [4, 5]][: len(windows)] and len(windows) == frames // 3
    assert [w["complete"] for w in windows] == [True, False][: len(windows)]
    # a window that the end leaves incomplete has its time from then on, not from frames that came long before
    assert engine.room == pytest.approx([PERIOD * (1 - MARGIN)] * len(windows), abs=0.15)
    assert all(w["on_time"] for w in windows)
    assert len(list((tmp_path / "window").glob("*.png"))) == frames == len(list((tmp_path / "preview").glob("*.png")))
    if frames == 6:
        assert windows[1]["lag_ms"] >= 500 > windows[0]["lag_ms"]
