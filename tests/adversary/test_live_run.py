"""The live adversary's deadlines, with an engine that only takes notes."""

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adversary.live.engine import WindowResult
from adversary.live.run import Known, LiveOptions, _Adversary
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.wire import tensors
from splitsight.wire.sessions import SessionDescription
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


def stream(frames, pause, **opened):
    """What a tap sends: frames 0.1 s of capture time apart, then nothing for a while, then the end."""
    about = SessionDescription(**{"target": "t", "split": "L1", "features": (SPEC,), "head_digest": "d", **opened})
    codec = tensors.CodecSpec().proto()
    opening = split_inference_pb2.SessionOpen(session_id="s", session=about.proto(), codec=codec)
    yield tap_pb2.TapEvent(session=opening)
    for i in range(frames):
        frame = split_inference_pb2.Frame(sequence=i, capture_time_us=100_000 * i)
        frame.features.append(tensors.encode(np.zeros(SPEC.shape, np.float32), tensors.CodecSpec()))
        tapped = tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString())
        yield tap_pb2.TapEvent(frame=tapped)
    time.sleep(pause)
    yield tap_pb2.TapEvent(end=tap_pb2.SessionEnd(session_id="s"))


def known(engine, **more):
    about = {"target": "t", "split": "L1", "digest": "d", "specs": [SPEC], "weights": {}, "remedy": "learn it"}
    return Known(engine=engine, **{**about, **more})


@pytest.mark.parametrize(
    ("opened", "more", "words"),
    [
        (
            {"split": "L2"},
            {},
            "runs t at L2, this adversary was set up for t at L1: start it with --target t --split L2",
        ),
        ({"head_digest": "e"}, {}, "weights with digest e…, ours d…: learn it"),
        ({"defense": "noise"}, {"defense": "identity"}, r"defence is noise, .*made for identity: learn it"),
        ({"features": (SPEC, SPEC)}, {}, "sends .*, this adversary takes .*: give it the session's defence"),
    ],
    ids=str,
)
def test_another_session_than_it_was_made_for(tmp_path, opened, more, words):
    reader = SimpleNamespace(events=lambda: stream(1, 0, **opened), close=lambda: None)
    adversary = _Adversary(LiveOptions(tap="", out=tmp_path, split="L1"), known(Notes(), **more), reader)
    adversary.read()
    adversary.solve()
    with pytest.raises(UserError, match=words):
        raise adversary.error
    assert not list((tmp_path / "preview").iterdir())


def test_who_knows_f1_takes_any_defence(tmp_path):
    reader = SimpleNamespace(events=lambda: stream(1, 0, defense="noise"), close=lambda: None)
    adversary = _Adversary(LiveOptions(tap="", out=tmp_path, split="L1"), known(Notes()), reader)
    adversary.read()
    adversary.solve()
    assert adversary.error is None and len(list((tmp_path / "preview").iterdir())) == 1


@pytest.mark.parametrize("frames", [4, 6])
def test_the_last_window_has_as_much_time_as_any(tmp_path, frames):
    engine = Notes()
    reader = SimpleNamespace(events=lambda: stream(frames, 0.5), close=lambda: None)
    options = LiveOptions(tap="", out=tmp_path, split="L1", frames=4, stride=0.1, margin=MARGIN)
    adversary = _Adversary(options, known(engine), reader)
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
    told = {"session": "s", "previews": frames, "windows": len(windows), "windows_skipped": 0, "out": str(tmp_path)}
    assert adversary.outcome() == told
    if frames == 6:
        assert windows[1]["lag_ms"] >= 500 > windows[0]["lag_ms"]


def test_what_the_end_of_the_stream_leaves_has_its_time_after_it(tmp_path):
    """Nothing follows that could be in its way, however long ago it was complete."""
    notes = Notes()
    reader = SimpleNamespace(events=lambda: stream(4, 0), close=lambda: None)
    options = LiveOptions(tap="", out=tmp_path, split="L1", frames=4, stride=0.1, margin=MARGIN)
    adversary = _Adversary(options, known(notes), reader)
    adversary.read()
    adversary.ready[0] -= 10
    adversary.solve()
    assert notes.room == [pytest.approx(PERIOD * (1 - MARGIN), abs=0.05)]
