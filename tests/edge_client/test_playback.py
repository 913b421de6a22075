"""What an edge plays and when, on an injected clock."""

import numpy as np
import pytest

from edge_client.playback import Clock, Player, is_recording
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.recording import RecordingWriter, Session
from splitsight.video import VideoFrame
from splitsight.wire import tensors
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.v1 import operator_pb2 as pb
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

SPEC = FeatureSpec("z0", (2, 4, 4))
ABOUT = SessionDescription(target="t", split="L1", features=(SPEC,), head_digest="d")


class Time:
    """A clock that goes on when somebody waits for room."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


class Source:
    """Frames at a rate; the k-th is all k."""

    live, skipped, lost = False, 0, 0

    def __init__(self, count=1000, rate=2.0, first=0):
        self.frames, self.rate, self.closed, self.first = count, rate, False, first

    def __iter__(self):
        for k in range(self.frames):
            yield VideoFrame(k, k / self.rate, np.full((4, 4, 3), self.first + k, np.uint8))

    def interrupt(self):
        pass

    def close(self):
        self.closed = True


class Played:
    """A player whose waiting costs nothing: the clock is moved instead."""

    def __init__(self, source=None, **more):
        self.time = Time()
        again = lambda: Source(first=200)  # noqa: E731
        self.player = Player(
            source or Source(), "clip", again, fps=2, now=self.time, epoch_us=lambda: round(self.time.at * 1e6), **more
        )
        self.player._changed.wait = self._pass
        self.player.begin()

    def _pass(self, seconds):
        self.time.at += seconds

    def next(self, within=60.0):
        until = self.time.at + within
        return self.player.next(lambda wait: True, lambda: self.time.at >= until)


def test_clock_keeps_its_place_through_changes():
    time = Time()
    clock = Clock(time)
    assert clock.due(3.0) == 103.0
    time.at += 2
    clock.change(speed=2.0)
    assert (clock.media, clock.due(4.0)) == (2.0, 103.0)
    time.at += 1
    clock.change(paused=True)
    time.at += 50
    assert (clock.media, clock.due(5.0)) == (4.0, None)
    clock.change(paused=False, speed=0.5)
    assert clock.due(5.0) == 153.0 + 2.0
    clock.restart()
    assert clock.media == 0.0


def test_frames_are_due_at_the_rate_of_the_clip_and_carry_that_moment():
    played = Played()
    shots = [played.next() for _ in range(4)]
    assert [shot.image[0, 0, 0] for shot in shots] == [0, 1, 2, 3]
    assert [shot.capture_us for shot in shots] == [100_000_000 + 500_000 * k for k in range(4)]
    assert played.time.at == pytest.approx(101.5)


def test_speed_pause_and_single_frames():
    played = Played()
    played.next()
    played.player.change(pb.ChangeRequest(speed=4))
    begun = played.time.at
    for _ in range(4):
        played.next()
    assert played.time.at - begun == pytest.approx(0.5)
    played.player.change(pb.ChangeRequest(paused=True))
    assert played.next(within=30) is None and played.player.status().paused
    played.player.change(pb.ChangeRequest(step=2))
    assert [played.next(1).image[0, 0, 0] for _ in range(2)] == [5, 6]
    assert played.next(within=30) is None
    played.player.change(pb.ChangeRequest(paused=False, speed=1))
    begun = played.time.at
    # the clip goes on behind the last frame that was let through, not where the wall clock would have it
    assert played.next().image[0, 0, 0] == 7 and played.time.at - begun == pytest.approx(0.5)


def test_another_source_begins_at_once(monkeypatch):
    played = Played()
    played.next()
    other = Source(first=100)
    monkeypatch.setattr("edge_client.playback.open_source", lambda name, **_: other)
    played.player.change(pb.ChangeRequest(source="other.mp4"))
    begun = played.time.at
    assert [played.next().image[0, 0, 0] for _ in range(2)] == [100, 101] and played.player.source == "other.mp4"
    assert played.time.at - begun == pytest.approx(0.5)
    played.player.change(pb.ChangeRequest(source=""))
    assert played.next().image[0, 0, 0] == 200 and played.player.source == "clip"
    played.player.close()
    assert other.closed


def recorded(folder, about=ABOUT, codec=None, count=3):
    session = Session("s", about, codec or tensors.CodecSpec())
    with RecordingWriter(folder / "recording", session) as writer:
        for i in range(count):
            frame = split_inference_pb2.Frame(sequence=i, capture_time_us=7_000_000 + 250_000 * i)
            frame.features.append(tensors.encode(np.full(SPEC.shape, i, np.float32), session.codec))
            writer.append(tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString()))
    (folder / "truth").mkdir()
    write_png(folder / "truth" / "000001.png", np.full((4, 4, 3), 50, np.uint8))
    return str(folder / "recording")


def test_a_recording_is_sent_again_as_it_was_and_then_the_clip_goes_on(tmp_path):
    played = Played()
    played.player.about = ABOUT, tensors.CodecSpec()
    played.next()
    folder = recorded(tmp_path)
    assert is_recording(folder) and not is_recording(str(tmp_path)) and not is_recording(None)
    played.player.change(pb.ChangeRequest(source=folder))
    begun = played.time.at
    shots = [played.next() for _ in range(3)]
    for i, shot in enumerate(shots):
        assert tensors.decode(shot.features[0], SPEC, max_bytes=1 << 20).flat[0] == i
    assert [shot.image is None for shot in shots] == [True, False, True]
    assert played.time.at - begun == pytest.approx(0.5)
    assert played.next().image[0, 0, 0] == 200


@pytest.mark.parametrize(
    ("about", "codec", "words"),
    [
        (SessionDescription(target="t", split="L2", features=(SPEC,), head_digest="d"), None, "split point L1, not L2"),
        (ABOUT, tensors.CodecSpec("float16"), "features as float32, not float16"),
    ],
    ids=["split", "codec"],
)
def test_a_recording_of_another_session(tmp_path, about, codec, words):
    played = Played()
    played.player.about = ABOUT, tensors.CodecSpec()
    with pytest.raises(UserError, match=words):
        played.player.change(pb.ChangeRequest(source=recorded(tmp_path, about, codec)))
    assert played.player.source == "clip" and played.next().image[0, 0, 0] == 0


def test_what_an_edge_cannot_change():
    played = Played()
    with pytest.raises(UserError, match="an edge has no attack to change: it takes paused, source, speed, step"):
        played.player.change(pb.ChangeRequest(attack="window"))
    for speed in (0, -1, float("nan"), 100):
        with pytest.raises(UserError, match=r"between 0\.05 and 20"):
            played.player.change(pb.ChangeRequest(speed=speed))
    live = Source()
    live.live = True
    with pytest.raises(UserError, match="a camera or a stream plays at its own speed"):
        Played(live).player.change(pb.ChangeRequest(speed=2))
    with pytest.raises(UserError):
        played.player.change(pb.ChangeRequest(source="/nowhere/at all.mp4", paused=True))
    # all of it, or nothing
    assert not played.player.status().paused
