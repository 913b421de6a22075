import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.recording import Recording, RecordingWriter, Session
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import split_inference_pb2, tap_pb2, tensor_pb2

ABOUT = SessionDescription(
    target="resnet18",
    split="L8",
    features=(FeatureSpec("z0", (4, 2, 2)), FeatureSpec("z1", (3,))),
    defense="gaussian:sigma=0.5",
    head_digest="d" * 64,
)
SESSION = Session("s", ABOUT, CodecSpec("float16", "zstd"))


def features(i: int) -> list[np.ndarray]:
    return [np.full((4, 2, 2), i, np.float32), np.arange(3, dtype=np.float32) + i]


def tapped(i: int, session: str = "s", dropped: int = 0) -> tap_pb2.TappedFrame:
    frame = split_inference_pb2.Frame(
        sequence=i, capture_time_us=1000 * i, features=[encode(f, SESSION.codec) for f in features(i)]
    )
    return tap_pb2.TappedFrame(
        session_id=session, frame=frame.SerializeToString(), arrival_time_us=1000 * i + 7, dropped=dropped
    )


def write(folder, numbers, per_part=3) -> None:
    with RecordingWriter(folder, SESSION, frames_per_part=per_part) as writer:
        for i in numbers:
            writer.append(tapped(i))


def check(folder, numbers) -> Recording:
    recording = Recording.open(folder)
    got = list(recording.frames())
    assert [s for s, _, _ in got] == list(numbers)
    for sequence, time_us, arrays in got:
        assert time_us == 1000 * sequence
        for array, expected in zip(arrays, features(sequence), strict=True):
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expected)
    return recording


def test_round_trip(tmp_path):
    write(tmp_path / "a" / "b", range(8))
    recording = check(tmp_path / "a" / "b", range(8))
    assert recording.session == SESSION
    assert recording.skipped == [] and recording.dropped == 0
    assert len(recording) == 8
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
        "session.json",
    ]


def test_parts_keep_the_original_bytes(tmp_path):
    write(tmp_path, range(2))
    table = pq.read_table(tmp_path / "part-00000.parquet")
    assert table.column_names == ["session_id", "sequence", "capture_time_us", "arrival_time_us", "dropped", "frame"]
    assert table.column("frame")[1].as_py() == tapped(1).frame
    assert table.column("arrival_time_us").to_pylist() == [7, 1007]


def test_session_from_the_opening_message():
    message = split_inference_pb2.SessionOpen(
        session_id="s",
        session=ABOUT.proto(),
        codec=tensor_pb2.Codec(dtype=tensor_pb2.DTYPE_FLOAT16, compression=tensor_pb2.COMPRESSION_ZSTD),
        resume_after=-1,
    )
    assert Session.from_open(message) == SESSION
    assert Session.from_json(SESSION.to_json()) == SESSION


def test_frames_sent_twice_count_once_and_other_sessions_not(tmp_path):
    with RecordingWriter(tmp_path, SESSION, frames_per_part=3) as writer:
        for i in (0, 1, 2, 3, 1, 2, 3, 4):
            writer.append(tapped(i))
        writer.append(tapped(9, session="other"))
        writer.append(tapped(5, dropped=2))
    recording = check(tmp_path, range(6))
    assert recording.dropped == 2
    assert recording.sequences == list(range(6))


def test_readable_while_it_is_written(tmp_path):
    with RecordingWriter(tmp_path, SESSION, frames_per_part=3) as writer:
        for i in range(7):
            writer.append(tapped(i))
            assert check(tmp_path, range(i + 1)).skipped == []


def test_same_session_is_continued_after_a_cut(tmp_path):
    writer = RecordingWriter(tmp_path, SESSION, frames_per_part=3)
    for i in range(5):
        writer.append(tapped(i))
    with (tmp_path / "tail.bin").open("ab") as tail:
        tail.write(b"\x20\0\0\0torn")  # as a power cut leaves it
    assert "incomplete" in check(tmp_path, range(5)).skipped[0]
    write(tmp_path, range(5, 9))
    assert check(tmp_path, range(9)).skipped == []


def test_another_session_is_refused(tmp_path):
    write(tmp_path, range(2))
    other = Session.from_json(SESSION.to_json().replace("L8", "L4"))
    with pytest.raises(UserError, match="another recording"):
        RecordingWriter(tmp_path, other)
    check(tmp_path, range(2))


_CHILD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_recording import SESSION, RecordingWriter, tapped
writer = RecordingWriter(Path(sys.argv[1]), SESSION, frames_per_part=4)
for i in range(10_000):
    writer.append(tapped(i))
    print(i, flush=True)
"""


def test_kill_loses_no_frame(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path), os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        last = int(line)
        if last >= 50:
            break
    os.kill(child.pid, signal.SIGKILL)
    last = max([last, *(int(x) for x in child.stdout.read().split("\n")[:-1] if x)])
    child.wait()
    recording = Recording.open(tmp_path)
    got = [s for s, _, _ in recording.frames()]
    assert got == list(range(len(got)))
    assert len(got) > last


@pytest.mark.parametrize("damage", [lambda d: d[:-50], lambda d: b"", lambda d: b"PAR1" + bytes(len(d))])
def test_damaged_part_is_skipped_and_named(tmp_path, damage):
    write(tmp_path, range(9))
    part = tmp_path / "part-00001.parquet"
    part.write_bytes(damage(part.read_bytes()))
    recording = check(tmp_path, [0, 1, 2, 6, 7, 8])
    assert recording.skipped[0].startswith("part-00001.parquet")


def test_damaged_pages_are_skipped(tmp_path):
    write(tmp_path, range(9))
    part = tmp_path / "part-00001.parquet"
    offset = pq.ParquetFile(part).metadata.row_group(0).column(5).data_page_offset
    data = bytearray(part.read_bytes())
    data[offset : offset + 40] = os.urandom(40)
    part.write_bytes(data)
    recording = Recording.open(tmp_path)
    numbers = [s for s, _, _ in recording.frames()]
    assert set(numbers) >= {0, 1, 2, 6, 7, 8}
    assert recording.skipped


def test_frame_that_does_not_fit_the_description_is_skipped(tmp_path):
    with RecordingWriter(tmp_path, SESSION) as writer:
        writer.append(tapped(0))
        frame = split_inference_pb2.Frame(sequence=1, features=[encode(np.ones((4, 2, 2), np.float32), SESSION.codec)])
        writer.append(tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString()))
        frame = split_inference_pb2.Frame(
            sequence=2, features=[encode(np.ones((4, 3, 2), np.float32), SESSION.codec), tensor_pb2.Tensor()]
        )
        writer.append(tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString()))
        writer.append(tapped(3))
    recording = check(tmp_path, [0, 3])
    assert len(recording.skipped) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no session.json"),
        ("{", "does not describe"),
        ('{"schema": "other"}', "does not describe"),
        ('{"schema": "splitsight.recording/1", "target": "x"}', "schema is not splitsight.recording/2"),
        ('{"schema": "splitsight.recording/2", "target": "x"}', "session_id"),
        (SESSION.to_json().replace('"name"', '"nom"'), "features"),
    ],
)
def test_folders_that_are_no_recordings(tmp_path, text, match):
    if text is not None:
        (tmp_path / "session.json").write_text(text)
    with pytest.raises(UserError, match=match.replace(".", r"\.")) as error:
        Recording.open(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_readable(tmp_path):
    with pytest.raises(UserError, match="no such recording"):
        Recording.open(tmp_path / "none")
    write(tmp_path, [])
    with pytest.raises(UserError, match="no readable frames"):
        Recording.open(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged"):
        Recording.open(tmp_path)


def test_full_disk_is_a_sentence_and_keeps_what_was_there(tmp_path, monkeypatch):
    writer = RecordingWriter(tmp_path, SESSION, frames_per_part=3)
    writer.append(tapped(0))
    writer.append(tapped(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match="full"):
        writer.append(tapped(2))
    with pytest.raises(UserError, match="full"):
        writer.close()
    check(tmp_path, range(3))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RecordingWriter(tmp_path / "file" / "x", SESSION)
