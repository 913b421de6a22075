"""A scenario from YAML to report, in this process."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from elsewhere import ELSEWHERE, SecondDevice

from scenarios import cli
from scenarios.run.rows import read_rows, row_schema
from scenarios.run.run import RunOptions, run_scenario
from scenarios.run.spec import load_scenario, read_scenario
from scenarios.run.store import Store
from scenarios.run.work import Bench
from scenarios.workbench import edge_seeds
from splitsight.errors import UserError
from splitsight.metrics import METRICS, Metric, image_quality, mean_interval
from splitsight.summary import read_summary

pytestmark = pytest.mark.usefixtures("registered")


def run(path, out, **options):
    return run_scenario(RunOptions(path, out=out, threads=1, **options))


def test_a_run_leaves_what_the_contract_says(scenario, tmp_path):
    cells = [
        {"split": ["L8", "L16"], "method": "fake", "setting": ["dark", "bright"], "curve": True},
        {"split": "L16", "method": "fake", "setting": "dark", "with": {"level": [0.3, 0.4, 0.5]}},
        {"split": "output", "method": "fake", "noise": 0.5, "count": 1},
        {"split": "L16", "method": "fake", "prompt": [["a {class}", "{background}"]]},
        {"split": "L4", "method": "nowhere", "optional": True},
        {"split": "L4", "method": "fake", "with": {"level": 13}, "optional": True},
    ]
    compare = [
        {
            "name": "bright over dark",
            "of": {"setting": "bright"},
            "to": {"setting": "dark", "with": {"level": None}, "prompt": "", "noise": 0.0},
            "paper": {"ssim": 0.39, "note": "ten clips"},
        }
    ]
    paper = [{"label": "THEIRS", "split": "L8", "psnr_eq14": 21.5}]
    out = run(scenario(cells=cells, compare=compare, paper=paper), tmp_path / "out")

    table = pq.read_table(out / "rows.parquet")
    assert table.schema.equals(row_schema()) and table.schema.metadata[b"splitsight.rows"] == b"2"
    rows = table.to_pylist()
    assert len(rows) == 4 * 4 + 3 * 4 + 1 + 4
    first = rows[0]
    assert first["scenario"] == "try" and first["cell"] == "c000" and first["split"] == "L8"
    assert first["curve"] == [3.0, 2.0, 1.0] and rows[-1]["curve"] is None
    assert json.loads(first["settings"]) == {"level": 0.2, "sleep": 0.0}
    assert first["lpips"] is None and first["gallery"] == 10 and 1 <= first["match_rank"] <= 10
    assert json.loads(first["about"]) == {"start": "fake"}
    # a figure can be traced to its files
    original, answer = (cv2.imread(str(out / first[c])) for c in ("original", "reconstruction"))
    error = np.mean((original.astype(float) - answer) ** 2)
    assert first["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert first["image"] == hashlib.sha256(cv2.cvtColor(original, cv2.COLOR_BGR2RGB).tobytes()).hexdigest()
    # the same seed and image, the same answer, whatever the split
    by = {(r["cell"], r["index"]): r for r in rows}
    assert by["c000", 2]["psnr"] == by["c002", 2]["psnr"] != by["c001", 2]["psnr"]
    # one prompt won for each image
    prompts = {r["prompt"] for r in rows if r["cell"] == "c008"}
    assert prompts and all(p for p in prompts)

    summary = read_summary(out / "summary.json")
    told = summary.scenario
    assert told.complete and not told.quick and len(told.cells) == 9
    assert "unknown attack 'nowhere'" in told.skipped["c009"] and told.skipped["c010"] == "this machine lacks luck"
    assert any("LPIPS is left out" in note for note in told.notes)
    expected = mean_interval([r["psnr"] for r in rows if r["cell"] == "c000"])
    assert summary.methods["fake dark at L8"].psnr.model_dump() == pytest.approx(expected)
    assert set(told.originals) == {"inception_score_tiny", "recognised"}
    assert told.cells[0].match.features == "tiny-penultimate" and "inception_score_tiny" in told.cells[0].scores
    differences = {(c.split, c.noise): c for c in told.comparisons}
    pairs = [by["c001", i]["psnr"] - by["c000", i]["psnr"] for i in range(4)]
    assert differences["L8", 0.0].differences["psnr"].model_dump() == pytest.approx(mean_interval(pairs))

    page = (out / "index.html").read_text()
    # nothing is fetched; plotly's own code names places that it never goes to by itself
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", markup) and "<script src" not in page
    assert "the paper: THEIRS" in page and "21.50" in page and "ten clips" in page
    for words in ("Distortion against perception", "Over level", "Quality against time", ">Loss<", "Left out"):
        assert words in page, words
    assert {p.name for p in out.glob("grid-*.png")} == {"grid-l8.png", "grid-l16.png", "grid-output.png"}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert set(config["run"]["weights"]) == {"target", "prior", "evaluator"} and config["data"]["count"] == 4


def test_going_on_computes_nothing_twice(scenario, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    path = scenario()
    run(path, tmp_path / "out")
    before = (tmp_path / "log").read_text()
    (tmp_path / "out" / "parts" / "c001-0001.parquet").unlink()
    run(path, tmp_path / "out")
    assert (tmp_path / "log").read_text() == before + "0.8 2\n"
    # a change that only the report reads
    run(scenario(title="Another title"), tmp_path / "out")
    assert "Another title" in (tmp_path / "out" / "index.html").read_text()
    assert (tmp_path / "log").read_text().count("\n") == 9


def test_a_changed_configuration_is_refused_by_key(scenario, tmp_path, models):
    out = tmp_path / "out"
    run(scenario(), out)
    rows = (out / "rows.parquet").read_bytes()
    changed = [
        ({"seed": 5}, {}, "seed = 0, not 5"),
        ({}, {"limit": 3}, "data.count = 4, not 3"),
        ({}, {"evaluators": ["none"]}, "evaluator = "),
        ({"cells": [{"split": "L8", "method": "fake", "with": {"level": 0.9}}]}, {}, "cells.0."),
        ({"batch": 3}, {}, "batch = 2, not 3"),
    ]
    for keys, options, words in changed:
        with pytest.raises(UserError, match="give another --out, or --overwrite") as caught:
            run(scenario(**keys), out, **options)
        assert words in str(caught.value)
    assert (out / "rows.parquet").read_bytes() == rows
    run(scenario(seed=5), out, overwrite=True)
    assert {r["seed"] for r in pq.read_table(out / "rows.parquet").to_pylist()} == {5}


def test_other_peoples_folders_are_left_alone(scenario, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="another --out"):
            run(scenario(), tmp_path / "mine", overwrite=overwrite)
    assert [p.name for p in (tmp_path / "mine").iterdir() if p.name != "claims"] == ["thesis.tex"]


def test_nothing_is_written_for_what_cannot_run(scenario, tmp_path):
    wrong = [
        ({"cells": [{"method": "nowhere"}]}, "unknown attack 'nowhere'"),
        ({"cells": [{"method": "fake", "setting": "dim"}]}, "dim"),
        ({"cells": [{"method": "fake", "with": {"lvl": 1}}]}, "lvl"),
        ({"cells": [{"method": "fake", "split": "L99"}]}, "L99"),
        ({"cells": [{"method": "do", "prompt": "a {class}"}]}, "'do' takes no prompt"),
        ({"cells": [{"method": "fake", "prompt": "a {clas}"}]}, "{clas}"),
        ({"cells": [{"method": "fake-window"}]}, "kind 'clips'"),
    ]
    for keys, words in wrong:
        with pytest.raises(UserError) as caught:
            run(scenario(**keys), tmp_path / "out")
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_keeps_what_was_done(scenario, tmp_path):
    cells = [{"method": "fake"}, {"method": "fake", "with": {"level": 13}}]
    with pytest.raises(UserError, match="lacks luck"):
        run(scenario(cells=cells), tmp_path / "out")
    store = Store(tmp_path / "out")
    assert store.done("c000-0000") and not store.done("c001-0000")


def test_quick_limit_and_json_on_the_command_line(scenario, tmp_path, capsys):
    quick = {"cells": [{"split": "L8", "method": "fake"}], "data": {"count": 3}}
    path = scenario(quick=quick)
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", path, "--quick", "--limit", "2", "--json", "--out", str(tmp_path / "q"), "--threads", "1"])
    told = json.loads(capsys.readouterr().out)
    assert caught.value.code == 0 and told["schema"] == "splitsight.summary/1"
    assert told["scenario"]["quick"] and [c["n"] for c in told["scenario"]["cells"]] == [2]
    assert "quick form" in (tmp_path / "q" / "index.html").read_text()


def test_clips_are_solved_by_windows(scenario, tmp_path, models):
    from splitsight.pictures import write_video

    (tmp_path / "clips").mkdir()
    for name in "ab":
        rng = np.random.default_rng(ord(name))
        write_video(tmp_path / "clips" / f"{name}.mp4", list(rng.integers(0, 255, (40, 64, 64, 3), np.uint8)), 10)
    data = {"kind": "clips", "path": str(tmp_path / "clips"), "count": 2, "frames": 2, "stride": 0.5, "gallery": 5}
    cells = [{"split": "L8", "method": "fake-window", "setting": ["dark", "bright"]}]
    compare = [{"name": "x", "of": {"setting": "bright"}, "to": {"setting": "dark"}, "by_clip": True}]
    out = run(scenario(data=data, cells=cells, compare=compare), tmp_path / "out")
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 2 * 4 * 2 and {r["clip"] for r in rows} == {"a.mp4", "b.mp4"}
    assert {r["window"] for r in rows} == {0, 1, 2, 3} and {r["class_label"] for r in rows} == {None}
    assert {r["gallery"] for r in rows} == {5}
    told = read_summary(out / "summary.json").scenario
    assert [c.clip for c in told.comparisons] == [None, "a.mp4", "b.mp4"] and "recognised" not in told.originals


def test_noise_on_features_depends_on_the_image_alone(scenario):
    bench = Bench(load_scenario(read_scenario(scenario())[0]))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images *= torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1, 1)

    def noise(chosen, seed=0):
        seeds = edge_seeds(seed, [4 + i for i in chosen])
        pipelines = [bench.models.pipeline("L8", defense) for defense in ("identity", "gaussian:ratio=0.5")]
        (clean,), (noisy,) = (bench.models.observe(pipeline, images[chosen], seeds) for pipeline in pipelines)
        return clean, noisy - clean

    z, added = noise([0, 1, 2])
    assert (added.flatten(1).std(1) / z.flatten(1).std(1)).tolist() == pytest.approx([0.5] * 3, rel=0.05)
    assert torch.equal(noise([0, 1, 2])[1], added)
    torch.testing.assert_close(noise([1])[1], added[1:2], atol=1e-4, rtol=0)
    # and on the experiment's seed
    assert torch.corrcoef(torch.stack([noise([1], seed=1)[1].flatten(), added[1].flatten()]))[0, 1].abs() < 0.1


def test_a_defence_from_the_command_line_is_in_every_cell(scenario, tmp_path):
    plain = scenario(cells=[{"split": ["L8", "L16"], "method": "fake"}])
    rows = pq.read_table(
        run(plain, tmp_path / "out", limit=1, defense="gaussian:ratio=0.50") / "rows.parquet"
    ).to_pylist()
    assert {row["defense"] for row in rows} == {"gaussian:ratio=0.5"} and len(rows) == 2
    assert {row["label"] for row in rows} == {"fake against gaussian:ratio=0.5"}
    own = scenario(cells=[{"split": "L8", "method": "fake", "defense": "gaussian:sigma=1"}])
    with pytest.raises(UserError, match="says itself what is done to the features: leave --defense out"):
        run(own, tmp_path / "other", defense="identity")
    assert not (tmp_path / "other").exists()


def test_rows_measure_what_was_written(scenario):
    bench = Bench(load_scenario(read_scenario(scenario())[0]))
    rows, images = bench.compute(bench.units[0])
    originals = torch.from_numpy(bench.inputs.images[list(bench.units[0].indices)]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal((images * 255).round() / 255, images)
    assert [r["ssim"] for r in rows] == pytest.approx(image_quality(images, originals)["ssim"].tolist())
    # found first among ten where the answer is the original itself
    measured = bench.scorer.measure(originals, originals, list(bench.units[0].indices))
    assert measured["match_rank"] == [1, 1] and measured["gallery"] == [10, 10]
    broken = originals.clone()
    broken[0, 0, 0, 0] = float("nan")
    measured = bench.scorer.measure(broken, originals, list(bench.units[0].indices))
    assert measured["psnr"][0] is None and measured["recognised"][0] is False and measured["match_rank"][0] == 10


def test_rows_from_another_device_are_the_same(scenario):
    cells = [
        {"split": "L8", "method": "dmb", "setting": "tuned", "with": {"iterations": 2, "steps": 1}, "noise": 0.3},
        {"split": "output", "method": "do", "setting": "tuned", "with": {"iterations": 2}},
    ]
    loaded = load_scenario(read_scenario(scenario(cells=cells))[0])

    def rows(device):
        bench = Bench(loaded, device)
        return [row for unit in bench.units for row in bench.compute(unit)[0]]

    here = rows("cpu")
    with SecondDevice():
        there = rows(ELSEWHERE.type)
    assert {row["device"] for row in there} == {ELSEWHERE.type} and here[0]["device"].startswith("CPU")
    for a, b in zip(here, there, strict=True):
        assert b["psnr"] == pytest.approx(a["psnr"], abs=0.05) and b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        assert (a["image"], a["target_digest"]) == (b["image"], b["target_digest"])


def test_black_box_attacks_get_their_network_and_no_f1(scenario, tmp_path, models, monkeypatch):
    from adversary.attacks.net_do import NetDO
    from adversary.blackbox.networks import AttackNetwork, Made, prior_key, save_network
    from adversary.priors.prior import load_prior
    from splitsight import targets

    target, prior = targets.load("resnet18", models / "target.safetensors"), load_prior(str(models / "prior"))
    cut, key = target.cut("L16"), prior_key(prior, "net-do")
    made = Made("net-do", "resnet18", "L16", cut.head_digest, cut.specs, 64, prior.name, key, training={"width": 8})
    save_network(tmp_path / "net.safetensors", AttackNetwork(made, prior), [], {})
    known, reconstruct = [], NetDO.reconstruct

    def watched(self, problem, *rest, **more):
        known.append((problem.pipeline, problem.prior))
        return reconstruct(self, problem, *rest, **more)

    monkeypatch.setattr(NetDO, "reconstruct", watched)
    cells = [{"split": "L16", "method": "net-do", "network": str(tmp_path / "net.safetensors")}]
    out = run(scenario(cells=cells), tmp_path / "out")
    assert known == [(None, None)] * 2
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == 4 and all(r["inversion_digest"] and r["loss"] is None for r in rows)
    # measured on pictures that it was trained on, it would show nothing
    save_network(tmp_path / "net.safetensors", AttackNetwork(made, prior), [rows[2]["image"]], {})
    with pytest.raises(UserError, match="trained on"):
        run(scenario(cells=cells), tmp_path / "other")
    with pytest.raises(UserError, match="no net-do network for resnet18 at L8"):
        run(scenario(cells=[{"split": "L8", "method": "net-do"}]), tmp_path / "other")
    with pytest.raises(UserError, match="'fake' has no use for a network"):
        run(scenario(cells=[{"method": "fake", "network": "x"}]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_metric_of_another_package_is_in_rows_summary_tables_and_plots(scenario, tmp_path, monkeypatch):
    def fn(batch):
        return batch.reconstruction.mean((1, 2, 3))

    METRICS.names()
    metric = Metric(name="brightness", title="mean brightness", fn=fn, digits=4, bounds=(0, 1))
    monkeypatch.setitem(METRICS._items, "brightness", metric)
    cells = [{"split": "L16", "method": "fake", "with": {"level": [0.3, 0.4, 0.5]}}]
    compare = [{"name": "more", "of": {"with": {"level": 0.5}}, "to": {"with": {"level": 0.3}}}]
    compare[0]["paper"] = {"brightness": 0.125}
    paper = [{"label": "THEIRS", "split": "L16", "brightness": 0.0625}]
    out = run(scenario(cells=cells, compare=compare, paper=paper), tmp_path / "out")
    rows = read_rows(out / "rows.parquet").to_pylist()
    assert all(row["brightness"] == pytest.approx(json.loads(row["settings"])["level"] + 0.1, abs=0.02) for row in rows)
    summary = read_summary(out / "summary.json")
    first = summary.scenario.cells[0]
    own = [row["brightness"] for row in rows if row["cell"] == "c000"]
    assert first.interval("brightness").model_dump() == pytest.approx(mean_interval(own))
    assert summary.methods[first.label].interval("brightness") == first.interval("brightness")
    gain = summary.scenario.comparisons[0].differences["brightness"]
    assert gain.mean == pytest.approx(0.2, abs=0.01)
    page = (out / "index.html").read_text()
    table = page[page.index("<table>") :]
    assert "<th>mean brightness</th>" in table and f"{first.interval('brightness').mean:.4f}" in table
    assert f"{gain.mean:+.4f}" in table and "<td>0.0625" in table and "<td>+0.1250" in table
    assert page.count('"text":"mean brightness"') == 2  # over the level, and over time


def test_several_evaluators(scenario, models, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models / "evaluator", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"name": "second"}))
    cells = [{"split": "L16", "method": "fake"}]
    path = scenario(cells=cells, evaluator=[str(models / "evaluator"), str(other)])
    out = run(path, tmp_path / "out")
    rows = read_rows(out / "rows.parquet").to_pylist()
    # the same weights under another name
    assert all(row["recognised"] == row["recognised:second"] is not None for row in rows)
    assert all(row["match_rank"] == row["match_rank:second"] for row in rows)
    assert all(row["evaluator_digest"] == row["evaluator_digest:second"] for row in rows)
    (cell,) = read_summary(out / "summary.json").scenario.cells
    assert cell.interval("recognised:second") == cell.recognised
    assert cell.interval("matched_top5:second") == cell.match.top5
    assert "found first (second)" in (out / "index.html").read_text()
    assert run(path, tmp_path / "out") == out  # and goes on
    with pytest.raises(UserError, match="two evaluators have one name"):
        run(scenario(cells=cells, evaluator=[str(other), str(other)]), tmp_path / "twice")


def test_a_run_of_a_former_version_goes_on(scenario, tmp_path):
    """Keys and columns that were renamed are read under their present names."""
    out = run(scenario(), tmp_path / "out")
    before = read_rows(out / "rows.parquet")
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["judge"] = config.pop("evaluator")
    config["run"]["weights"]["judge"] = config["run"]["weights"].pop("evaluator")
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    parts = sorted((out / "parts").glob("*.parquet"))
    parts[0].unlink()
    for part in parts[1:]:
        table = pq.read_table(part).replace_schema_metadata(None)
        names = [{"evaluator_digest": "judge_digest"}.get(name, name) for name in table.column_names]
        pq.write_table(table.rename_columns(names), part)
    (out / "rows.parquet").unlink()
    run(scenario(), out)
    assert read_rows(out / "rows.parquet").drop(["seconds"]).equals(before.drop(["seconds"]))


def test_former_names_are_taken_with_a_note(scenario, models, tmp_path, capsys):
    keys = yaml.safe_load(Path(scenario()).read_text())
    keys["judge"] = keys.pop("evaluator")
    keys["quick"] = {"judge": None}
    path = tmp_path / "former.yaml"
    path.write_text(yaml.safe_dump(keys))
    data, _ = read_scenario(str(path))
    assert capsys.readouterr().err.count("the key 'judge' is now called 'evaluator'") == 2
    assert load_scenario(data).evaluator == str(models / "evaluator")
    assert load_scenario(data, quick=True).evaluator is None
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(path), "--out", str(tmp_path / "out"), "--judge", "nowhere"])
    found = capsys.readouterr().err
    assert ended.value.code == 2 and "--judge is now called --evaluator" in found and "unknown evaluator" in found


def test_a_scenario_needs_no_words_about_it(scenario, tmp_path):
    keys = yaml.safe_load(Path(scenario(cells=[{"split": "L16", "method": "fake", "count": 1}])).read_text())
    del keys["about"]
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(keys))
    page = (run(str(path), tmp_path / "out") / "index.html").read_text()
    assert "<h1>A try</h1>" in page and 'class="lead"' not in page
