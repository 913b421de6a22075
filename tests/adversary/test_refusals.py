"""What cannot be attacked: one sentence, and nothing written."""

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import save_prior

from scenarios import attack
from scenarios.attack import run_attack
from splitsight.errors import UserError
from splitsight.summary import read_summary


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("priors") / "tiny", "goldfish", "red panda")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
    return folder


def _poison(value):
    made = attack._played

    def poisoned(*arguments):
        data = made(*arguments)
        data.features = [value(z) for z in data.features]
        return data

    return poisoned


def _nan(z):
    z = z.clone()
    z[2, 3, 1, 2] = float("nan")
    return z


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("dmb-multi", {"frames": 1}, "dmb-multi couples the frames of a window: give --frames of at least 2"),
        ("dmb-multi", {"frames": 4}, "the input holds 3 frames, fewer than a window of 4: give a smaller --frames"),
        (
            "dmb-multi",
            {"frames": 2, "limit": 1},
            "--limit leaves 1 frame, fewer than a window of 2: give a smaller --frames or a larger --limit",
        ),
        ("dmb", {"prompts": []}, "the list of prompts is empty"),
        ("dmb", {"prompts": ["a goldfish", ""]}, "a prompt is empty"),
        ("do", {"prompts": ["a goldfish"]}, "do has no use for a text"),
        (
            "dmb",
            {"prompts": ["a goldfish"], "changes": {"alpha": 2.5}},
            r"dmb's alpha cannot be 2\.5",
        ),
        ("dmb", {"changes": {"stepps": 3}}, "unknown value of dmb's setting fast 'stepps'"),
        ("db", {"changes": {"schedule": "staircase"}}, 'db\'s schedule cannot be "staircase"'),
        ("db", {"poison": _nan}, "the features of frame 2 hold NaN or infinity"),
        (
            "db",
            {"poison": lambda z: z[:, :, 1:]},
            "features of shape 128×7×8 do not fit this split, which makes 128×8×8",
        ),
    ],
)
def test_one_sentence_and_nothing_written(tmp_path, prior, images, monkeypatch, method, options, sentence):
    if poison := options.pop("poison", None):
        monkeypatch.setattr(attack, "_played", _poison(poison))
    with pytest.raises(UserError, match=sentence) as caught:
        run_attack(method, images=images, prior=prior, out=tmp_path / "out", threads=1, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_prompt_that_won_and_all_losses_are_reported(tmp_path, prior, images):
    prompts = ["a goldfish", "a red panda"]
    changes = {"iterations": 2, "steps": 1, "lambda_txt": 3.0}
    out = run_attack(
        "dmb", images=images, prior=prior, out=tmp_path / "out", threads=1, prompts=prompts, changes=changes
    ).out
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    for row in rows:
        losses = {entry["prompt"]: entry["loss"] for entry in row["prompt_losses"]}
        assert list(losses) == prompts and row["prompt"] == min(losses, key=losses.get)
        assert row["loss"] == pytest.approx(min(losses.values()))
    told = read_summary(out / "summary.json").environment.model_dump()["prompts"]
    assert {p: told[p]["won"] for p in prompts} == {p: sum(r["prompt"] == p for r in rows) for p in prompts}
    assert all(np.isfinite(told[p]["loss"]) for p in prompts)
