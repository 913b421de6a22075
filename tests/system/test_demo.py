"""The demonstration as a user starts it: real processes, a real video, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from splitsight.data import write_png
from splitsight.recording import Recording
from splitsight.summary import read_summary

FPS = 2


@pytest.fixture
def start(models: list[str]) -> Iterator:
    started: list[subprocess.Popen] = []

    def begin(out: Path, seconds: float, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "scenarios", "demo", "--seconds", str(seconds), "--fps", str(FPS)]
        process = subprocess.Popen(
            [*command, "--out", str(out), "--no-web", "--threads", "1", "--seed", "1", *models, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait(10)


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for_answers(out: Path, number: int, process: subprocess.Popen) -> None:
    lines = out / "edge.jsonl"
    end = time.monotonic() + 120
    while not lines.is_file() or lines.read_bytes().count(b"\n") < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def assert_gone(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def assert_readable(out: Path, least: int) -> None:
    recording = Recording.open(out / "recording")
    assert (recording.session.about.target, recording.session.about.split) == ("resnet18", "L8")
    frames = list(recording.frames())
    assert len(frames) >= least
    assert [sequence for sequence, *_ in frames] == list(range(len(frames)))
    assert frames[0][2][0].shape == (128, 8, 8)


def test_demo(start, models: list[str], tmp_path: Path) -> None:
    out, gallery = tmp_path / "run", tmp_path / "gallery"
    gallery.mkdir()
    for i in range(8):
        write_png(gallery / f"{i}.png", np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8))
    process = start(out, 8, "--gallery", str(gallery), "--gallery-size", "8")
    wait_for_answers(out, 1, process)
    children = children_of(process)
    assert len(children) >= 3
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert printed.strip() == str(out / "index.html")
    assert_gone(children)

    frames = 8 * FPS
    summary = read_summary(out / "summary.json")
    assert (summary.target, summary.split) == ("resnet18", "L8")
    assert (summary.serving.frames, summary.serving.lost) == (frames, 0)
    assert 0 < summary.serving.p50_ms <= summary.serving.p99_ms
    assert summary.serving.fps == pytest.approx(FPS, rel=0.05)
    assert summary.live.windows == frames // 4
    assert summary.methods["preview"].n == frames and summary.methods["window"].n > 0
    run = summary.environment.model_extra["run"]
    assert set(run["peak_rss_mb"]) == {"cloud", "adversary", "edge", "demo"}
    assert all(0 < mb < 2500 for mb in run["peak_rss_mb"].values())
    assert set(summary.environment.weights) == {"target", "prior", "evaluator:mbconv"}

    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert [r["sequence"] for r in rows] == list(range(frames))
    assert all(r["answered"] and r["prediction"] and r["bytes"] > 8192 and r["rtt_ms"] > 0 for r in rows)
    assert_readable(out, frames)

    video = cv2.VideoCapture(str(out / "demo.mp4"))
    shown = 0
    while video.read()[0]:
        shown += 1
    assert shown == frames
    assert cv2.imread(str(out / "grid.png")) is not None
    page = (out / "index.html").read_text()
    command = summary.environment.model_extra["run"]["command"]
    assert command.startswith("splitsight demo --seconds 8 ") and f"--out {out}" in command and command in page
    assert "recognised:mbconv" in summary.methods["window"].model_extra and "white-box" in page
    assert {"cloud.log", "edge.log", "adversary.log"} <= {p.name for p in (out / "logs").iterdir()}
    for tier in summary.live.tiers.values():
        assert (tier.match.gallery, tier.match.features) == (8, "pixels-16x16")
    assert all(1 <= r["preview_rank"] <= 8 for r in rows)

    # what was recorded can be attacked afterwards, with the edge's originals for the figures
    for method, extra in (("window", ["--time-budget", "2"]), ("preview", ["--gallery-size", "6"])):
        again = tmp_path / method
        command = [sys.executable, "-m", "scenarios", "attack", method, "--recording", str(out / "recording"), "--json"]
        command += ["--truth", str(out / "truth"), "--limit", "6", "--threads", "1", "--out", str(again), *models]
        command += extra if method == "window" else [*extra, "--gallery", str(out / "truth")]
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert json.loads(run.stdout) == json.loads((again / "summary.json").read_text())
        found = read_summary(again / "summary.json").methods[method]
        assert found.n == 6 and found.psnr.low <= found.psnr.mean <= found.psnr.high
        assert [r["name"] for r in pq.read_table(again / "rows.parquet").to_pylist()] == [f"{i:06d}" for i in range(6)]
        assert len(list((again / "reconstructions").iterdir())) == 6 and (again / "grid.png").is_file()
        assert (found.match is None) == (method == "window")


def test_a_defence_beside_none_until_its_budget_is_spent(start, tmp_path: Path) -> None:
    """--compare: the same frames without the defence first; the budget ends the stream, and loses nothing."""
    out = tmp_path / "run"
    process = start(out, 3, "--defense", "clip:norm=60+gaussian:epsilon=400", "--epsilon-budget", "1500", "--compare")
    _, said = process.communicate(timeout=280)
    assert process.returncode == 3, said
    assert "the privacy budget ε = 1500 is spent" in said.splitlines()[-1] and "index.html" in said.splitlines()[-1]
    summary = read_summary(out / "summary.json")
    epsilon, plain = summary.live.epsilon, summary.live.undefended
    assert (epsilon.frames, epsilon.budget, epsilon.delta) == (4, 1500, 1e-5)
    assert epsilon.frame == pytest.approx(400) and 400 < epsilon.stream <= 1500
    assert plain.frames == summary.serving.frames == 4 and 0 <= plain.agreement.mean <= 1
    assert plain.tiers["preview"].n == 4
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert [r["epsilon"] for r in rows] == sorted(r["epsilon"] for r in rows) and rows[-1]["epsilon"] <= 1500
    assert all(r["undefended_says"] and r["undefended_preview_psnr"] > 0 for r in rows)
    assert {r["defense"] for r in rows} == {"clip:norm=60+gaussian:epsilon=400"}
    assert read_summary(out / "undefended" / "summary.json").serving.frames == 3 * FPS
    page = (out / "index.html").read_text()
    assert "clip:norm=60+gaussian:epsilon=400" in page and "without the defence" in page and "ε of the stream" in page
    assert cv2.imread(str(out / "grid.png")) is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compare"], "--compare shows a defence beside none: name one with --defense"),
        (["--epsilon-budget", "8"], "the defence identity guarantees nothing"),
        (["--defense", "clip:norm=9+gaussian:epsilon=8", "--epsilon-budget", "4"], "the budget ε = 4 is spent"),
        (["--defense", "gaussian:epsilon=8"], "there is no clip before it"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence_before_anything_starts(start, tmp_path: Path, options, words) -> None:
    process = start(tmp_path / "run", 3, *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ctrl_c(start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, 60)
    wait_for_answers(out, 3, process)
    children = children_of(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert_gone(children)
    assert_readable(out, 3)
    assert json.loads((out / "summary.json").read_text())["environment"]["run"]["complete"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill(start, tmp_path: Path) -> None:
    """A killed server ends its run with a sentence; a killed demo takes its children with it (two runs at once)."""
    outs = [tmp_path / "server", tmp_path / "demo"]
    processes = [start(out, 60) for out in outs]
    children = []
    for out, process in zip(outs, processes, strict=True):
        wait_for_answers(out, 2, process)
        children.append(children_of(process))
    next(c for c in children[0] if "cloud" in c.cmdline()).kill()
    processes[1].kill()

    _, said = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("splitsight: the cloud server was ended by SIGKILL unexpectedly")
    assert_gone(children[0])

    _, alive = psutil.wait_procs(children[1], timeout=30)
    assert not alive
    for out in outs:
        assert_readable(out, 2)
