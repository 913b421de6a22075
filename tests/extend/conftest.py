"""The pages' examples as an installed package, and the command line beside it."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pages import write_package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder that, on the path, has the package installed."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    write_package(source)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", folder, source], check=True)
    return folder


@pytest.fixture(scope="session")
def splitsight(site, tmp_path_factory):
    """Run a command as a user who has the package does; returns its standard output."""
    there = {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "SPLITSIGHT_HOME": str(tmp_path_factory.mktemp("home")),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    folder = tmp_path_factory.mktemp("work")

    def run(*arguments):
        command = [sys.executable, "-m", "scenarios", *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, **there}, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "splitsight:" not in done.stderr, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of two smooth pictures."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(2):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(coarse, (96, 96), interpolation=cv2.INTER_CUBIC))
    return folder
