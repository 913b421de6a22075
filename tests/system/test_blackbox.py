"""The black-box path against an oracle in another process, with a network that this one has never seen."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import quiet_denoiser

from adversary.blackbox.command import PairOptions
from adversary.blackbox.queries import QueryStore
from adversary.priors._train_autoencoder import build_autoencoder
from adversary.priors._train_denoiser import build_denoiser, build_text_encoder
from adversary.priors.prior import Prior
from splitsight.captions import build_tokenizer
from splitsight.recording import RecordingWriter, Session
from splitsight.summary import read_summary
from splitsight.targets import TARGETS
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import split_inference_pb2, tap_pb2

ROOT = Path(__file__).resolve().parents[2]
OURS = {"splitsight", "adversary", "edge_client", "cloud_server", "scenarios"}
F1 = {"splitsight.targets", "splitsight.split", "edge_client", "cloud_server", "scenarios"}
PATH = ["adversary.blackbox.command"]
# a method is found by name among all attacks, which the registry imports
PATH += [f"adversary.attacks.{file.stem}" for file in (ROOT / "adversary" / "attacks").glob("[a-z_]*.py")]
PATH += ["adversary.live.run", "adversary.live.blackbox"]
# as `splitsight` starts, with whatever could build a target out of reach
BLIND = """
import sys
for name in ("splitsight.targets", "splitsight.split", "edge_client", "cloud_server", "adversary.training"):
    sys.modules[name] = None
from scenarios.cli import main
main(sys.argv[1:])
"""


def _file(module):
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(module):
    """Modules of ours that a module names anywhere, and the packages they are in."""
    found = set()
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            names = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[: i + 1]) for i in range(len(parts)) if parts[0] in OURS}
    return {name for name in found if _file(name).is_file()}


def test_no_import_leads_to_f1():
    seen, left = set(), list(PATH)
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += _imports(module) - seen
    assert {"adversary.blackbox.unet", "adversary.blackbox.queries", "splitsight.data"} <= seen
    assert not seen & F1
    # the check sees what it should
    assert "splitsight.targets" in _imports("adversary.training")
    assert "splitsight.split" in _imports("splitsight.targets")


def test_no_option_names_weights_or_a_network_to_build():
    names = {field.name for field in dataclasses.fields(PairOptions)}
    assert not names & {"weights", "head", "start", "model"}
    # two names that the oracle's own are compared with, and nothing is built from
    assert {"target", "split"} <= names


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A prior of 16 pixels, pictures to ask about, and an oracle with a budget of 47."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"]])
    parts = build_autoencoder(8, 8), build_denoiser(8, 4, 16, width=32, layers=1), FlowMatchEulerDiscreteScheduler()
    Prior(*parts, build_text_encoder(tokenizer, 16), tokenizer, pixel_denoiser=quiet_denoiser()).save(folder / "tiny")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        cv2.imwrite(str(folder / "images" / f"{i:02d}.png"), rng.integers(0, 255, (16, 16, 3), np.uint8))
    log = folder / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("foreign_oracle.py")), "47"],
            stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=_environment(folder),
        )  # fmt: skip
    try:
        ready = json.loads(process.stdout.readline() or "{}")
        assert ready.get("event") == "ready", log.read_text()
        yield folder, f"127.0.0.1:{ready['port']}", process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _environment(folder):
    return {**os.environ, "SPLITSIGHT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", BLIND, *map(str, arguments)],
        capture_output=True, text=True, timeout=250, cwd=ROOT, env=_environment(folder),
    )  # fmt: skip


def _train(folder, address, *arguments):
    common = ["--data", folder / "images", "--prior", folder / "tiny", "--test-queries", 16, "--steps", 2]
    return _run(folder, "train", "inversion", "--oracle", address, *common, *arguments)


def test_an_attacker_that_knows_nothing_of_f1_but_its_answers(world):
    folder, address, process = world
    assert "foreign" not in TARGETS.names()
    # the budget ends it; what was answered is kept
    done = _train(folder, address, "--method", "net-do", "--queries", 40)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert "the budget of 47 queries is spent" in done.stderr and "31 pairs for training and 16" in done.stderr
    done = _train(folder, address, "--method", "net-do", "--queries", 31, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    network = Path(done.stdout.strip())
    assert network == folder / "out" / "foreign-A-net-do.safetensors"
    # the oracle goes; what it answered trains another network, into the cache
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    (pairs,) = (folder / "home" / "queries").iterdir()
    done = _train(folder, address, "--method", "net-db", "--queries", 31, "--pairs", pairs)
    assert done.returncode == 0, done.stderr
    cached = Path(done.stdout.strip())
    assert cached.parent == folder / "home" / "inversion"
    done = _train(folder, address, "--method", "net-best", "--queries", 31, "--pairs", pairs, "--set", "width=8")
    assert done.returncode == 0, done.stderr
    # which runs live as far as a tap that is not there, with nothing that could build a target
    live = ["adversary", "--attack", "net-best", "--tap", "127.0.0.1:9", "--out", folder / "live", "--patience", 0.1]
    live += ["--target", "foreign", "--split", "A", "--prior", folder / "tiny"]
    done = _run(folder, *live)
    assert done.returncode == 1 and "tap" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = _run(folder, *live, "--weights", folder / "none")
    assert done.returncode == 2 and "has no use for --weights" in done.stderr

    # features that a tap recorded: of pictures that were asked about for testing
    store = QueryStore.open(pairs)
    test = store.pairs("test", 4)
    session = Session("s", store.victim)
    with RecordingWriter(folder / "recording", session) as writer:
        for i in range(4):
            tensor = encode(test.features[0][i], CodecSpec(), store.victim.features[0])
            frame = split_inference_pb2.Frame(sequence=i, capture_time_us=i, features=[tensor])
            writer.append(tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString(), arrival_time_us=i))
    os.environ["SPLITSIGHT_HOME"], before = str(folder / "home"), os.environ.get("SPLITSIGHT_HOME")
    try:
        _attack(folder, network, test.images)
    finally:
        os.environ.pop("SPLITSIGHT_HOME")
        if before is not None:
            os.environ["SPLITSIGHT_HOME"] = before


def _attack(folder, network, images):
    from scenarios.attack import run_attack
    from splitsight.data import write_png
    from splitsight.errors import UserError

    (folder / "truth").mkdir()
    for i, image in enumerate(images):
        write_png(folder / "truth" / f"{i:06d}.png", image)
    common = {"recording": folder / "recording", "target": "foreign", "split": "A", "prior": str(folder / "tiny")}
    begin = time.monotonic()
    out = run_attack("net-do", out=folder / "do", network=network, truth=folder / "truth", **common).out
    assert time.monotonic() - begin < 60
    figures = read_summary(out / "summary.json").methods["net-do"]
    assert figures.n == 4 and figures.iterations == 0 and figures.model_evaluations == 0 and figures.psnr.mean > 3
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert {r["queries"] for r in rows} == {"31"}
    assert len(list((out / "reconstructions").iterdir())) == 4
    # from the cache, without originals
    run_attack("net-db", out=folder / "db", **common)
    with pytest.raises(UserError, match="no net-dmb network for foreign at A"):
        run_attack("net-dmb", out=folder / "none", **common)
    with pytest.raises(UserError, match=r"another method \(net-do, not net-db\)"):
        run_attack("net-db", out=folder / "none", network=network, **common)
    with pytest.raises(UserError, match=r"4 frames are no whole windows of 3|fewer than|another number of frames"):
        run_attack("net-do-multi", out=folder / "none", network=network, frames=3, **common)
    with pytest.raises(UserError, match="dmb has no use for --network"):
        run_attack("dmb", out=folder / "none", network=network, **{**common, "target": "resnet18"})
    with pytest.raises(UserError, match="give one --prompt"):
        run_attack("net-dmb", out=folder / "none", prompts=["goldfish", "a goldfish"], **common)
    assert not (folder / "none").exists()
    # measured on what it was trained on, it would show nothing
    trained = QueryStore.open(next((folder / "home" / "queries").iterdir())).pairs("train", 1)
    write_png(folder / "truth" / "000002.png", trained.images[0])
    with pytest.raises(UserError, match="'000002' is among the pictures that the network was trained on"):
        run_attack("net-do", out=folder / "none", network=network, truth=folder / "truth", **common)
