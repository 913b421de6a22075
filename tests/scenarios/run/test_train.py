"""Networks that a scenario needs: found, trained through an oracle of the scenario's own, refused, gone on with."""

import io
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adversary.attacks.blackbox import method_of
from adversary.blackbox.networks import AttackNetwork, Made, read_made, save_network
from adversary.priors.prior import load_prior
from scenarios.run import train
from scenarios.run.run import RunOptions, run_scenario
from scenarios.run.spec import Scenario, load_scenario, read_scenario
from scenarios.run.store import held
from scenarios.run.train import TrainingJob, job_of, jobs
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.summary import read_summary
from splitsight.wire.sessions import SessionDescription

PRIOR = {"prior_digest": "b" * 64, "prior_name": "tiny"}
SPECS = (FeatureSpec("z0", (3, 4, 4)),)


def _about(cell, **changes):
    about = SessionDescription("t", cell.split, SPECS, defense=cell.defense, head_digest="a" * 64, input_size=64)
    return replace(about, **changes)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _scenario(cells, **keys):
    base = {"title": "t", "about": "a", "train": {"queries": 64, "test_queries": 16, "steps": 3}, "cells": cells}
    return load_scenario({**base, **keys})


def _jobs(cells, **keys):
    return jobs(_scenario(cells, **keys), _about, **PRIOR)


def test_what_must_be_trained():
    found = _jobs(
        [
            {"split": ["L4", "L8"], "method": "net-db"},
            # one network answers in three settings
            {"split": "L4", "method": "net-best", "setting": ["faithful", "sharp", "one-pass"]},
            {"split": "L4", "method": "net-best", "trained": False},
            {"split": "L4", "method": "net-do", "network": "some.safetensors"},
            {"split": "L4", "method": "dmb"},
            {"split": "L4", "method": "net-dmb", "prompt": ["", "a photo of a {class}", "a photo of a {other}"]},
            {"split": "L4", "method": "net-do", "queries": [16, 64], "label": None},
            {"split": "L4", "method": "net-do", "training": "paper"},
        ]
    )
    kinds = [(x.split, x.method, x.queries, x.text, x.setting) for x in found]
    assert kinds == [
        ("L4", "net-db", 64, False, None),
        ("L8", "net-db", 64, False, None),
        ("L4", "net-best", 64, False, None),
        ("L4", "net-dmb", 64, False, None),
        ("L4", "net-dmb", 64, True, None),
        ("L4", "net-do", 16, False, None),
        ("L4", "net-do", 64, False, None),
        ("L4", "net-do", 64, False, "paper"),
    ]
    assert len({x.folder for x in found}) == len(found)
    # all that attack the same split share the answers
    assert len({x.pairs for x in found}) == 2
    assert all((x.steps, x.test_queries, x.seed) == (3, 16, 0) for x in found)


def test_windows_learn_from_windows():
    cells = [{"split": "L8", "method": ["net-db-multi"], "setting": ["mixed", "control"]}, {"method": "net-db"}]
    found = _jobs(cells, data={"kind": "clips", "frames": 4})
    assert [(x.frames, x.mixing) for x in found] == [(4, True), (4, False), (1, True)]
    assert found[0].pairs == found[1].pairs != found[2].pairs


@pytest.mark.parametrize("change", ["queries", "test_queries", "steps", "seed", "head_digest", "prior_digest"])
def test_another_network_is_kept_somewhere_else(change):
    cells, prior, session, training = [{"method": "net-db"}], dict(PRIOR), {}, {"test_queries": 16, "steps": 3}
    (before,) = _jobs(cells)
    if change == "prior_digest":
        prior[change] = "c" * 64
    elif change == "head_digest":
        session[change] = "c" * 64
    else:
        training[change] = 32
    scenario = _scenario(cells, train={"queries": 64, **training})
    (after,) = jobs(scenario, lambda cell: _about(cell, **session), **prior)
    assert before.folder != after.folder
    assert (before.pairs != after.pairs) == (change == "head_digest")


def test_pairs_and_networks_are_per_defence():
    defenses = ["identity", "gaussian:sigma=0.5", "gaussian:ratio=0.5+gaussian:sigma=0.5"]
    found = _jobs([{"method": ["net-db", "net-do"], "defense": defenses}])
    assert [job.defense for job in found] == 2 * defenses
    assert len({job.folder for job in found}) == 6 and len({job.pairs for job in found}) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", Path(path).name) for job in found for path in (job.file, job.pairs))


def test_a_network_of_other_values_is_not_taken_for_it(monkeypatch):
    (before,) = _jobs([{"method": "net-db"}])
    monkeypatch.setitem(method_of("net-db").trainings["tuned"], "lr", 1e-4)
    (after,) = _jobs([{"method": "net-db"}])
    assert before.folder != after.folder


def test_a_cell_may_change_values_of_a_training():
    cells = [{"method": "net-db", "training": t} for t in ("tuned", {"lr": 0.01}, {"setting": "paper", "batch": 16})]
    plain, changed, paper = _jobs([{**cell, "label": str(i)} for i, cell in enumerate(cells)])
    assert (plain.setting, plain.changes) == ("tuned", {})
    assert (changed.setting, changed.changes) == (None, {"lr": 0.01})
    assert (paper.setting, paper.changes) == ("paper", {"batch": 16})
    with pytest.raises(UserError, match="net-db's training value lr cannot be 0"):
        _jobs([{"method": "net-db", "training": {"lr": 0}}])


def test_without_a_section_nothing_is_trained():
    scenario = Scenario(title="t", about="a", cells=[{"method": "net-db"}])
    assert job_of(scenario, scenario.cells[0], _about(scenario.cells[0]), **PRIOR) is None
    assert jobs(scenario, _about, **PRIOR) == []


def _job(tmp_path, **more):
    about = {"folder": str(tmp_path / "l"), "file": str(tmp_path / "l" / "n.safetensors"), "pairs": "", "target": "t"}
    about |= {"weights": None, "split": "L8", "method": "net-db", "prior": "tiny", "setting": None, "queries": 64}
    about |= {"test_queries": 16, "unasked": None, "frames": 1, "mixing": True, "text": False, "minutes": None}
    about |= {"defense": "identity", "changes": {}}
    return TrainingJob(**{**about, "steps": 3, "seed": 0, **more})


def test_a_network_that_was_interrupted_is_not_done(models, tmp_path):
    prior = load_prior(str(models / "prior"))
    made = Made("net-do", "t", "L8", "a" * 64, SPECS, 64, prior.name, "none", training={"width": 8})
    job = _job(tmp_path)
    assert not job.done and job.fraction == 0
    for finished in (False, True):
        save_network(tmp_path / "l" / "n.safetensors", AttackNetwork(made, prior), ["0" * 64], {"finished": finished})
        assert job.done == finished


def test_how_far_a_network_is(tmp_path):
    run = tmp_path / "l" / "run-align"
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "fraction": 0.25}\n{"step": 2, "fraction": 0.5}\n{"ste')
    assert _job(tmp_path).fraction == 0.5
    # of two parts
    assert _job(tmp_path, method="net-flow").fraction == 0.25


def test_what_is_being_done_is_said(tmp_path):
    first, second = _job(tmp_path), _job(tmp_path, folder=str(tmp_path / "m"), method="net-do", queries=32)
    assert train._now([first, second], [0.0, 0.0]) == "asking the oracle"
    (tmp_path / "m" / "run").mkdir(parents=True)
    assert train._now([first, second], [0.0, 0.0]) == second.name != first.name
    assert train._now([first, second], [0.5, 0.0]) == first.name
    assert train._now([first, second], [1.0, 1.0]) == "measuring"


def test_a_job_that_another_process_is_at_is_waited_for(tmp_path, monkeypatch):
    trained, release = [], threading.Event()
    monkeypatch.setattr(train, "_train", lambda job, data, logs: trained.append(job.folder))
    monkeypatch.setattr(train, "_LOOK_S", 0.01)
    monkeypatch.setattr(
        TrainingJob, "done", property(lambda self: self.folder in trained or (self == first and release.is_set()))
    )
    first, second = _job(tmp_path), _job(tmp_path, folder=str(tmp_path / "m"))
    with held(tmp_path / "l" / "claim"):
        thread = threading.Thread(target=train.train_all, args=([first, second], tmp_path, tmp_path))
        thread.start()
        while not trained:
            thread.join(0.01)
        release.set()
    thread.join(10)
    # the other process had finished it, so that nobody trains it twice
    assert trained == [second.folder] and not thread.is_alive()


@pytest.mark.parametrize(
    ("train_keys", "options", "words"),
    [
        ({"steps": 2}, {}, r"1 networks must be trained first \(.*net-do, 4096 queries, …\): give .* --train-data"),
        (None, {"train_data": "x"}, "this scenario trains nothing: leave --train-data out"),
        ({"queries": 15}, {}, "train.queries: input should be greater than or equal to 16"),
        ({"epochs": 3}, {}, "unknown key 'train.epochs'"),
    ],
    ids=str,
)
def test_what_is_refused(scenario, tmp_path, train_keys, options, words):
    keys = {} if train_keys is None else {"train": train_keys}
    path = scenario(cells=[{"split": "L16", "method": "net-do"}], evaluator=None, **keys)
    if "train_data" in options:
        options = {"train_data": tmp_path}
    with pytest.raises(UserError, match=words) as caught:
        run_scenario(RunOptions(path, out=tmp_path / "out", threads=1, **options))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["table-4", "table-5", "black-box-frames", "figure-20a", "figure-20b"])
def test_the_package_s_scenarios_ask_for_the_networks_of_the_issue(name):
    data, _ = read_scenario(name)
    for quick in (False, True):
        found = jobs(load_scenario(data, quick=quick), _about, **PRIOR)
        methods = {job.method for job in found}
        assert methods and all(job.steps or job.minutes for job in found)
        if name == "table-4":
            assert methods == {"net-do", "net-db", "net-dmb", "net-flow", "net-best"}
        if not quick:
            # the same effort for all
            minutes = {"black-box-frames": 3.0}.get(name, 5.0)
            assert {(job.minutes, job.test_queries) for job in found} == {(minutes, 1024)}
        elif name == "figure-20b":
            assert {job.queries for job in found} == {16, 32, 64}
    if name == "figure-20b":
        assert {x.queries for x in jobs(load_scenario(data), _about, **PRIOR)} == {256, 512, 1024, 2048, 4096}


def _pictures(path, count):
    rng, images = np.random.default_rng(7), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        coarse.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"asked-{i}.png"})
    pq.write_table(pa.table({"image": images, "label": [i % 5 for i in range(count)]}), path)
    return path


def test_from_nothing_to_a_table(scenario, tmp_path, home):
    cells = [
        {"split": "L16", "method": "net-do", "curve": True},
        {"split": "L16", "method": "net-best", "setting": "sharp"},
    ]
    training = {"queries": 16, "test_queries": 16, "unasked": 4, "steps": 2}
    path = scenario(cells=cells, evaluator=None, train=training)
    pictures = _pictures(tmp_path / "asked.parquet", 40)
    options = {"train_data": pictures, "threads": 1}
    out = run_scenario(RunOptions(path, out=tmp_path / "out", **options))
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 2 * 4 and {row["method"] for row in rows} == {"net-do", "net-best"}
    assert all(json.loads(row["about"])["queries"] == "16" for row in rows)
    assert all(len(row["curve"]) == 100 for row in rows if row["method"] == "net-do")
    assert read_summary(out / "summary.json").scenario.complete
    files = sorted((home / "inversion" / "scenarios").glob("*/*.safetensors"))
    assert len(files) == 2 and all(read_made(file).figures["finished"] for file in files)
    assert len(list((home / "queries").glob("*/oracle.json"))) == 1
    # another scenario of the same networks asks and trains nothing, and needs no pictures for it
    before = [file.stat().st_mtime_ns for file in files]
    again = scenario(name="again", cells=cells[:1], evaluator=None, train=training)
    run_scenario(RunOptions(again, out=tmp_path / "again", threads=1))
    assert [file.stat().st_mtime_ns for file in files] == before
