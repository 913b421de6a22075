import http.server
import os
import threading
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from splitsight import video
from splitsight.errors import UserError
from splitsight.video import default_video, open_source

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"


def write_clip(path: Path, frames: int = 30, fps: float = 10.0, size: tuple[int, int] = (96, 64)) -> Path:
    """A clip whose frame i is a flat grey of 8·i, so that a decoded frame tells its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), min(255, 8 * i), np.uint8))
    writer.release()
    return path


def number(image: np.ndarray) -> int:
    return round(float(image.mean()) / 8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "grey.mp4")


def test_all_frames_in_rgb_and_whole(tmp_path):
    path = tmp_path / "red.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for _ in range(3):
        writer.write(np.full((64, 96, 3), (0, 0, 200), np.uint8))
    writer.release()
    with open_source(path) as source:
        frames = list(source)
    assert [f.index for f in frames] == [0, 1, 2]
    assert [f.time_s for f in frames] == pytest.approx([0, 0.1, 0.2])
    assert frames[0].image.shape == (64, 96, 3) and frames[0].image.dtype == np.uint8
    assert frames[0].image[..., 0].mean() > 150 > 60 > frames[0].image[..., 2].mean()


def test_size_scales_and_crops(clip):
    with open_source(clip, size=32) as source:
        assert next(iter(source)).image.shape == (32, 32, 3)


def test_sampled_by_media_time(clip):
    with open_source(clip, fps=2) as source:
        frames = list(source)
    assert [f.time_s for f in frames] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [number(f.image) for f in frames] == [0, 5, 10, 15, 20, 25]


def test_a_slow_consumer_gets_the_same_frames(clip):
    with open_source(clip, fps=4) as source:
        fast = [number(f.image) for f in source]
    slow = []
    with open_source(clip, fps=4) as source:
        for f in source:
            time.sleep(0.02)
            slow.append(number(f.image))
        assert source.skipped == 0 and not source.live
    assert slow == fast


def test_a_rate_above_the_clips_repeats_frames(clip):
    with open_source(clip, fps=20, seconds=0.5) as source:
        numbers = [number(f.image) for f in source]
    assert len(numbers) == 10
    assert numbers == sorted(numbers) and set(numbers) == set(range(max(numbers) + 1))


def test_loops_only_when_more_is_wanted(clip):
    with open_source(clip, fps=2, seconds=2) as source:
        assert len(list(source)) == 4
    with open_source(clip, fps=2, seconds=7) as source:
        frames = list(source)
    assert len(frames) == 14
    assert frames[-1].time_s == 6.5
    assert [number(f.image) for f in frames[6:12]] == [0, 5, 10, 15, 20, 25]
    with open_source(clip, fps=2, seconds=7, loop=False) as source:
        assert len(list(source)) == 6
    with open_source(clip, fps=2, loop=True) as source:
        assert len(list(islice(source, 40))) == 40


def test_a_source_can_be_iterated_again(clip):
    with open_source(clip, fps=2) as source:
        assert [number(f.image) for f in source] == [number(f.image) for f in source]


def test_image_folder_in_name_order(tmp_path):
    for i in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), 8 * i, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    with open_source(tmp_path, fps=2) as source:
        frames = list(source)
    assert [(number(f.image), f.time_s) for f in frames] == [(0, 0), (1, 0.5), (2, 1.0)]
    with open_source(tmp_path, fps=2, seconds=3) as source:
        assert [number(f.image) for f in source] == [0, 1, 2, 0, 1, 2]


def test_damaged_image_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "1.png").write_bytes(b"junk")
    with open_source(tmp_path, fps=2) as source, pytest.raises(UserError, match=r"1\.png"):
        list(source)


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


@pytest.mark.parametrize("data", [b"", os.urandom(4096), b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"])
def test_unreadable_files_are_one_sentence_and_silent(tmp_path, data, capfd):
    path = tmp_path / "bad.mp4"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        open_source(path)
    assert str(path) in sentence(error)
    assert capfd.readouterr() == ("", "")


def test_truncated_video(tmp_path, clip):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[:-200])  # the index is at the end
    with pytest.raises(UserError, match="not a readable video"):
        open_source(path)


def test_video_without_frames(tmp_path):
    path = tmp_path / "none.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32)).release()
    with pytest.raises(UserError):
        open_source(path)


@pytest.mark.parametrize(
    ("spec", "match"),
    [("/no/such/file.mp4", "no such file"), ("97", "no camera 97"), ("file-that-is-not.there", "no such file")],
)
def test_nothing_there(spec, match, capfd):
    with pytest.raises(UserError, match=match) as error:
        open_source(spec)
    sentence(error)
    assert capfd.readouterr() == ("", "")


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no PNG or JPEG"):
        open_source(tmp_path)


@pytest.mark.parametrize("kwargs", [{"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"seconds": 0}])
def test_senseless_rates(clip, kwargs):
    with pytest.raises(UserError, match="more than 0"):
        open_source(clip, **kwargs)


def test_refused_url_fails_at_once(capfd):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"127\.0\.0\.1") as error:
        open_source("rtsp://127.0.0.1:9/stream", timeout_s=5)
    assert time.monotonic() - start < 5
    sentence(error)
    assert capfd.readouterr() == ("", "")


def test_silent_url_fails_within_the_timeout():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # accepts, and never says anything
        start = time.monotonic()
        with pytest.raises(UserError, match=r"within 0\.5 s"):
            open_source(f"http://127.0.0.1:{listener.getsockname()[1]}/x.mp4", timeout_s=0.5)
        assert time.monotonic() - start < 3


class _Mjpeg(http.server.BaseHTTPRequestHandler):
    frames = 40

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for i in range(self.frames):
                data = cv2.imencode(".jpg", np.full((48, 64, 3), 5 * i, np.uint8))[1].tobytes()
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
                self.wfile.write(data + b"\r\n")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def stream():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mjpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live"
    server.shutdown()
    server.server_close()


def test_a_stream_is_live_and_late_slots_are_counted(stream):
    with open_source(stream, fps=10, seconds=1.2) as source:
        assert source.live
        frames = []
        for f in source:
            frames.append(f)
            if f.index == 2:
                time.sleep(0.35)
    assert [f.index for f in frames] == list(range(12))
    assert 2 <= source.skipped <= 6
    means = [f.image.mean() for f in frames]
    assert means == sorted(means) and len(set(means)) > 9


class _FakeCamera:
    """Delivers n frames at a rate, then fails, as an unplugged camera does."""

    def __init__(self, n: int, period: float = 0.01) -> None:
        self.n, self.period, self.i, self.released = n, period, 0, False

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self):
        time.sleep(self.period)
        self.i += 1
        if self.i > self.n:
            return False, None
        return True, np.full((8, 8, 3), self.i % 256, np.uint8)

    def release(self) -> None:
        self.released = True


def test_unplugged_camera_is_an_error_and_released(monkeypatch):
    camera = _FakeCamera(10)
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda *_: camera)
    with open_source("0", fps=50) as source, pytest.raises(UserError, match="camera 0 stopped"):
        list(source)
    assert camera.released


def test_camera_gives_the_newest_frame(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda *_: _FakeCamera(1000, 0.005))
    with open_source("0", fps=10, seconds=0.5) as source:
        frames = list(source)
    assert len(frames) == 5
    steps = np.diff([int(f.image[0, 0, 0]) for f in frames])
    assert (steps >= 4).all()  # not the next buffered one
    assert [f.time_s for f in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.08)


def test_an_interrupted_camera_ends_soon(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda *_: _FakeCamera(1000))
    with open_source("0", fps=0.1) as source:
        threading.Timer(0.3, source.interrupt).start()
        start = time.monotonic()
        assert len(list(source)) == 1
        assert time.monotonic() - start < 2


def test_dead_camera_fails_on_opening(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", lambda *_: _FakeCamera(0))
    with pytest.raises(UserError, match="delivers no frames"):
        open_source("0")


def test_default_video():
    path = default_video()
    with open_source(fps=2, size=64) as source:
        frames = list(source)
    assert source.name == str(path)
    assert len(frames) == 8
    assert frames[0].image.std() > 20


def test_default_video_missing(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(_):
        raise PackageNotFoundError

    monkeypatch.setattr(video, "distribution", missing)
    with pytest.raises(UserError, match="--video"):
        default_video()


@pytest.mark.skipif(not CLIPS.is_dir(), reason="shared clips are not here")
def test_real_clips_and_their_damaged_copies(tmp_path, capfd):
    clips = [*sorted(CLIPS.glob("gestures/*.mkv"))[:2], CLIPS / "bottle-detection.mp4"]
    for path in clips:
        with open_source(path, fps=2, size=64, seconds=2) as source:
            assert len(list(source)) == 4
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            with open_source(cut, fps=2, size=64) as source:
                assert list(source)  # a cut Matroska file plays up to the cut
        except UserError as error:
            assert str(cut) in str(error)
        cut.write_bytes(path.read_bytes()[:300])
        with pytest.raises(UserError):
            open_source(cut)
    assert capfd.readouterr().err == ""
