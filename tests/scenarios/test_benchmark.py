"""Quality against effort: curves, when one method reaches another, and what a cut run may not claim."""

import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from adversary.attacks import ATTACKS
from scenarios.benchmark import bench_attack, curve, speed
from scenarios.stills import Stills, score
from scenarios.workbench import Workbench
from splitsight.errors import UserError
from splitsight.summary import read_summary


def _row(contender, index, seconds, evaluations, psnr, ssim, final=False, sitting=1):
    return {
        "contender": contender,
        "index": index,
        "seconds": seconds,
        "model_evaluations": evaluations,
        "psnr": psnr,
        "ssim": ssim,
        "final": final,
        "sitting": sitting,
    }


ROWS = [
    _row("slow", 0, 1.0, 10, 10.0, 0.1),
    _row("slow", 0, 60.0, 600, 20.0, 0.3),
    _row("slow", 0, 100.0, 1000, 20.0, 0.5, final=True),
    _row("slow", 1, 2.0, 20, 12.0, 0.2),
    _row("slow", 1, 140.0, 1400, 22.0, 0.5, final=True),
    _row("fast", 0, 0.5, 0, 21.0, 0.2),
    _row("fast", 0, 3.0, 30, 23.0, 0.7, final=True),
    _row("fast", 1, 1.0, 5, 21.0, 0.2),
    _row("fast", 1, 4.0, 40, 22.0, 0.8, final=True),
]


def test_a_curve_is_the_mean_of_step_functions():
    found = curve(ROWS, "slow", "seconds")
    assert found.x.tolist() == [2, 60, 100, 140]  # not before every image was looked at
    assert found.psnr.tolist() == [11, 16, 16, 21]
    np.testing.assert_allclose(found.ssim, [0.15, 0.25, 0.35, 0.5])
    assert curve(ROWS, "fast", "model_evaluations").x.tolist() == [5, 30, 40]


def _speed(rows=ROWS, cut=None, **more):
    return speed(rows, reference="slow", subject="fast", cut=cut or {}, batch=1, threads=1, **more)


def test_when_the_subject_first_has_the_references_final_quality():
    found = _speed()
    assert (found.psnr, found.ssim, found.seconds, found.model_evaluations) == (21, 0.5, 120, 1200)
    assert (found.reached_psnr.seconds, found.reached_psnr.model_evaluations) == (1, 5)
    # one image is enough for the mean to be there: (0.7 + 0.2) / 2 is not, (0.7 + 0.8) / 2 is
    assert (found.reached_ssim.seconds, found.reached.seconds, found.reached.model_evaluations) == (4, 4, 40)
    assert found.reached.part_of_seconds == pytest.approx(4 / 120)
    assert found.reached.part_of_evaluations == pytest.approx(40 / 1200)
    assert (found.reached.reference_first_seconds, found.reached.reference_first_evaluations) == (140, 1400)
    assert found.met is True and found.sittings == 1
    late = [row | {"seconds": row["seconds"] * 2} if row["contender"] == "fast" else row for row in ROWS]
    assert _speed(late).met is False  # 8 of 120 seconds
    never = [row | {"ssim": 0.1} if row["contender"] == "fast" else row for row in ROWS]
    assert _speed(never).reached.seconds is None and _speed(never).met is False


def test_a_cut_run_leaves_the_verdict_open():
    found = _speed(cut={"slow": [100, 1500]})
    assert found.met is None and found.cut == {"slow": [100, 1500]}
    assert _speed(cut={"other": [100, 1500]}).met is True


@pytest.mark.usefixtures("tiny_lab")
def test_all_methods_on_the_same_images_in_one_run(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("scenarios.benchmark._WARM_S", 0.0)
    best, brief = ATTACKS.get("best"), {"fit_evaluations": 3, "fit_samples": 2}
    monkeypatch.setattr(best, "presets", {"faithful": {**best.presets["faithful"], **brief}})
    methods = ["do:paper", "dmb:paper", "best:faithful"]
    options = {"images": pictures, "split": "S1", "limit": 3, "batch": 2, "methods": methods, "iterations": 4}
    seen = []
    summary, rows = bench_attack(out=tmp_path / "a", **options, progress=lambda *at: seen.append(at))
    assert [at[2] for at in seen[:4]] == [
        "do paper, image 1 of 3",
        "dmb paper, image 1 of 3",
        "best faithful, image 1 of 3",
        "do paper, image 3 of 3",
    ]
    assert read_summary(tmp_path / "a" / "summary.json").to_dict() == summary.to_dict()
    assert pq.read_table(tmp_path / "a" / "curves.parquet").num_rows == len(rows)
    assert {name: found.n for name, found in summary.methods.items()} == {
        "do paper": 3,
        "dmb paper": 3,
        "best faithful": 3,
    }
    assert summary.speed.cut == {"do paper": [4, 1500], "dmb paper": [4, 1500]} and summary.speed.met is None
    assert summary.methods["do paper"].iterations == 4 and summary.methods["dmb paper"].model_evaluations == 4 * 21
    for name in summary.methods:
        own = [row for row in rows if row["contender"] == name and row["index"] == 0]
        assert [row["final"] for row in own] == [False] * (len(own) - 1) + [True]
        for axis in ("seconds", "model_evaluations"):
            values = [row[axis] for row in own]
            assert values == sorted(values)
    # what the last row says is what the attack answers by itself
    lab = Stills(Workbench("tiny"), pictures, 3)
    attack = ATTACKS.get("do").configured("paper", changes={"iterations": 4})
    alone = attack.reconstruct(lab.problem(attack, "S1", [0, 1]))
    last = [row for row in rows if row["contender"] == "do paper" and row["final"]]
    assert last[0]["psnr"] == pytest.approx(score(alone.images, lab.originals[:2])[0]["psnr"], abs=1e-4)

    # gone on with: nothing is left to do, and another measurement is refused
    again, _ = bench_attack(out=tmp_path / "a", **options, progress=lambda *at: seen.append(at))
    assert seen[-1][2] == "done" and again.methods == summary.methods
    with pytest.raises(UserError, match=r"another measurement \(seed differ\)"):
        bench_attack(out=tmp_path / "a", **options, seed=1)


@pytest.mark.usefixtures("tiny_lab")
def test_looking_takes_no_time_of_the_attack(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("scenarios.benchmark._WARM_S", 0.0)

    def slowly(self, images, index):
        time.sleep(0.2)
        return score(images, self.originals[index])

    monkeypatch.setattr(Stills, "score", slowly)
    begin = time.monotonic()
    options = {"images": pictures, "split": "S1", "limit": 1, "methods": ["do:tuned"], "iterations": 5, "growth": 0.0}
    summary, rows = bench_attack(out=tmp_path, **options)
    waited = 0.2 * len(rows)
    assert len(rows) >= 5 and summary.speed is None
    assert summary.methods["do tuned"].seconds_per_image <= time.monotonic() - begin - waited + 0.05


@pytest.mark.usefixtures("tiny_lab")
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"methods": ["dmb-multi"]}, "does not solve single images"),
        ({"methods": ["net-do"]}, "does not solve single images"),
        ({"methods": ["do:nice"]}, "unknown setting of do 'nice'"),
        ({"methods": []}, "at least one method"),
        ({"split": "S9"}, "unknown split of tiny 'S9'"),
    ],
)
def test_refusals_write_nothing(pictures, tmp_path, more, sentence):
    with pytest.raises(UserError, match=sentence):
        bench_attack(images=pictures, out=tmp_path / "out", **({"split": "S1"} | more))
    assert not (tmp_path / "out").exists()


def test_the_summary_is_plain_json(tmp_path):
    json.dumps(_speed().model_dump())
