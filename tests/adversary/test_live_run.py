"""The live adversary's deadlines, with an engine that only takes notes."""

import itertools
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adversary.live.backlog import Backlog
from adversary.live.engine import WindowResult
from adversary.live.options import Known, LiveOptions
from adversary.live.run import _Adversary
from adversary.live.whitebox import know
from scenarios.join import Join, left_out
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.recording import Recording
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


class Slow(Notes):
    """An engine that goes on with its first preview, or its first window, until the stream has been read."""

    def __init__(self, tier, read):
        super().__init__()
        self.tier, self.read = tier, read

    def preview(self, frame):
        if self.tier == "preview":
            assert self.read.wait(20)
        return super().preview(frame)

    def refine(self, window, deadline):
        if self.tier == "window":
            assert self.read.wait(20)
        return super().refine(window, deadline)


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
    told = {"session": "s", "previews": frames, "windows": len(windows), "windows_skipped": 0, "frames_skipped": {}}
    assert adversary.outcome() == told | {"out": str(tmp_path)}
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


def test_what_the_end_leaves_over_makes_no_window_late(tmp_path):
    """Two frames more make a window while the last whole one is refined, long before another could have been whole."""
    read = threading.Event()
    reader = SimpleNamespace(events=lambda: stream(18, 0.1), close=lambda: None)
    options = LiveOptions(tap="", out=tmp_path, split="L1", frames=16, stride=0.1, margin=MARGIN)
    adversary = _Adversary(options, known(Slow("window", read)), reader)
    solving = threading.Thread(target=adversary.solve)
    solving.start()
    adversary.read()
    read.set()
    solving.join()
    assert adversary.error is None
    events = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert [(w["complete"], w["on_time"]) for w in events if w["event"] == "window"] == [(True, True), (False, True)]


@pytest.mark.parametrize("tier", ["preview", "window"])
def test_who_is_too_slow_leaves_frames_out_and_says_which(tmp_path, tier, monkeypatch):
    monkeypatch.setattr("adversary.live.run._WAITS_S", 0)
    read = threading.Event()

    def events():
        yield from itertools.islice(stream(16, 0), 2)
        # the first frame is being worked on when the others come
        assert _until(lambda: not adversary.singles.waiting)
        for k, event in enumerate(itertools.islice(stream(16, 0), 2, None)):
            if event.WhichOneof("event") == "end":
                read.set()
            yield event
            assert k != 2 or _until(lambda: not adversary.windows.waiting)

    reader = SimpleNamespace(events=events, close=lambda: None)
    options = LiveOptions(tap="", out=tmp_path, split="L1", frames=4, stride=0.1, margin=MARGIN)
    adversary = _Adversary(options, known(Slow(tier, read)), reader)
    thread = threading.Thread(target=adversary.read)
    thread.start()
    adversary.solve()
    thread.join()
    adversary.writer.close()
    assert adversary.error is None
    # all of it is recorded, whoever was too slow
    assert Recording.open(tmp_path / "recording").sequences == list(range(16))
    left = [n for e in _events(tmp_path) if e["event"] == f"{tier}_skipped" for n in e["sequences"]]
    done = sorted(int(file.stem) for file in (tmp_path / tier).glob("*.png"))
    # the first that was begun, and the newest
    assert done == ([0, 15] if tier == "preview" else [0, 1, 2, 3, 12, 13, 14, 15])
    assert sorted(left + done) == list(range(16))
    assert adversary.outcome()["frames_skipped"][tier] == len(left)
    assert f"{len(left)} frames without a {tier}" in adversary.log.slow
    join = Join(tmp_path)
    join.poll()
    assert join.skipped()[tier] == len(left) and {n for n, r in join.frames.items() if tier in r.skipped} == set(left)
    assert left_out({tier: len(left)}) == f"{len(left)} frames without a {tier}"


def _events(folder):
    return [json.loads(line) for line in (folder / "live.jsonl").read_text().splitlines()]


def _until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def test_a_backlog_gives_up_what_has_waited_too_long():
    clock = [0.0]
    backlog = Backlog(2.0, lambda: clock[0])
    for at in (0.0, 1.0, 1.9):
        clock[0] = at
        assert backlog.put(at) == []
    clock[0] = 2.9
    assert backlog.take() == 0.0 and backlog.put(2.9) == [] and backlog.waiting == 3
    clock[0] = 3.0
    assert backlog.put(3.0) == [1.0, 1.9, 2.9] and backlog.waiting == 1
    clock[0] = 100.0  # nothing newer came: there is time for it
    assert backlog.take() == 3.0
    backlog.put(4.0)
    backlog.close()
    assert (backlog.take(), backlog.take()) == (4.0, None)


def test_previews_by_a_network_that_knows_no_defence_are_said_to_be_worse(tmp_path):
    noise = {"defense": "noise:ratio=1"}
    plain, defended, alone = (
        know(LiveOptions("127.0.0.1:1", tmp_path, **more)).caveat
        for more in ({}, noise, {**noise, "preview": False, "setting": "denoised"})
    )
    assert plain == "" == alone
    assert "trained on features without noise:ratio=1" in defended and "--defense 'noise:ratio=1'" in defended
