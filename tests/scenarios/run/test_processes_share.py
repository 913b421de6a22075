"""Real processes: killed in the middle, and several on one run."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest

IMAGES = 10


@pytest.fixture
def path(scenario, parquet):
    cells = [{"split": "L16", "method": "fake", "with": {"sleep": 0.3}, "batch": 1}]
    return scenario(cells=cells, data={"path": str(parquet), "count": IMAGES, "gallery": 12})


def command(path, out, *options):
    code = "import sys; from scenarios.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, "run", path, "--out", str(out), "--threads", "1", *options]


def log(tmp_path):
    return sorted(int(line.split()[1]) for line in (tmp_path / "fake.log").read_text().splitlines())


def indices(out):
    return [r["index"] for r in pq.read_table(out / "rows.parquet").to_pylist()]


def test_kill_9_in_the_middle_loses_no_row(path, tmp_path, environment):
    out = tmp_path / "out"
    process = subprocess.Popen(command(path, out), env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("parts/*.parquet")}
    (out / "parts" / f".c000-0009.parquet.{process.pid}").write_bytes(b"half of")
    assert 3 <= len(done) < IMAGES
    assert not (out / "rows.parquet").exists()
    subprocess.run(command(path, out), env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert indices(out) == list(range(IMAGES))
    # what was there was not touched; at most the one in hand was begun twice
    assert all((out / "parts" / name).stat().st_mtime_ns == at for name, at in done.items())
    assert log(tmp_path).count(0) == 1 and len(log(tmp_path)) <= IMAGES + 1
    assert (out / "index.html").is_file() and not list(out.glob("**/.*"))


def test_processes_and_workers_share_without_repeating(path, tmp_path, environment):
    out = tmp_path / "out"
    pair = [
        subprocess.Popen(command(path, out, *options), env=environment, stdout=subprocess.DEVNULL)
        for options in (["--workers", "2"], [])
    ]
    try:
        assert [process.wait(200) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert log(tmp_path) == list(range(IMAGES))
    assert indices(out) == list(range(IMAGES))


def test_ctrl_c_ends_every_worker_and_keeps_the_rows(path, tmp_path, environment):
    out = tmp_path / "out"
    process = subprocess.Popen(command(path, out, "--workers", "2"), env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 150
        while not list(out.glob("parts/*.parquet")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert len(workers) == 2 and not any(psutil.pid_exists(pid) for pid in workers)
        done = list(out.glob("parts/*.parquet"))
        assert done and all(pq.read_table(part).num_rows == 1 for part in done)
    finally:
        process.kill()
        process.wait()
