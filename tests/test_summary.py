from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from splitsight.errors import UserError
from splitsight.metrics import mean_interval
from splitsight.summary import (
    LiveSummary,
    MethodSummary,
    ServingSummary,
    Summary,
    environment,
    read_summary,
    write_summary,
)


def full():
    quality = {k: mean_interval([1.0, 2.0, 3.0]) for k in ("psnr", "psnr_eq14", "ssim")}
    return {
        "schema": "splitsight.summary/1",
        "target": "resnet18",
        "split": "L8",
        "methods": {"dmb": {"n": 3, **quality, "seconds_per_image": 0.5, "iterations": 150, "model_evaluations": 150}},
        "serving": {"frames": 120, "lost": 0, "fps": 2.0, "p50_ms": 12.0, "p99_ms": 30.0},
        "live": {
            "windows": 29,
            "windows_on_time": 29,
            "lag_ms": {"p50": 900.0, "p99": 1500.0},
            "frames_skipped": {"preview": 2},
            "tiers": {
                "preview": {"n": 3, **quality, "lag_ms": {"p50": 1.0, "p99": 2.0}},
                "window": {"n": 3, **quality},
            },
        },
        "environment": environment({"target": "ab" * 32}) | {"run": {"seed": 0}},
    }


def test_round_trip_keeps_every_key(tmp_path):
    write_summary(tmp_path / "new" / "summary.json", full())
    got = json.loads((tmp_path / "new" / "summary.json").read_text())
    want = full()
    assert list(got) == ["schema", "target", "split", "methods", "serving", "live", "environment"]
    assert list(got["methods"]["dmb"]) == list(want["methods"]["dmb"])
    assert list(got["serving"]) == list(want["serving"])
    assert set(got["live"]) == set(want["live"]) and set(got["live"]["lag_ms"]) == {"p50", "p99"}
    assert got["methods"] == want["methods"] and got["environment"] == want["environment"]
    assert read_summary(tmp_path / "new" / "summary.json").to_dict() == got


def test_what_a_defence_let_out_is_there_where_there_is_one(tmp_path):
    epsilon = {"frame": 8.0, "stream": 25.6, "delta": 1e-5, "frames": 4, "budget": None}
    plain = {"frames": 4, "agreement": mean_interval([1.0, 0.0]), "tiers": {"window": {"n": 4}}}
    summary = full()
    summary["live"] |= {"epsilon": epsilon, "undefended": plain}
    write_summary(tmp_path / "summary.json", summary)
    live = read_summary(tmp_path / "summary.json").live
    assert live.epsilon.stream == 25.6 and live.undefended.tiers["window"].n == 4
    assert json.loads((tmp_path / "summary.json").read_text())["live"]["epsilon"] == epsilon


def test_from_models_sections_may_be_left_out(tmp_path):
    summary = Summary(target="resnet18", split="L4", methods={"dmb": MethodSummary(n=0)}, environment=environment())
    write_summary(tmp_path / "s.json", summary)
    got = json.loads((tmp_path / "s.json").read_text())
    assert got["schema"] == "splitsight.summary/1" and "serving" not in got and "live" not in got
    assert got["methods"]["dmb"]["psnr"] is None
    both = Summary(
        target="a",
        split="b",
        serving=ServingSummary(frames=1, lost=0),
        live=LiveSummary(windows=0, windows_on_time=0),
    ).to_dict()
    assert both["serving"]["p99_ms"] is None and both["live"]["tiers"] == {}


def test_match_is_there_only_where_something_was_matched(tmp_path):
    match = {"gallery": 1000, "features": "pixels-16x16", "top1": mean_interval([1, 0]), "top5": mean_interval([1, 1])}
    data = full()
    data["methods"]["other"] = {"n": 1, "match": match}
    data["live"]["tiers"]["window"]["match"] = match
    write_summary(tmp_path / "s.json", data)
    got = json.loads((tmp_path / "s.json").read_text())
    assert got["methods"]["other"]["match"] == got["live"]["tiers"]["window"]["match"] == match
    assert "match" not in got["methods"]["dmb"] and "match" not in got["live"]["tiers"]["preview"]
    del match["top5"]
    with pytest.raises(ValidationError, match="top5"):
        write_summary(tmp_path / "s.json", data)


def test_not_finite_is_written_as_null(tmp_path):
    data = full()
    data["methods"]["dmb"]["psnr"] = {"mean": math.inf, "low": math.nan, "high": -math.inf}
    data["environment"]["run"]["loss"] = [math.nan, 1.0]
    write_summary(tmp_path / "s.json", data)
    text = (tmp_path / "s.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    got = json.loads(text)
    assert got["methods"]["dmb"]["psnr"] == {"mean": None, "low": None, "high": None}
    assert got["environment"]["run"]["loss"] == [None, 1.0]


@pytest.mark.parametrize(
    "change", [{"schema": "splitsight.summary/2"}, {"extra": 1}, {"methods": {"a": {"n": -1}}}, {"target": None}]
)
def test_wrong_data_are_refused_and_nothing_is_written(tmp_path, change):
    with pytest.raises(ValidationError):
        write_summary(tmp_path / "s.json", full() | change)
    assert list(tmp_path.iterdir()) == []


def test_write_replaces_whole_files_and_cleans_up(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    write_summary(path, full())
    before = path.read_text()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        write_summary(path, full() | {"split": "L4"})
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_summary(tmp_path / "file" / "s.json", full())


def test_reading_what_is_not_a_summary(tmp_path):
    with pytest.raises(UserError, match="no summary at"):
        read_summary(tmp_path / "absent.json")
    (tmp_path / "s.json").write_text('{"schema": "other"}')
    with pytest.raises(UserError, match=r"is not a splitsight.summary/1 file: schema"):
        read_summary(tmp_path / "s.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(UserError, match="is not a"):
        read_summary(tmp_path / "s.json")


def test_environment():
    got = environment({"target": "x"})
    assert got["cores"] >= 1 and got["weights"] == {"target": "x"} and {"python", "torch"} <= set(got["versions"])
    json.dumps(got)
