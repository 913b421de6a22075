"""Real processes: an evaluation is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

_NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2, 1), nn.Flatten(1), nn.Linear(256, 3)
    )
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(_NET)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        cv2.imwrite(
            str(tmp_path / "pictures" / f"{i}.png"), rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        )
    return tmp_path


def _start(folder, *more):
    given = ["--target", "net.py:build", "--input", "3x16x16", "--images", "pictures", "--evaluator", "none"]
    given += ["--attacks", "do", "--limit", "4", "--splits", "1,2", "--quick", "--out", "out", "--device", "cpu", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "scenarios", "splits", *given],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_evaluation_goes_on(folder):
    child = _start(folder)
    parts, end = folder / "out" / "parts", time.monotonic() + 200
    try:
        while not parts.is_dir() or len(list(parts.glob("*.parquet"))) < 3:
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in parts.glob("*.parquet")}
    assert not (folder / "out" / "summary.json").exists()
    child = _start(folder, "--json")
    out, errors = child.communicate(timeout=200)
    assert (child.returncode, errors) == (0, "")
    assert all((parts / name).stat().st_mtime_ns == then for name, then in before.items())
    assert len(list(parts.glob("*.parquet"))) == 8 and not list(parts.glob(".*"))
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert json.loads(out) == summary["recommendation"]
    assert summary["target"] == "net:build@16" and [s["split"] for s in summary["splits"]] == ["1", "2"]
    # nothing keeps these: one sentence, and what can be typed instead
    child = _start(folder, "--json", "--max-latency-ms", "0.001")
    out, errors = child.communicate(timeout=200)
    assert (child.returncode, json.loads(out)) == (2, None)
    assert errors.startswith("splitsight: no split point keeps every limit over wifi: relax to --max-latency-ms")
    assert errors.count("\n") == 1
