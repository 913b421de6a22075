"""``splitsight defend`` on tiny models: in this process, and as processes that are killed and share."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from tiny import save_prior

from scenarios.defend import committed, plan, standard
from scenarios.defend.command import DefendOptions, defend
from splitsight.defenses import parse_defense
from splitsight.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FAST = plan.Attacker("do", None, (("iterations", 4),), still=True)
CONTRACT = {"defense", "config", "utility", "attacks", "strongest", "epsilon", "delta", "bytes", "edge_ms", "dominated"}


@pytest.fixture
def fast(monkeypatch, tiny_lab):
    monkeypatch.setattr(plan, "attackers", lambda wanted, quick: [FAST])


def _options(pictures, out, **more):
    base = {"images": pictures, "out": out, "splits": ("S1",), "evaluators": ("none",), "limit": 3, "workers": 1}
    return DefendOptions(**{"quick": True, "defenses": "noise:ratio=0.5;topk:keep=0.3", **base, **more})


def test_a_whole_evaluation(fast, pictures, tmp_path):
    out = defend(_options(pictures, tmp_path / "out"))
    summary = json.loads((out / "summary.json").read_text())
    found = {d["defense"]: d for d in summary["defenses"]}
    assert list(found) == ["identity", "noise:ratio=0.5", "topk:keep=0.3"]
    for one in found.values():
        assert set(one) >= CONTRACT and set(one["utility"]) >= {"accuracy", "accuracy_undefended"}
        assert set(one["strongest"]) >= {"attack", "ssim"} and one["strongest"]["attack"] in one["attacks"]
        for attack in one["attacks"].values():
            assert set(attack) >= {"adaptive", "psnr", "ssim", "matched_top1", "recognised"}
    assert set(found["noise:ratio=0.5"]["attacks"]) == {"do, not told", "do", "do, 16 still frames"}
    # the same image gives the same features: a second frame tells nothing
    assert set(found["topk:keep=0.3"]["attacks"]) == {"do, not told", "do"} and set(found["identity"]["attacks"]) == {
        "do"
    }
    assert found["noise:ratio=0.5"]["config"]["noise"]["ratio"] == 0.5
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 3 * 6 and {(r["adaptive"], r["static"]) for r in rows} == {(True, 1), (False, 1), (True, 16)}
    page = (out / "index.html").read_text()
    assert "their failure is not strength" in page and "noise:ratio=0.5" in page and "Give --train-data" in page
    assert len(list((out / "grids").glob("*.png"))) == 2
    assert "http://" not in page.split("<main>")[1] and "https://" not in page.split("<main>")[1]


def test_a_committed_file_has_the_figures_of_its_runs(fast, pictures, tmp_path):
    runs = [
        defend(_options(pictures, tmp_path / name, defenses=text))
        for name, text in (("a", "noise:ratio=0.5"), ("b", "topk:keep=0.3;noise:ratio=0.5"))
    ]
    assert committed.collect(runs, tmp_path / "tiny.parquet") == 3 * 6
    found, sizes = committed.read(tmp_path / "tiny.parquet")
    assert [one.defense for one in found] == ["identity", "noise:ratio=0.5", "topk:keep=0.3"]
    wanted = {d["defense"]: d for run in runs for d in json.loads((run / "summary.json").read_text())["defenses"]}
    for one in found:
        same = wanted[one.defense]
        assert one.attacks.keys() == same["attacks"].keys()
        assert one.strongest.ssim == pytest.approx(same["strongest"]["ssim"], abs=1e-6)
        assert one.utility.accuracy == same["utility"]["accuracy"]
    lines = list(committed.table(found, "S1"))
    assert len(lines) == 5 and lines[2].startswith("| `identity`")
    assert f"{found[1].strongest.ssim:.3f}" in next(line for line in lines if "noise" in line)
    assert "3 images" in committed.sizes_of(found, sizes) and not list(committed.table(found, "S2"))[2:]


def test_of_a_run_that_was_stopped_what_is_there_is_filed(fast, pictures, tmp_path):
    out = defend(_options(pictures, tmp_path / "out"))
    for part in sorted((out / "parts").glob("*.parquet"))[1:]:
        part.unlink()
    assert committed.collect([out], tmp_path / "tiny.parquet") == 3
    found, _ = committed.read(tmp_path / "tiny.parquet")
    assert [one.strongest is None for one in found] == [False, True, True]


def test_a_file_of_weights_is_named_without_its_folder():
    assert committed._named("pac:weights=/a/b.c/pac-x.safetensors,budget=1") == "pac:weights=pac-x,budget=1"
    assert committed._named("vib:weights=vib-L8+clip:norm=1") == "vib:weights=vib-L8+clip:norm=1"


def test_going_on_computes_nothing_again_and_other_defences_are_refused(fast, pictures, tmp_path):
    options = _options(pictures, tmp_path / "out", defenses="noise:ratio=0.5")
    out = defend(options)
    before = {p: p.stat().st_mtime_ns for p in [*out.glob("parts/*"), *out.glob("measures/*")]}
    defend(options)
    assert before == {p: p.stat().st_mtime_ns for p in [*out.glob("parts/*"), *out.glob("measures/*")]}
    with pytest.raises(UserError, match="give another --out, or --overwrite"):
        defend(_options(pictures, out, defenses="noise:ratio=2"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"defenses": "noise:ratio=-1"}, "ratio"),
        ({"defenses": " ; "}, "--defenses names none"),
        ({"defenses": "gaussian:epsilon=8"}, "put clip:norm=C directly before it"),
        ({"splits": ("S9",)}, "S9"),
        ({"images": Path("nowhere")}, "no such file or folder: nowhere"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(fast, pictures, tmp_path, wrong, said):
    with pytest.raises(UserError, match=said) as caught:
        defend(_options(pictures, tmp_path / "out", **wrong))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_attacks_by_name():
    assert plan.attackers([], quick=False) == list(plan.ATTACKERS)
    (one,) = plan.attackers(["best:sharp"], quick=True)
    assert (one.method, one.setting, one.still) == ("best", "sharp", True)
    with pytest.raises(UserError, match="solves windows"):
        plan.attackers(["best-multi"], quick=False)
    with pytest.raises(UserError, match="unknown setting"):
        plan.attackers(["best:fast"], quick=False)


def test_all_defences_suit_the_split(tiny_target, tmp_path):
    import torch

    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = standard.standard(tiny_target, "S1", images)
    found = [standard.fitted(tiny_target, "S1", text, images) for text in wanted]
    names = {part.partition(":")[0] for text in found for part in text.split("+")}
    assert names >= {"noise", "clip", "gaussian", "laplace", "dfil", "fsinfo", "pac", "quantise", "topk", "dropout"}
    assert names >= {"permutation", "rotation"}
    assert [standard.fitted(tiny_target, "S1", text, images) for text in found] == found
    private = standard.standard(tiny_target, "S1", images, standard.DP)
    assert [text.partition("epsilon=")[2].partition(",")[0] for text in private] == ["1", "2", "4", "8", "16"]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_norms_of_any_size_make_a_chain(scale, tiny_target, monkeypatch):
    import torch

    head = tiny_target.cut("S1").head
    monkeypatch.setattr(tiny_target, "cut", lambda split: SimpleNamespace(head=lambda x: [scale * z for z in head(x)]))
    monkeypatch.setattr(standard, "_trained", lambda target, split: [])
    found = standard.standard(tiny_target, "S1", torch.rand(4, 3, 16, 16))
    assert sum(str(parse_defense(text)).startswith("clip:") for text in found) == 3


CODE = """
import sys
sys.path.insert(0, {tests!r})
from tiny import TinyTarget
from splitsight.targets import TARGETS
from scenarios.defend import plan
TARGETS.register("tiny")(lambda weights: TinyTarget())
plan.attackers = lambda wanted, quick: [plan.Attacker("do", None, (("iterations", 60),), still=True)]
from scenarios.cli import main
main(sys.argv[1:])
"""


def test_a_kill_loses_nothing_and_two_share(pictures, tmp_path):
    out, prior = tmp_path / "out", save_prior(tmp_path / "prior")
    code = CODE.format(tests=str(ROOT / "tests"))
    options = ["--target", "tiny", "--split", "S1", "--prior", prior, "--images", str(pictures), "--evaluator", "none"]
    options += ["--defenses", "noise:ratio=0.5;quantise:bits=2", "--quick", "--limit", "6", "--out", str(out)]
    command = [sys.executable, "-c", code, "defend", *options, "--workers", "1", "--threads", "1"]
    quiet = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": ROOT, "stdout": subprocess.DEVNULL}
    first = subprocess.Popen(command, **quiet)
    deadline = time.monotonic() + 150
    while not list(out.glob("parts/*.parquet")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("parts/*.parquet")}
    assert kept and not (out / "summary.json").exists()
    pair = [subprocess.Popen(command, **quiet) for _ in range(2)]
    try:
        assert [process.wait(200) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert all((out / "parts" / name).stat().st_mtime_ns == at for name, at in kept.items())
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 6 * 6 and len({(r["cell"], r["index"]) for r in rows}) == len(rows)
    assert len(json.loads((out / "summary.json").read_text())["defenses"]) == 3
