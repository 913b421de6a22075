"""The page on streams of others: sessions come, end, and are reported."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from scenarios.web.joined import Joined, JoinedRun
from scenarios.web.judge import Judge
from scenarios.web.state import Board, Requests
from scenarios.web.watch import RecordingWatch
from splitsight import targets
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.recording import RecordingWriter, Session
from splitsight.wire.tensors import encode
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

ABOUT = EdgePipeline(targets.load("resnet18"), "L8").description()


def tapped(session, sequence):
    frame = split_inference_pb2.Frame(sequence=sequence, capture_time_us=1_000_000 * (sequence + 1))
    arrays = [np.random.default_rng(sequence).random(spec.shape, np.float32) for spec in session.about.features]
    frame.features.extend(encode(array, session.codec) for array in arrays)
    return tap_pb2.TappedFrame(session_id=session.session_id, frame=frame.SerializeToString())


def streamed(frames, adversary, name="s1", about=ABOUT):
    """What an edge and an adversary leave in their folders while three frames are streamed, one a second."""
    session = Session(name, about)
    with RecordingWriter(adversary / "recording", session) as writer:
        for k in range(3):
            writer.append(tapped(session, k))
    image = np.random.default_rng(0).integers(0, 200, (64, 64, 3), np.uint8)
    lines, events = [], [{"event": "setup", "attack": "window:live"}, {"event": "session", "session": name}]
    for k in range(3):
        for folder in (frames / "truth", adversary / "preview"):
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{k:06d}.png", image + np.uint8(20 * k))
        lines.append({"sequence": k, "capture_time_us": 1_000_000 * (k + 1), "rtt_ms": 3.0, "says": "cat", "bytes": 10})
        events.append({"event": "preview", "sequence": k, "lag_ms": 5.0})
    (frames / "edge.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (adversary / "live.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def end(adversary):
    with (adversary / "live.jsonl").open("a") as file:
        file.write('{"event": "end"}\n')


@pytest.fixture
def joined(tmp_path, monkeypatch):
    monkeypatch.setattr("scenarios.web.joined._LOOK_S", -1)
    return Joined(tmp_path / "tapped", tmp_path / "out", tmp_path / "frames")


@pytest.fixture
def play(monkeypatch):
    """Makes runs, none of whose evaluators or galleries is loaded."""
    monkeypatch.setattr("scenarios.web.joined.beholders", lambda *_: (None, []))
    made = []

    def begin(joined):
        joined.out.mkdir(exist_ok=True)
        made.append(JoinedRun(joined, Judge(), Board(), Requests()))
        return made[-1]

    yield begin
    for run in made:
        run.close()
        run.judge.close()


def test_a_stream_is_shown_and_reported_when_it_has_ended(joined, play):
    run = play(joined)
    run._tick()
    assert (run.phase, run.board.status["target"]) == ("waiting for a stream", "")
    streamed(joined.frames, joined.tapped)
    run._tick()
    run._tick()
    status = run.board.status
    assert (run.phase, run.options.fps, run.options.split) == ("streaming", 1.0, "L8")
    assert status["attack"] == "window:live" and run.reports() == []
    assert {"newest-original", "newest-reconstruction"} <= set(run.board.pictures)
    end(joined.tapped)
    run._tick()
    assert len(run.reports()) == 1, run.problem
    (name,) = run.reports()
    summary = json.loads((joined.out / name / "summary.json").read_text())
    assert summary["serving"]["frames"] == 3 and summary["live"]["tiers"]["preview"]["n"] == 3
    assert len(list((joined.out / name / "truth").iterdir())) == 3
    assert summary["environment"]["run"]["complete"]
    # another page does not report it again
    written = (joined.out / name / "index.html").stat().st_mtime_ns
    again = play(joined)
    again._tick()
    assert again.part.reported and (joined.out / name / "index.html").stat().st_mtime_ns == written


def test_one_stream_after_the_other(joined, play):
    run = play(joined)
    streamed(joined.frames, joined.tapped)
    run._tick()
    # as containers do: the earlier folder is kept beside the new one
    joined.tapped.rename(joined.tapped.with_name("earlier"))
    run._tick()
    streamed(joined.frames, joined.tapped, "s2")
    run._tick()
    assert [part.out.name for part in run.parts] == ["run-s1", "run-s2"] and not run.part.reported
    run.finish()
    assert not json.loads((run.part.out / "summary.json").read_text())["environment"]["run"]["complete"]


def test_a_stream_without_originals_is_shown_and_not_reported(joined, play):
    streamed(joined.frames, joined.tapped)
    run = play(replace(joined, frames=None))
    run._tick()
    run._tick()
    assert "newest-reconstruction" in run.board.pictures and "newest-original" not in run.board.pictures
    end(joined.tapped)
    run._tick()
    assert run.reports() == [] and "--frames" in run.problem


def test_other_weights_than_here(joined, play):
    streamed(joined.frames, joined.tapped, about=replace(ABOUT, head_digest="0" * 64))
    run = play(joined)
    run._tick()
    assert run.part is None and "give their --weights" in run.problem


def test_nobody_is_steered_without_a_port(joined, play):
    run = play(joined)
    for values, words in (
        ({"paused": True}, "--edge HOST:PORT"),
        ({"attack": "window:live"}, "--adversary HOST:PORT"),
        ({"split": "L4"}, "started elsewhere"),
    ):
        asked = run.ask("change", **values)
        run._answer(run._requests.take(1))
        with pytest.raises(UserError, match=words):
            asked.result(0)
    for action in ("restart", "stop"):
        asked = run.ask(action)
        run._answer(run._requests.take(1))
        with pytest.raises(UserError, match="started elsewhere"):
            asked.result(0)
    assert {how["state"] for how in run.board.status["processes"].values()} == {"unknown"}


def test_a_recording_is_followed_through_its_parts(tmp_path):
    session = Session("s", ABOUT)
    with RecordingWriter(tmp_path, session, frames_per_part=4) as writer:
        writer.append(tapped(session, 0))
        watch = RecordingWatch(tmp_path)
        until = time.monotonic() + 20
        while watch.newest != 0 and time.monotonic() < until:
            time.sleep(0.01)
        watch.close()
        for k in range(1, 11):
            writer.append(tapped(session, k))
            if k in (2, 9):
                watch.look()  # once before, once after a part was closed in between
        watch.look()
        assert all(watch.picture(k) is not None for k in range(11)) and watch.frames == 11
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError):
        watch.look()
