import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fake_cloud import FakeCloud, description

from edge_client.client import EdgeOptions, run_edge
from edge_client.link import Answered, Sent
from edge_client.report import Report
from splitsight import targets
from splitsight.data import fit
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.video import open_source
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import decode
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import tensor_pb2


@pytest.fixture(scope="module")
def target():
    return targets.load("resnet18")


@pytest.fixture
def cloud(target):
    made: list[FakeCloud] = []

    def make(changes: dict | None = None, **options) -> FakeCloud:
        made.append(FakeCloud(description(target, "L8", **(changes or {})), **options))
        return made[-1]

    yield make
    for c in made:
        c.stop()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "noise.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(30):
        small = rng.integers(0, 255, (4, 6, 3), np.uint8)
        writer.write(cv2.resize(small, (96, 64), interpolation=cv2.INTER_CUBIC))
    writer.release()
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_sends_f1_of_the_sampled_frames(cloud, clip, target, tmp_path):
    server = cloud()
    events = []
    report = run_edge(
        EdgeOptions(
            server.address,
            str(clip),
            fps=5,
            pace=False,
            report=tmp_path / "edge.jsonl",
            truth=tmp_path / "truth",
            in_flight=3,
        ),
        lambda name, details: events.append((name, details)),
    )
    assert (report.captured, report.answered, report.lost, report.exit_code) == (15, 15, 0, 0)
    rows = lines(tmp_path / "edge.jsonl")
    assert [r["sequence"] for r in rows] == list(range(15))
    thing = {"index": 1, "name": "thing", "probability": 0.5}
    assert (rows[0]["says"], rows[0]["best"], rows[0]["answer"]) == ("thing 50%", thing, {"top": [thing]})
    assert all(r["rtt_ms"] > 0 and r["sent_us"] <= r["answered_us"] and r["bytes"] > 32768 for r in rows)
    assert json.loads((tmp_path / "edge.summary.json").read_text())["answered"] == 15
    assert [e[0] for e in events] == ["connected", *["answer"] * 15, "done"]
    opening = server.opens[0]
    about = SessionDescription.read(opening.session)
    assert about == EdgePipeline(target, "L8").description() and about.defense == "identity"
    assert opening.codec.dtype == tensor_pb2.DTYPE_FLOAT32
    head, specs = target.head("L8"), target.feature_specs("L8")
    with open_source(clip, fps=5) as source, torch.inference_mode():
        for frame, sent in zip(source, server.frames, strict=True):
            image = fit(frame.image, 64)
            stored = cv2.imread(str(tmp_path / "truth" / f"{frame.index:06d}.png"))
            np.testing.assert_array_equal(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), image)
            expected = head(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
            for tensor, spec, z in zip(sent.features, specs, expected, strict=True):
                np.testing.assert_allclose(decode(tensor, spec, max_bytes=1 << 20), z[0].numpy(), atol=1e-6)
    assert not list((tmp_path / "truth").glob("*.partial"))


def test_frames_that_do_not_decode_are_reported(cloud, tmp_path, caplog):
    """An AVI of JPEGs, each a packet of its own."""
    clip = tmp_path / "damaged.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for i in range(20):
        writer.write(np.full((64, 96, 3), 10 * i, np.uint8))
    writer.release()
    data = bytearray(clip.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 20
    for k in (7, 8):
        data[starts[k] : starts[k + 1] - 8] = bytes(starts[k + 1] - 8 - starts[k])
    clip.write_bytes(data)
    with open_source(clip) as source:
        kept = len(list(source))
    assert kept == 18
    options = EdgeOptions(cloud().address, str(clip), fps=10, pace=False, report=tmp_path / "edge.jsonl")
    report = run_edge(options)
    assert report.undecoded == 2 and report.captured == report.answered
    assert json.loads((tmp_path / "edge.summary.json").read_text())["undecoded"] == 2
    assert "damaged.avi is damaged: 2 of its frames" in caplog.text
    assert run_edge(EdgeOptions(cloud().address, str(clip), fps=10, pace=False, seconds=5)).undecoded == 2


def test_paced_without_drift(cloud, clip, tmp_path):
    server = cloud()
    start = time.monotonic()
    report = run_edge(EdgeOptions(server.address, str(clip), fps=20, seconds=2, report=tmp_path / "r.jsonl"))
    assert report.answered == 40
    rows = lines(tmp_path / "r.jsonl")
    captured = np.array([r["capture_time_us"] for r in rows])
    np.testing.assert_array_equal(np.diff(captured), 50_000)
    sent = np.array([r["sent_us"] for r in rows])
    assert ((sent - captured) >= 0).all()
    assert np.median(sent - captured) < 100_000  # the last as punctual as the first
    assert 1.9 < report.seconds < time.monotonic() - start


def test_a_stored_clip_is_never_skipped_by_a_slow_server(cloud, clip):
    report = run_edge(EdgeOptions(cloud(delay_s=0.05).address, str(clip), fps=10, in_flight=2, pace=True, seconds=2))
    assert (report.captured, report.answered, report.skipped) == (20, 20, 0)


def test_a_live_source_skips_what_there_is_no_room_for(cloud, monkeypatch):
    class Camera:
        i = 0

        def isOpened(self):
            return True

        def get(self, _):
            return 0.0

        def read(self):
            time.sleep(0.005)
            Camera.i += 1
            return True, np.full((64, 64, 3), Camera.i % 256, np.uint8)

        def release(self):
            pass

    monkeypatch.setattr("splitsight.video.cv2.VideoCapture", lambda *_: Camera())
    report = run_edge(EdgeOptions(cloud(delay_s=0.2).address, "0", fps=25, seconds=0.4, in_flight=1))
    assert report.captured == report.answered == 10
    assert report.skipped > 10


def test_survives_broken_streams(cloud, clip, tmp_path):
    server = cloud(break_after=6)
    report = run_edge(EdgeOptions(server.address, str(clip), fps=10, pace=False, report=tmp_path / "r.jsonl"))
    assert report.answered == 30 and report.lost == 0 and report.reconnects == 4
    assert [r["sequence"] for r in lines(tmp_path / "r.jsonl")] == list(range(30))


def test_gives_up_and_leaves_its_report(cloud, clip, tmp_path):
    server = cloud(hang_after=4)
    options = EdgeOptions(
        server.address, str(clip), fps=10, give_up_s=0.4, answer_timeout_s=0.3, report=tmp_path / "r.jsonl"
    )
    # gone for good once it has fallen silent
    threading.Thread(target=lambda: server.silent.wait(60) and server.stop(), daemon=True).start()
    with pytest.raises(UserError, match="could not be taken up again") as error:
        run_edge(options)
    assert "\n" not in str(error.value)
    summary = json.loads((tmp_path / "r.summary.json").read_text())
    assert summary["answered"] == len(lines(tmp_path / "r.jsonl")) == 4
    assert summary["lost"] == summary["captured"] - summary["answered"] > 0
    assert summary["error"] == str(error.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head_digest": "0" * 64}, "weights of F1 with digest 000000000000.*the same --weights"),
        ({"tail_digest": "0" * 64}, "weights of F2 with digest 000000000000.*the same --weights"),
        ({"defense": "gaussian:sigma=2"}, "asks for the defence gaussian:sigma=2.*--defense 'gaussian:sigma=2'"),
        (
            {"defense_digest": "0" * 64, "defense": "identity"},
            "weights of the defence with digest 0+….*same file or key",
        ),
        ({"task": "detect"}, "task detect, this edge classify: run the same version"),
        ({"split": "L4"}, "serves split L4, not L8"),
        ({"target": "vit"}, "serves target vit"),
        ({"input_size": 224}, "same version"),
        ({"dtypes": [tensor_pb2.DTYPE_INT8]}, "choose one of int8"),
        ({"compressions": [tensor_pb2.COMPRESSION_ZSTD]}, "choose one of zstd"),
        ({"max_message_bytes": 1000}, "accepts 1000"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(cloud, clip, changes, match):
    server = cloud(changes)
    with pytest.raises(UserError, match=match) as error:
        run_edge(EdgeOptions(server.address, str(clip)))
    assert "\n" not in str(error.value)
    assert not server.frames


def test_a_defence_that_the_server_must_undo_needs_a_server_that_does(cloud, clip, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    server = cloud()
    with pytest.raises(UserError, match=f"has to undo permutation:key={key}: start it with --defense 'permutation"):
        run_edge(EdgeOptions(server.address, str(clip), defense=f"permutation:key={key}"))
    assert not server.opens


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"server": "nonsense"}, "HOST:PORT"),
        ({"server": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"dtype": "float8"}, "float16"),
        ({"compression": "zip"}, "zstd"),
        ({"in_flight": 0}, "in_flight"),
        ({"threads": 0}, "threads"),
        ({"fps": 0}, "frame rate"),
        ({"seconds": -1}, "length"),
        ({"video": "/no/such.mp4"}, "no such file"),
        ({"wait_s": 0}, "no cloud server"),
        ({"give_up_s": float("nan")}, "give_up_s"),
    ],
)
def test_bad_options(clip, changes, match):
    options = dataclasses.replace(EdgeOptions("127.0.0.1:9", str(clip), wait_s=0.1), **changes)
    with pytest.raises(UserError, match=match):
        run_edge(options)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"target": "alexnet"}, "unknown target"), ({"split": "L5"}, "L5"), ({"defense": "magic"}, "magic")],
)
def test_unknown_names(cloud, clip, changes, match):
    described = {k: v for k, v in changes.items() if k != "defense"}
    server = cloud(described)
    with pytest.raises(UserError, match=match):
        run_edge(dataclasses.replace(EdgeOptions(server.address, str(clip)), **changes))


def test_report_that_cannot_be_written(cloud, clip, tmp_path):
    (tmp_path / "file").write_text("")
    server = cloud()
    with pytest.raises(UserError, match="cannot be written"):
        run_edge(EdgeOptions(server.address, str(clip), report=tmp_path / "file" / "r.jsonl"))
    with pytest.raises(UserError, match="cannot be written"):
        run_edge(EdgeOptions(server.address, str(clip), truth=tmp_path / "file"))


def test_a_report_whose_disk_fills_up_ends_with_a_whole_line(tmp_path):
    class Full(io.FileIO):
        room = 1000

        def write(self, data):
            part = data[: self.room]
            self.room -= len(part)
            return super().write(part)

    report, path = Report(tmp_path / "r.jsonl", None), tmp_path / "r.jsonl"
    report._file.close()
    report._file = Full(path, "w")
    with pytest.raises(UserError, match="is full: free some space"):
        for i in range(99):
            report.add_answer(Answered(Sent(pb.Frame(sequence=i)), pb.Answer(sequence=i), 0, 1.0))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["sequence"] for row in rows] == list(range(i)) and 0 < i < 99
    report.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(cloud, clip, tmp_path):
    (tmp_path / "r.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="is full"):
        run_edge(EdgeOptions(cloud().address, str(clip), report=tmp_path / "r.jsonl"))


def test_signals(cloud, clip, tmp_path):
    expected = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGKILL: -9}
    server = cloud()
    children = {}
    try:
        for number in expected:  # all at once: most of the time they load PyTorch
            folder = tmp_path / number.name
            basic = ["--server", server.address, "--video", str(clip), "--report", str(folder / "r.jsonl")]
            children[number] = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "edge_client",
                    *basic,
                    "--loop",
                    "--fps",
                    "20",
                    "--truth",
                    str(folder / "truth"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        end = time.monotonic() + 90
        for number, child in children.items():
            path = tmp_path / number.name / "r.jsonl"
            while not (path.exists() and path.read_text().count("\n") >= 10):
                assert child.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            child.send_signal(number)
            start = time.monotonic()
            _, errors = child.communicate(timeout=20)
            assert time.monotonic() - start < 6
            assert (child.returncode, errors) == (expected[number], "")
            text = path.read_text()
            rows = [json.loads(line) for line in text[: text.rindex("\n")].split("\n")]
            assert [r["sequence"] for r in rows] == list(range(len(rows)))
            if number != signal.SIGKILL:
                summary = json.loads(path.with_suffix(".summary.json").read_text())
                assert summary["signal"] == number.name
                assert summary["lost"] == 0 and summary["answered"] == len(rows)
            for row in rows:
                image = cv2.imread(str(path.parent / "truth" / f"{row['sequence']:06d}.png"))
                assert image is not None and image.shape == (64, 64, 3)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
            child.stderr.close()


def test_no_server_is_one_sentence_soon(clip):
    start = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-m", "edge_client", "--server", "127.0.0.1:9", "--video", str(clip), "--wait-s", "1"],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1 and "splitsight cloud" in child.stderr
    assert time.monotonic() - start < 15
