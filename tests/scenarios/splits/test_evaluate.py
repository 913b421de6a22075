"""A whole evaluation of a tiny target: files, figures, going on, what is missing."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from scenarios.splits import run
from scenarios.splits.inputs import load_pictures
from scenarios.splits.measure import Bench
from scenarios.splits.run import evaluate
from scenarios.splits.spec import SplitOptions, parse_limits
from splitsight.errors import UserError
from splitsight.summary import read_summary

pytestmark = pytest.mark.usefixtures("tiny_lab")


@pytest.fixture
def asked(tmp_path, pictures):
    """Options of a short evaluation of the tiny target."""

    def make(**changes):
        given = {"attacks": ["do"], "images": pictures, "limit": 2, "evaluators": ["none"], "splits": ["S1", "S2"]}
        return SplitOptions(**{"target": "tiny", "out": tmp_path / "out", "quick": True, **given, **changes})

    return make


def test_what_the_contract_says(asked):
    options = asked(networks=["wifi", "lte"], edge_slowdown=3)
    report = evaluate(options)
    raw = json.loads((options.out / "summary.json").read_text())
    assert set(raw["splits"][0]) == {
        *("split", "bytes", "latency_ms", "utility", "leakage", "sensitivity", "dfil", "fsinfo", "pareto")
    }
    assert [s["split"] for s in raw["splits"]] == ["S1", "S2"]
    for split, figures in zip(raw["splits"], report.figures, strict=True):
        assert set(split["bytes"]) == {f"{d}{c}" for d in ("float32", "float16", "int8") for c in ("", "+zstd")}
        # the message is little more than the numbers in it
        assert 0 < split["bytes"]["float32"] - figures.point.bytes < 100
        time = split["latency_ms"]
        assert time["total"] == pytest.approx(time["edge"] + time["network"] + time["cloud"])
        assert time["edge"] == pytest.approx(3 * figures.cost["edge_ms"].mean)
        assert set(split["leakage"]["do:tuned"]) == {"psnr", "ssim", "matched_top1", "recognised"}
        assert split["leakage"]["do:tuned"]["recognised"] is None  # there is no evaluator
        assert split["sensitivity"] > 0 and split["dfil"] is None and split["fsinfo"] is None
        assert split["utility"] == {"name": "agreement", "value": 1.0, "unsplit": 1.0}
        assert figures.difference == 0.0
    assert raw["recommendation"]["split"] in ("S1", "S2") and "ms a frame over wifi" in raw["recommendation"]["why"]
    assert set(raw["networks"]) == {"wifi", "lte"}
    assert read_summary(options.out / "summary.json").methods["do:tuned at S1"].n == 2
    rows = pq.read_table(options.out / "rows.parquet").to_pylist()
    psnr = [r for r in rows if (r["split"], r["measure"], r["attack"]) == ("S1", "psnr", "do:tuned")]
    each, whole = [r["value"] for r in psnr if r["image"] is not None], [r for r in psnr if r["image"] is None]
    assert len(each) == 2 and np.mean(each) == pytest.approx(raw["splits"][0]["leakage"]["do:tuned"]["psnr"])
    assert whole[0]["low"] < whole[0]["value"] < whole[0]["high"] and whole[0]["value"] == pytest.approx(np.mean(each))
    assert {r["network"] for r in rows if r["part"] == "latency"} == {"wifi", "lte"}
    for row in rows:
        if row["reconstruction"]:
            assert (options.out / row["reconstruction"]).is_file()
    page = (options.out / "index.html").read_text()
    assert "Split at" in page and "http" not in page.split("</script>")[-1].replace("http-equiv", "")


def test_it_goes_on_and_refuses_another_configuration(asked, monkeypatch):
    evaluate(asked())
    before = {p.name: p.stat().st_mtime_ns for p in (asked().out / "parts").iterdir()}
    monkeypatch.setattr(Bench, "compute", lambda *a: pytest.fail("computed again"))
    # networks, limits and fewer points need nothing new
    changed = evaluate(asked(networks=["wan"], limits=parse_limits(1e6), splits=["S1"]))
    assert [f.point.name for f in changed.figures] == ["S1"] and changed.answers[0].verdict.profile.name == "wan"
    assert before == {p.name: p.stat().st_mtime_ns for p in (asked().out / "parts").iterdir()}
    for other, words in (
        ({"quick": False}, "told.probes"),
        ({"defense": "gaussian:sigma=1"}, "defense"),
        ({"seed": 1}, "data"),
    ):
        with pytest.raises(UserError, match=rf"{words} = .*--overwrite"):
            evaluate(asked(**other))


def test_each_part_is_kept_that_was_done_before_a_stop(asked, monkeypatch):
    whole = evaluate(asked())
    compute, done = Bench.compute, []

    def stops(self, unit, step=None):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(unit.name)
        return compute(self, unit, step)

    options = asked(out=asked().out.with_name("stopped"))
    monkeypatch.setattr(Bench, "compute", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options)
    again = []
    monkeypatch.setattr(Bench, "compute", lambda self, unit, step=None: again.append(unit.name) or compute(self, unit))
    resumed = evaluate(options)
    assert len(done) == 5 and not set(done) & set(again)
    for a, b in zip(whole.figures, resumed.figures, strict=True):
        assert a.attacks == b.attacks and a.told == b.told and a.utility == b.utility


def test_an_attack_without_its_network_is_said_and_the_report_goes_on(asked):
    report = evaluate(asked(attacks=["do", "net-do"], defense="gaussian:sigma=0.5"))
    why = report.missing["net-do:trained", "S1"]
    assert "splitsight train inversion --oracle" in why
    assert "splitsight oracle --target tiny --split S1 --defense gaussian:sigma=0.5 --budget" in why
    assert "do:tuned" in report.figures[0].attacks and "net-do:trained" not in report.figures[0].attacks
    assert report.remarks["do:tuned", "S1"]  # nothing was tuned for this network
    answer = report.answers[0].recommendation
    assert answer is not None and "net-do:trained could not try there" in answer.why
    page = (report.bench.options.out / "index.html").read_text()
    assert "net-do:trained</b> did not try S1, S2" in page and "--split POINT" in page
    told = report.figures[0].told
    # dFIL is the energy over the noise's variance, and bounds the error of unbiased attackers
    assert told["dfil"].mean == pytest.approx(told["sensitivity"].mean / 0.25, rel=1e-3)
    assert told["cramer_rao"].mean == pytest.approx(1 / told["dfil"].mean, rel=1e-3)
    assert told["van_trees"].mean < 0.01 and "fsinfo" in told


def test_an_attack_that_cannot_run_at_a_point_costs_that_point_alone(asked, monkeypatch):
    compute = Bench.compute

    def fails(self, unit, step=None):
        if unit.kind == "attack" and unit.point.name == "S2":
            raise UserError("too deep for it")
        return compute(self, unit, step)

    monkeypatch.setattr(Bench, "compute", fails)
    report = evaluate(asked())
    assert report.missing == {("do:tuned", "S2"): "too deep for it"}
    assert report.figures[0].attacks and not report.figures[1].attacks


def test_limits_that_exclude_everything(asked):
    report = evaluate(asked(limits=parse_limits(0.001, ["ssim=1"])))
    (answer,) = report.answers
    assert answer.recommendation is None
    assert answer.says.startswith("no split point keeps every limit over wifi: relax to --max-latency-ms ")
    assert json.loads((report.bench.options.out / "summary.json").read_text())["recommendation"] is None
    # relaxed to what it says, it does
    value = float(answer.says.split("--max-latency-ms ")[1].split()[0])
    again = evaluate(asked(limits=parse_limits(value, ["ssim=1"])))
    assert again.answers[0].recommendation is not None


def test_nothing_is_known_of_leakage_without_an_attack(asked):
    report = evaluate(asked(attacks=["none"]))
    answer = report.answers[0].recommendation
    assert answer is not None and "nothing was attacked" in answer.why
    assert json.loads((report.bench.options.out / "summary.json").read_text())["splits"][0]["leakage"] == {}


def test_nothing_is_written_where_a_name_is_wrong(asked, tmp_path):
    for wrong, words in (
        ({"splits": ["S3"]}, "S3"),
        ({"networks": ["3g"]}, "wifi"),
        ({"attacks": ["dx"]}, "dx"),
        ({"images": tmp_path / "none"}, "none"),
        ({"evaluators": ["nobody"]}, "nobody"),
        ({"defense": "blur"}, "blur"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(asked(**wrong))
    assert not asked().out.exists()
    bad = tmp_path / "bad.yaml"
    bad.write_text("uplink_mbps: -3\ndownlink_mbps: 1\n")
    with pytest.raises(UserError, match="uplink_mbps: -3"):
        evaluate(asked(networks=[str(bad)]))


def test_images_and_what_they_are_told_from(tiny_target, pictures, tmp_path, monkeypatch):
    found = load_pictures(tiny_target, pictures, limit=3)
    assert len(found.inputs.images) == 3 and "12 images are too few" in found.matching
    assert len(found.inputs.rivals(0)) == 0 and "no labels" in found.labelling
    monkeypatch.setattr("scenarios.splits.inputs.LEAST_GALLERY", 5)
    found = load_pictures(tiny_target, pictures, limit=3)
    assert not found.matching and [len(found.inputs.rivals(i)) for i in range(3)] == [11, 11, 11]
    given = load_pictures(tiny_target, pictures, limit=3, gallery=pictures, gallery_size=8)
    own = {image.tobytes() for image in given.inputs.images}
    for i in range(3):  # an original is nobody's rival, also where the gallery holds it
        rivals = given.inputs.pool[given.inputs.rivals(i)]
        assert len(rivals) == 7 and not own & {image.tobytes() for image in rivals}
        assert np.array_equal(given.inputs.pool[given.inputs.places[i]], given.inputs.images[i])
    clip = load_pictures(tiny_target, limit=5)
    assert clip.clip and len(clip.inputs.images) == 5 and "too alike" in clip.matching
    assert load_pictures(tiny_target, limit=5, gallery=pictures, gallery_size=8).matching == ""


def test_labels_that_are_not_the_networks(tiny_target, pictures, tmp_path):
    import pyarrow as pa

    def source(labels):
        files = sorted(pictures.iterdir())
        table = pa.table({"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files], "label": labels})
        pq.write_table(table, tmp_path / "x.parquet")
        return load_pictures(tiny_target, tmp_path / "x.parquet", limit=12)

    assert source([i % 3 for i in range(12)]).labelling == ""
    assert "up to 3 and the network has 3 classes" in source([3] * 12).labelling


def test_utility_by_labels(asked, pictures, tmp_path, tiny_target):
    import pyarrow as pa

    files = sorted(pictures.iterdir())
    table = pa.table({"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files], "label": [0] * len(files)})
    pq.write_table(table, tmp_path / "labelled.parquet")
    report = evaluate(asked(images=tmp_path / "labelled.parquet", attacks=["none"], limit=12))
    inputs = report.bench.originals
    right = float((tiny_target.model(tiny_target.preprocess(inputs)).argmax(1) == 0).float().mean())
    assert report.figures[0].utility_name == "top1"
    assert report.figures[0].utility.mean == report.figures[1].unsplit.mean == pytest.approx(right)


def test_the_progress_ends_at_all_units(asked):
    seen = []
    evaluate(asked(), lambda done, total, what: seen.append((done, total, what)))
    assert seen[-1][0] == seen[-1][1] == len(list((asked().out / "parts").iterdir()))
    assert any(what.startswith("attack do:tuned at S1, step") for *_, what in seen)


def test_threads_are_part_of_what_was_measured(asked, monkeypatch):
    evaluate(asked(attacks=["none"]))
    monkeypatch.setattr(run.torch, "get_num_threads", lambda: 99)
    with pytest.raises(UserError, match="threads"):
        evaluate(asked(attacks=["none"]))
