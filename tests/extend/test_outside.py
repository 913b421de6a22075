"""A package made of the pages' examples: every command takes what it adds."""

import json
import re
from itertools import chain

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import KINDS, PAGES, blocks

ADDED = {
    "attacks": ["pixels-lbfgs"],
    "defenses": ["rounding"],
    "metrics": ["edges"],
    "priors": ["tiny"],
    "scenarios": ["outside"],
    "targets": ["meter", "mobilenet"],
    "tasks": ["energy"],
}
TWO_TENSORS = "features.2+features.3.block.1"


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_whole_and_short(kind):
    found = blocks(kind)
    assert len(found) == (2 if kind == "scenario" else 1), "a scenario is a YAML file and a path to it"
    lines = list(chain.from_iterable(text.splitlines() for text in found.values()))
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    assert f"({kind}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ADDED)
def test_it_is_listed(splitsight, kind):
    names = [row["name"] for row in json.loads(splitsight("list", kind, "--json"))]
    assert set(ADDED[kind]) < set(names)


def test_its_targets_are_cut_by_their_graphs(splitsight):
    splits = json.loads(splitsight("list", "splits", "--target", "mobilenet", "--json"))
    found = {row["name"]: (row["at"], row["features"]) for row in splits}
    assert found["early"] == ("features.1", ["16×56×56"]) and found["features.3"] == ("", ["24×28×28"])


def _attack(splitsight, folder, photos, *arguments):
    """Rows, and the figures of the one method, of an attack on the pictures."""
    splitsight("attack", *arguments, "--images", photos, "--out", folder, "--threads", 1)
    assert (folder / "index.html").is_file()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (figures,) = summary["methods"].values()
    return pq.read_table(folder / "rows.parquet").to_pylist(), figures, summary["environment"]["session"]


def test_its_attack_target_defence_and_metric_at_a_cut_of_two_tensors(splitsight, photos, tmp_path):
    target = ["--target", "mobilenet", "--split", TWO_TENSORS, "--defense", "rounding:step=0.01"]
    rows, figures, session = _attack(
        splitsight, tmp_path, photos, "pixels-lbfgs", *target, "--set", "evaluations=3", "--set", "tv=0.1"
    )
    assert [row["iterations"] for row in rows] == [3, 3]
    assert session["defense"] == "rounding:step=0.01" and session["split"] == TWO_TENSORS
    assert [feature["shape"] for feature in session["features"]] == [[24, 28, 28], [88, 28, 28]]
    assert figures["edges"]["mean"] == pytest.approx(sum(row["edges"] for row in rows) / 2)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["settings"] == {"evaluations": 3, "tv": 0.1}


def test_a_prior_of_another_size_than_its_target(splitsight, photos, tmp_path):
    arguments = "dmb", "--prior", "small", "--target", "mobilenet", "--split", "early", "--set", "iterations=2"
    rows, _, session = _attack(splitsight, tmp_path, photos, *arguments)
    assert len(rows) == 2 and session["input_size"] == 224
    written = cv2.imread(str(tmp_path / "reconstructions" / "0.png"))
    assert written.shape == (224, 224, 3)


def test_its_prior_and_its_task(splitsight, photos, tmp_path):
    arguments = "dmb", "--prior", "tiny", "--target", "meter", "--split", "1", "--set", "iterations=3"
    _, figures, session = _attack(splitsight, tmp_path, photos, *arguments)
    assert session["task"] == "energy" and figures["n"] == 2
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["prior"] == "tiny"


def test_its_scenario(splitsight, photos, tmp_path):
    splitsight("run", "outside", "--quick", "--data", photos, "--out", tmp_path / "run", "--threads", 1)
    rows = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    cells = {(row["split"], row["defense"]) for row in rows}
    assert cells == {(s, d) for s in ("early", "features.3") for d in ("identity", "rounding:step=0.01")}
    assert len(rows) == 8 and all(row["method"] == "pixels-lbfgs" and row["edges"] is not None for row in rows)
    assert "rounded over plain" in (tmp_path / "run" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "split", "attack", "defense", "says"),
    [
        ("mobilenet", TWO_TENSORS, "pixels-lbfgs", "rounding:step=0.01", r"class \d \d+%"),
        ("meter", "1", "do", "rounding:step=0.05+gaussian:sigma=0.01", r"-?\d\.\d\d kWh"),
    ],
    ids=["mobilenet", "meter"],
)
def test_a_live_session(splitsight, photos, tmp_path, target, split, attack, defense, says):
    network = "--target", target, "--split", split, "--defense", defense
    stream = "--video", photos, "--seconds", 2, "--fps", 2, "--frames", 2, "--stride", 0.5, "--threads", 1
    splitsight("demo", *network, *stream, "--attack", attack, "--no-preview", "--out", tmp_path / "demo")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary["serving"]["frames"] == 4 and summary["environment"]["run"]["complete"]
    window = summary["live"]["tiers"]["window"]
    # on a busy machine a window gives way to the next one, and that is counted
    assert window["n"] + summary["live"]["frames_skipped"].get("window", 0) == 4
    assert window["n"] >= 2 and 0 <= window["edges"]["mean"] <= 2
    session = json.loads((tmp_path / "demo" / "recording" / "session.json").read_text(encoding="utf-8"))
    assert (session["target"], session["split"], session["defense"]) == (target, split, defense)
    answers = (tmp_path / "demo" / "edge.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 4 and all(re.fullmatch(says, json.loads(line)["says"]) for line in answers)


def test_its_recipe(splitsight, photos, tmp_path):
    picture = {"bytes": (photos / "0.png").read_bytes(), "path": None}
    data = tmp_path / "shards"
    data.mkdir()
    for shard in range(2):
        table = {"image": [picture] * 4, "label": list(range(4 * shard, 4 * shard + 4))}
        pq.write_table(pa.table(table), data / f"train-{shard}.parquet")
    (data / "classes.tsv").write_text("".join(f"{i}\tn{i}\tclass {i}\n" for i in range(10)))
    told = splitsight("train", "target", "mobilenet", "--data", data, "--out", tmp_path, "--steps", 2, "--threads", 1)
    assert told.strip() == str(tmp_path / "model")
    weights = "--weights", tmp_path / "model" / "model.safetensors"
    target = "--target", "mobilenet", "--split", "early", *weights
    rows, _, session = _attack(splitsight, tmp_path / "attack", photos, "do", *target, "--set", "iterations=2")
    assert len(rows) == 2 and session["target"] == "mobilenet"
