import json
import os

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from elsewhere import ELSEWHERE, SecondDevice
from tiny import save_prior

from adversary.attacks import ATTACKS
from scenarios.attack import _groups, run_attack
from splitsight.errors import UserError
from splitsight.pictures import Panel, panels
from splitsight.summary import read_summary


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        picture = cv2.resize(rng.integers(0, 255, (4, 6, 3), np.uint8), (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"photo {i}.png"), picture)
    return folder


def _run(method, out, prior, **options):
    return run_attack(method, out=out, prior=prior, threads=1, time_budget=1.5, **options).out


def test_attack_leaves_what_the_contract_says(tmp_path, prior, images):
    out = _run("dmb", tmp_path / "out", prior, images=images, limit=2)
    raw = json.loads((out / "summary.json").read_text())
    assert raw["schema"] == "splitsight.summary/1" and (raw["target"], raw["split"]) == ("resnet18", "L8")
    method = read_summary(out / "summary.json").methods["dmb"]
    assert method.n == 2 and method.iterations > 0 and method.seconds_per_image > 0
    # every step passes an image through F1 once and its latent through the denoiser four times
    assert method.model_evaluations >= 5 * method.iterations
    assert method.psnr.low <= method.psnr.mean <= method.psnr.high
    names = sorted(p.name for p in (out / "reconstructions").iterdir())
    assert names == ["photo 0.png", "photo 1.png"]
    stored = cv2.imread(str(out / "reconstructions" / names[0]))
    assert stored.shape == (64, 64, 3)
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert [r["name"] for r in rows] == ["photo 0", "photo 1"]
    # the figure can be traced to the file: scored as written
    picture = cv2.imread(str(images / "photo 0.png"))
    from splitsight.data import fit

    error = np.mean((fit(picture, 64).astype(float) - stored) ** 2)
    assert rows[0]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.05)
    # two columns, each original above its reconstruction
    sheet = cv2.cvtColor(cv2.imread(str(out / "grid.png")), cv2.COLOR_BGR2RGB)
    shown = panels([Panel(fit(picture, 64)[:, :, ::-1].copy(), "", "")], side=192)[8:200, 8:200]
    assert sheet.shape[1] == 2 * 192 + 3 * 8
    assert any(np.array_equal(sheet[top : top + 192, 8:200], shown) for top in range(60))


def test_names_of_any_kind(tmp_path, prior, images):
    """Names that no output can have, in a folder and to a folder whose own names are not UTF-8."""
    for old, new in (("photo 0.png", b"a\nb.png"), ("photo 1.png", b"x\xe9.png"), ("photo 2.png", b"x\xea.png")):
        (images / old).rename(images / os.fsdecode(new))
    source = images.rename(tmp_path / os.fsdecode(b"in\xe9"))
    out = _run("dmb", tmp_path / os.fsdecode(b"out\xe9"), prior, images=source, gallery=source, gallery_size=2)
    names = sorted(p.name for p in (out / "reconstructions").iterdir())
    assert names == ["a_b.png", "x_-2.png", "x_.png"]
    with (out / "rows.parquet").open("rb") as file:
        assert sorted(row["name"] + ".png" for row in pq.read_table(file).to_pylist()) == names
    assert read_summary(out / "summary.json").methods["dmb"].n == 3
    assert os.fsencode(json.loads((out / "config.json").read_text())["input"]).endswith(b"in\xe9")


def test_another_device_gives_the_same_images(tmp_path, prior, images):
    options = {"prior": prior, "threads": 1, "images": images, "limit": 2, "changes": {"iterations": 3}}
    here = run_attack("dmb", out=tmp_path / "here", prompts=["goldfish"], **options).out
    with SecondDevice():
        there = run_attack("dmb", out=tmp_path / "there", prompts=["goldfish"], device=ELSEWHERE.type, **options).out
    for name in ("photo 0.png", "photo 1.png"):
        pictures = [cv2.imread(str(out / "reconstructions" / name)).astype(int) for out in (here, there)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    devices = [read_summary(out / "summary.json").environment.device for out in (here, there)]
    assert devices[0].startswith("CPU") and devices[1] == ELSEWHERE.type


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(prior, images):
    from adversary.attacks import Problem
    from adversary.priors.prior import load_prior
    from splitsight import targets
    from splitsight.data import load_images

    head = targets.load("resnet18").head("L8")
    x = torch.from_numpy(load_images(images, 64).images).permute(0, 3, 1, 2).float() / 255
    z = [t.detach() for t in head(x)]
    generator = load_prior(prior)
    values = {"iterations": 3, "steps": 2, "lr": 0.1, "schedule": "constant", "relative": False, "tv": 1.0}
    attack = ATTACKS.get("dmb").configured(changes=values)

    def solve(rows, first):
        return attack.reconstruct(Problem([t[rows] for t in z], head, prior=generator, first=first)).images

    together, alone = solve([0, 1, 2], 0), solve([1], 1)
    torch.testing.assert_close(together[1:2], alone, atol=2e-3, rtol=0)


def test_windows_of_a_recording_cover_every_frame_once():
    times = [0.1 * i for i in range(23)]
    groups = list(_groups(times, True, 4, 0.5))
    assert sorted(i for g in groups for i in g) == list(range(23))
    assert groups[0] == [0, 4, 8, 12] or groups[0] == [0, 5, 10, 15]
    assert list(_groups([0.0] * 10, False, 4, 0.5)) == [list(range(8)), [8, 9]]


def test_bad_requests_get_one_sentence(tmp_path, prior, images):
    run = lambda method="dmb", **k: _run(method, tmp_path / "o", prior, **k)  # noqa: E731
    with pytest.raises(UserError, match="exactly one of --images, --video, --recording"):
        run()
    with pytest.raises(UserError, match=r"unknown attack .nope.: choose one of .*dmb"):
        run("nope", images=images)
    with pytest.raises(UserError, match="unknown setting of dmb 'x': choose one of fast, paper, tuned"):
        run(images=images, setting="x")
    with pytest.raises(UserError, match="unknown split"):
        run(images=images, split="L7")
    with pytest.raises(UserError, match="no such file or folder"):
        run(images=tmp_path / "gone")
    with pytest.raises(UserError, match="no inversion network"):
        run("preview", images=images)
