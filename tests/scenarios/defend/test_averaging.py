"""A scene that stands still."""

import json

import pytest

from scenarios.defend.averaging import averaging
from splitsight.errors import UserError


def _run(pictures, out, **more):
    base = {"split": "S1", "defenses": ["noise:sigma=0.4"], "frames": [1, 16], "attack": "do", "limit": 3}
    return averaging(images=pictures, out=out, changes={"iterations": 30}, **{**base, **more})


def test_the_error_falls_as_predicted_and_the_picture_gains(tiny_lab, pictures, tmp_path):
    rows = _run(pictures, tmp_path)
    curves = json.loads((tmp_path / "summary.json").read_text())["curves"]
    one, many = curves["noise:sigma=0.4"]
    assert one["predicted"]["mean"] == pytest.approx(0.4) and many["predicted"]["mean"] == pytest.approx(0.1)
    for point in (one, many):
        assert point["error"]["mean"] == pytest.approx(point["predicted"]["mean"], rel=0.05)
    assert many["psnr"]["mean"] > one["psnr"]["mean"] and curves["identity"][0]["error"]["mean"] == 0
    assert len(rows) == 9 and "σ/√T" in (tmp_path / "index.html").read_text()


def test_it_goes_on_and_refuses_another_measurement(tiny_lab, pictures, tmp_path):
    first = _run(pictures, tmp_path, frames=[1])
    again = _run(pictures, tmp_path, frames=[1, 4])
    assert again[: len(first)] == first and len(again) == len(first) + 3
    with pytest.raises(UserError, match="another measurement"):
        _run(pictures, tmp_path, seed=1)


@pytest.mark.parametrize("defense", ["topk:keep=0.5", "identity"])
def test_what_has_no_noise_has_nothing_to_average(tiny_lab, pictures, tmp_path, defense):
    with pytest.raises(UserError, match="no noise that is drawn for each frame"):
        _run(pictures, tmp_path, defenses=[defense])
