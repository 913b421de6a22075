"""Tuning: equal effort, resumption, choice, and where its result goes."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from elsewhere import ELSEWHERE, SecondDevice

from adversary.attacks import ATTACKS, base
from scenarios import tuning
from scenarios.ledger import Ledger
from scenarios.stills import Stills, score
from scenarios.workbench import Workbench
from splitsight.errors import UserError
from splitsight.metrics.retrieval import matched

pytestmark = pytest.mark.usefixtures("tiny_lab")


@pytest.fixture
def short(monkeypatch):
    """DO and DB whose trials take milliseconds."""
    space = {"iterations": [3, 6], "lr": [0.02, 0.1], "tv": [0.01, 0.3]}
    for name in ("do", "db"):
        attack = ATTACKS.get(name)
        presets = {key: dict(values) | {"iterations": 3} for key, values in attack.presets.items()}
        monkeypatch.setattr(attack, "presets", presets)
        monkeypatch.setattr(attack, "space", lambda: space)


def _tune(method, pictures, out, **more):
    return tuning.tune(method, images=pictures, out=out, **({"splits": ["S1", "S2"], "count": 3, "limit": 4} | more))


def test_a_lab_reads_features_and_ranks_in_the_named_space(pictures):
    models, attack = Workbench("tiny"), ATTACKS.get("do").configured()
    lab = Stills(models, pictures, 5, tail=True)
    assert lab.names == ["07", "08", "09", "10", "11"] and Stills(models, pictures, 5).names[0] == "00"
    problem = lab.problem(attack, "S2", [1, 3], seed=5)
    torch.testing.assert_close(problem.features[0], models.target.head("S2")(lab.originals[[1, 3]])[0])
    assert problem.seeds == [6, 7]
    defended = lab.problem(attack, "S2", [1, 3], seed=5, defense="gaussian:ratio=0.5").features[0]
    noise = (defended - problem.features[0]).std(dim=tuple(range(1, defended.ndim)))
    assert (noise / problem.features[0].std(dim=tuple(range(1, defended.ndim)))).tolist() == pytest.approx(
        [0.5] * 2, abs=0.1
    )
    guesses = (lab.originals[[1, 3]] + 0.3 * torch.randn(2, 3, 16, 16)).clamp(0, 1)
    for name in ("pixels", "target"):
        assert lab.ranks(lab.originals[[3, 1]], [3, 1], name) == [1, 1]
    expected = matched(guesses, lab.originals, [1, 3]).ranks.tolist()
    assert lab.ranks(guesses, [1, 3], "pixels") == expected
    with pytest.raises(UserError, match=r"unknown features .* 'evaluator': choose one of pixels, target"):
        lab.ranks(guesses, [1, 3], "evaluator")
    assert set(models.digests([models.pipeline("S1").description()])) == {"target", "prior"}


def test_whoever_reads_the_servers_tap_has_the_servers_key(pictures, tmp_path):
    """So a keyed defence hides nothing: neither features nor, with noise in front of it, more than the noise."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    models, attack = Workbench("tiny"), ATTACKS.get("do").configured()
    lab = Stills(models, pictures, 4)
    for before in ("", "gaussian:sigma=0.1+"):
        plain, keyed = (
            lab.problem(attack, "S1", [0, 2], seed=5, defense=defense)
            for defense in (before.rstrip("+") or "identity", f"{before}permutation:key={key},over=all")
        )
        torch.testing.assert_close(keyed.features[0], plain.features[0])
        torch.testing.assert_close(keyed.f1(lab.originals[:2])[0], plain.f1(lab.originals[:2])[0])


def test_trials_on_another_device_find_the_same(short, pictures, tmp_path):
    here = _tune("do", pictures, tmp_path / "here")
    with SecondDevice():
        there = _tune("do", pictures, tmp_path / "there", device=ELSEWHERE.type)
    assert there["environment"]["device"] == ELSEWHERE.type and there["weights"] == here["weights"]
    for split in ("S1", "S2"):
        assert there["splits"][split]["score"] == pytest.approx(here["splits"][split]["score"], rel=1e-3)


def test_scores_are_of_eight_bits():
    original = torch.full((1, 3, 16, 16), 100 / 255)
    assert score(original + 0.4 / 255, original)[0]["psnr"] == score(original, original)[0]["psnr"]


def test_every_method_gets_the_same_trials_and_images(short, pictures, tmp_path):
    for method in ("do", "db"):
        result = _tune(method, pictures, tmp_path / method)
        rows = pq.read_table(tmp_path / method / "trials.parquet").to_pylist()
        assert len(rows) == 3 * 2 * 4 and {row["name"] for row in rows} == {"08", "09", "10", "11"}
        assert result["trials"] == 3 and result["images"] == ["08", "09", "10", "11"] and result["gallery"] == 12
        assert {row["trial"] for row in rows if row["changes"] == "{}"} == {0}
        assert set(result["splits"]) == {"S1", "S2"}
        for split, found in result["splits"].items():
            own = [row for row in rows if row["split"] == split]
            of = {t: [r["psnr"] + 20 * r["ssim"] for r in own if r["trial"] == t] for t in range(3)}
            means = {t: sum(values) / len(values) for t, values in of.items()}
            assert found["score"] == pytest.approx(max(means.values()))
            assert found["first"] == pytest.approx(means[0])
        assert json.loads((tmp_path / method / "best.json").read_text())["any"] == result["any"]


def test_trials_are_distinct_and_the_first_changes_nothing():
    attack = ATTACKS.get("dmb")
    drawn = tuning.trials(attack, 20, 3)
    assert drawn[0] == {} and len(drawn) == 20 and all(drawn.count(values) == 1 for values in drawn)
    assert drawn == tuning.trials(attack, 20, 3) != tuning.trials(attack, 20, 4)
    assert tuning.trials(attack, 5, 3) == drawn[:5]


def test_a_tuning_is_gone_on_with_and_another_one_refused(short, pictures, tmp_path, monkeypatch):
    _tune("do", pictures, tmp_path / "a", count=2)
    before = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    seen = []
    _tune("do", pictures, tmp_path / "a", progress=lambda done, planned, what: seen.append(what))
    assert seen == ["trial 3 of 3 at S1", "trial 3 of 3 at S2", "done"]
    after = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    assert after[: len(before)] == before
    # of the same trials, another objective
    ranked = _tune("do", pictures, tmp_path / "a", objective="match", progress=lambda *at: seen.append(at[2]))
    assert seen[3:] == ["done"] and 0 < ranked["any"]["score"] <= 1
    with pytest.raises(UserError, match=r"another measurement \(seed differ\): give a new --out"):
        _tune("do", pictures, tmp_path / "a", seed=1)
    (tmp_path / "a" / "trials.parquet").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot be gone on with"):
        _tune("do", pictures, tmp_path / "a")


def test_tuning_does_not_depend_on_an_earlier_one(tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"tiny": {"do": {"tuned": {"any": {"tv": 0.77}}}}}))
    monkeypatch.setattr(base, "TUNED", file)
    base._tuned.cache_clear()
    try:
        attack = ATTACKS.get("do")
        assert attack.configured("tuned", target="tiny").settings.tv == 0.77
        shipped = attack.configured("tuned").settings.tv
        assert attack.configured("tuned", target="tiny", use_tuned=False).settings.tv == shipped != 0.77
    finally:
        base._tuned.cache_clear()


def test_the_best_is_chosen_for_each_split_and_over_all():
    def row(trial, split, psnr, rank):
        values = {"psnr": psnr, "ssim": 0.5, "rank": rank, "seconds": 2.0, "model_evaluations": 7.0}
        changes = {"lr": trial} if trial else {}
        tried = {"changes": json.dumps(changes), "values": json.dumps({"lr": 0.5, "tv": 2} | changes)}
        return {"trial": trial, "split": split, **tried, **values}

    rows = [row(0, "A", 10, 2), row(1, "A", 12, 4), row(0, "B", 20, 1), row(1, "B", 17, 1)]
    found = tuning.choose(rows, "fidelity")
    best = {"trial": 1, "score": 22, "first": 20, "values": {"lr": 1, "tv": 2}, "changes": {"lr": 1}}
    assert found["splits"]["A"] == best
    assert found["splits"]["B"]["trial"] == 0 and found["any"] == {
        "trial": 0,
        "score": 25,
        "first": 25,
        "values": {"lr": 0.5, "tv": 2},
        "changes": {},
    }
    assert tuning.choose(rows, "match")["splits"]["A"]["trial"] == 0
    assert (found["seconds"], found["model_evaluations"]) == (2, 7)
    broken = [row(0, "A", 10, 1), row(1, "A", float("nan"), 1)]
    assert tuning.choose(broken, "psnr")["any"]["trial"] == 0


def test_merging_keeps_other_methods_and_a_missing_file_is_fine(tmp_path, monkeypatch):
    result = {
        "target": "tiny",
        "method": "do",
        "setting": "tuned",
        "any": {"values": {"lr": 0.02}},
        "splits": {"L8": {"values": {"lr": 0.01}}},
    }
    file = tmp_path / "new" / "tuned.json"
    monkeypatch.setattr(base, "TUNED", file)
    base._tuned.cache_clear()
    try:
        assert ATTACKS.get("do").configured("tuned", target="tiny").settings.lr == 0.05
        tuning.merge(result, file)
        tuning.merge({**result, "method": "db"}, file)
        base._tuned.cache_clear()
        assert ATTACKS.get("do").configured("tuned", target="tiny", split="L8").settings.lr == 0.01
        assert ATTACKS.get("db").configured("tuned", target="tiny", split="L4").settings.lr == 0.02
    finally:
        base._tuned.cache_clear()
    for content in ("no json", "[1]"):
        file.write_text(content)
        with pytest.raises(UserError, match="no file of tuned settings"):
            tuning.merge(result, file)
        assert file.read_text() == content


@pytest.mark.parametrize(
    ("method", "more", "sentence"),
    [
        ("preview", {}, "preview has nothing to tune"),
        ("do", {"objective": "beauty"}, "unknown objective 'beauty'"),
        ("do", {"match_features": "evaluator"}, "unknown --match-features 'evaluator'"),
        ("do", {"setting": "paper"}, "no setting 'paper' that may be tuned: choose one of tuned"),
        ("dmb-multi", {"setting": "tuned-single"}, "no setting 'tuned-single' that may be tuned"),
        ("dmb-multi", {"limit": 6}, "windows of 4"),
        ("dmb-multi", {"frames": 1}, "--frames of at least 2"),
        ("dmb-multi", {"objective": "match"}, "choose another objective"),
        ("do", {"splits": ["S9"]}, "unknown split of tiny 'S9'"),
        ("do", {"count": 0}, "at least one split"),
    ],
)
def test_refusals_write_nothing(pictures, tmp_path, method, more, sentence):
    with pytest.raises(UserError, match=sentence):
        _tune(method, pictures, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_a_ledger_survives_a_stop_between_two_steps(tmp_path):
    ledger = Ledger(tmp_path / "rows.parquet", {"a": (1, 2)})
    ledger.add([{"x": 1, "y": None}])
    ledger.add([{"x": 2, "y": 0.5}])
    again = Ledger(tmp_path / "rows.parquet", {"a": [1, 2]})
    assert again.rows == [{"x": 1, "y": None}, {"x": 2, "y": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
