import http.server
import logging
import os
import struct
import subprocess
import threading
import time
from itertools import islice
from pathlib import Path

import cv2
import imageio_ffmpeg
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


def test_image_folder_in_natural_order(tmp_path):
    for i in range(1, 13):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), 8 * i, np.uint8))
    (tmp_path / "._1.png").write_bytes(b"\x00\x05\x16\x07")
    with open_source(tmp_path) as source:
        assert [number(f.image) for f in source] == list(range(1, 13))


@pytest.fixture(scope="module")
def vp9(tmp_path_factory) -> Path:
    """40 frames at 20 a second, each a key frame, in a container whose packets are easily found."""
    path = tmp_path_factory.mktemp("vp9") / "clip.ivf"
    pixels = np.repeat(np.arange(40, dtype=np.uint8) * 6, 48 * 64 * 3).tobytes()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48"]
    command += ["-r", "20", "-i", "-", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "1"]
    command += ["-auto-alt-ref", "0", "-lag-in-frames", "0", str(path)]
    subprocess.run(command, input=pixels, check=True)
    return path


def damage(path: Path, out: Path, bad: set[int]) -> Path:
    """Overwrite the beginning of some packets of an IVF file."""
    data = bytearray(path.read_bytes())
    at, k = 32, 0
    while at < len(data):
        size = struct.unpack("<I", data[at : at + 4])[0]
        if k in bad:
            data[at + 12 : at + 12 + min(size, 16)] = bytes(min(size, 16))
        at += 12 + size
        k += 1
    assert k == 40
    out.write_bytes(data)
    return out


def shown(image: np.ndarray) -> int:
    return round(float(image.mean()) / 6)


def test_reading_goes_on_behind_bad_packets(vp9, tmp_path, caplog):
    clip = damage(vp9, tmp_path / "hole.ivf", {13, 14, 15, 25})
    with caplog.at_level(logging.WARNING, "splitsight"), open_source(clip) as source:
        frames = list(source)
        again = list(source)
    kept = [i for i in range(40) if i not in {13, 14, 15, 25}]
    assert [shown(f.image) for f in frames] == kept == [shown(f.image) for f in again]
    assert [f.time_s for f in frames] == pytest.approx([i / 20 for i in kept])
    assert source.lost == 4
    assert len(caplog.messages) == 1 and "hole.ivf is damaged: 4 of its frames" in caplog.messages[0]


def test_a_damaged_clip_starts_again_only_at_its_end(vp9, tmp_path):
    clip = damage(vp9, tmp_path / "hole.ivf", {13, 14, 15, 25})
    with open_source(clip, fps=4, seconds=5) as source:
        frames = list(source)
    assert [f.time_s for f in frames] == pytest.approx([i / 4 for i in range(20)])
    # 15 and 25 are gone: the next one is shown in their place
    clip_once = [0, 5, 10, 16, 20, 26, 30, 35]
    assert [shown(f.image) for f in frames] == (clip_once * 3)[:20]
    assert source.lost == 4  # not once more each time


def test_a_clip_without_its_first_frames(vp9, tmp_path):
    clip = damage(vp9, tmp_path / "late.ivf", set(range(10)))
    with open_source(clip) as source:
        assert [shown(f.image) for f in source] == list(range(10, 40))
    assert source.lost == 10


def test_a_clip_that_ends_before_its_time(vp9, tmp_path):
    path = tmp_path / "cut.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(vp9), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with open_source(path) as source:
        n = len(list(source))
    assert 5 < n < 35 and source.lost == 40 - n


def test_whole_clips_have_no_losses(clip, vp9, tmp_path, caplog):
    variable = tmp_path / "variable.mkv"
    gaps = "select='not(between(n,5,9))*not(between(n,14,15))*not(eq(n,20))*not(between(n,22,30))'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(vp9), "-vf", gaps, "-fps_mode", "vfr"]
    subprocess.run([*command, "-c:v", "libx264", str(variable)], check=True)
    for path, count in ((clip, 30), (vp9, 40), (variable, 23), (default_video(), None)):
        with open_source(path) as source:
            frames = list(source)
        assert source.lost == 0 and len(frames) == (count or len(frames))
    assert not caplog.messages


@pytest.mark.parametrize("name", ["10:15:00.mp4", "clip:1.mp4", "http:.mp4", "0", "a%03d.mp4", "x y#?.mp4"])
def test_a_path_is_a_path(clip, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    for spec in (name, f"./{name}", tmp_path / name, Path(name)):
        with open_source(spec, fps=2) as source:
            assert not source.live and len(list(source)) == 6


def test_file_names_that_are_not_utf8(clip, tmp_path):
    name = tmp_path / os.fsdecode(b"latin\xe9.mp4")
    name.write_bytes(clip.read_bytes())
    with open_source(str(name), fps=2, seconds=7) as source:
        assert len(list(source)) == 14  # it is opened three times
    name.write_bytes(b"junk" * 99)
    with pytest.raises(UserError, match=r"latin\\xe9\.mp4 is not a readable video"):
        open_source(name)
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "x.png"), np.full((8, 8, 3), 80, np.uint8))
    (tmp_path / "x.png").rename(folder / os.fsdecode(b"\xfe.png"))
    with open_source(folder) as source:
        assert [number(f.image) for f in source] == [10]


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
    with open_source(fps=2, size=64, loop=False) as source:
        frames = list(source)
    assert source.name == str(path)
    assert len(frames) >= 60  # as many as the demonstration plays, so that none comes twice
    assert all(frame.image.std() > 20 for frame in frames)


def test_default_video_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(video, "_DEFAULT", tmp_path / "away.mp4")
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
    # what was lost is said by the commands, in our words; the decoder itself says nothing
    assert all(line.startswith("splitsight: ") for line in capfd.readouterr().err.splitlines())
