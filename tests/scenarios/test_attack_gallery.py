"""`splitsight attack --gallery`: ranks in the rows, the match section in the summary, and what is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import save_prior

from adversary.attacks import ATTACKS, Attack, Reconstruction
from scenarios.attack import run_attack
from splitsight.data import load_images, to_tensor, write_png
from splitsight.errors import UserError
from splitsight.summary import read_summary


class Oracle(Attack):
    """Answers with the originals, but for the second of them, which it takes for another image."""

    name = "oracle"
    known: torch.Tensor
    wrong: torch.Tensor

    def reconstruct(self, problem, state=None, callback=None):
        images = self.known[problem.first : problem.first + problem.frames].clone()
        images[1:2] = self.wrong
        return Reconstruction(images, 0.0, 1, 1, 0.0)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def oracle(monkeypatch, folders):
    ATTACKS.names()
    monkeypatch.setitem(ATTACKS._items, "oracle", Oracle)
    Oracle.known = to_tensor(load_images(folders / "images", 64).images)
    Oracle.wrong = to_tensor(load_images(folders / "gallery", 64).images)[10]
    return Oracle


@pytest.fixture
def folders(tmp_path):
    """Three images, and forty of which they are three."""
    low = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(low, size=(64, 64), mode="bilinear").mul(255).byte()
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        for folder in ("gallery", "images") if i < 3 else ("gallery",):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_png(tmp_path / folder / f"{i:02d}.png", np.ascontiguousarray(picture))
    return tmp_path


@pytest.mark.parametrize(("features", "name"), [("pixels", "pixels-16x16"), ("target", "resnet18-penultimate")])
def test_ranks_and_summary(oracle, folders, prior, features, name):
    out = run_attack(
        "oracle",
        images=folders / "images",
        out=folders / "out",
        prior=prior,
        gallery=folders / "gallery",
        gallery_size=40,
        gallery_features=features,
    ).out
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert rows[0]["rank"] == rows[2]["rank"] == 1 and 1 < rows[1]["rank"] <= 40
    match = read_summary(out / "summary.json").methods["oracle"].match
    assert (match.gallery, match.features) == (40, name)
    assert match.top1.mean == pytest.approx(2 / 3) and 0 < match.top1.low < match.top1.mean < match.top1.high < 1
    assert not list(out.glob(".*"))


def test_without_a_gallery_images_are_found_among_each_other(oracle, folders, prior):
    oracle.wrong = oracle.known[2]
    done = run_attack("oracle", images=folders / "images", out=folders / "out", prior=prior)
    ranks = pq.read_table(done.out / "rows.parquet")["rank"].to_pylist()
    assert ranks[0] == ranks[2] == 1 and ranks[1] > 1
    match = read_summary(done.out / "summary.json").methods["oracle"].match
    assert (match.gallery, match.features, match.top1.mean) == (3, "pixels-16x16", pytest.approx(2 / 3))
    assert "67% found first among 3" in done.says and str(done.out / "index.html") in done.says
    # one image, or the frames of a clip, say nothing
    alone = run_attack("oracle", images=folders / "images", limit=1, out=folders / "one", prior=prior)
    assert "rank" not in pq.read_table(alone.out / "rows.parquet").column_names
    assert '"match"' not in (alone.out / "summary.json").read_text() and "found" not in alone.says


def test_bad_galleries_are_refused_before_anything_is_written(oracle, folders, prior):
    def refused(match, **options):
        with pytest.raises(UserError, match=match):
            run_attack(
                "oracle",
                images=folders / "images",
                out=folders / "out",
                prior=prior,
                **({"gallery": folders / "gallery"} | options),
            )
        assert not (folders / "out").exists()

    refused("holds 40 different images where a gallery of 1000 needs 999")
    refused("holds 39 different images where a gallery of 41 needs 40", gallery_size=41)
    refused(
        "unknown features to compare images in 'x': choose one of pixels, target", gallery_size=9, gallery_features="x"
    )
    refused("no such file or folder", gallery=folders / "none")


def test_evaluators_look_at_the_reconstructions(oracle, folders, prior):
    done = run_attack("oracle", images=folders / "images", out=folders / "out", prior=prior, evaluators=["mbconv"])
    rows = pq.read_table(done.out / "rows.parquet").to_pylist()
    # labels are unknown here: seen as what the original is seen as, which an equal image is
    assert rows[0]["recognised:mbconv"] and rows[2]["recognised:mbconv"]
    assert [rows[i]["match_rank:mbconv"] for i in (0, 2)] == [1, 1]
    figures = read_summary(done.out / "summary.json")
    found = figures.methods["oracle"].interval("matched_top5:mbconv")
    assert found is not None and found.mean == 1.0 and "evaluator:mbconv" in figures.environment.weights
    assert "recognised (mbconv)" in done.says and "recognised (mbconv)" in (done.out / "index.html").read_text()
    with_gallery = {"gallery": folders / "gallery", "gallery_size": 40, "evaluators": ["mbconv"]}
    more = run_attack("oracle", images=folders / "images", out=folders / "more", prior=prior, **with_gallery)
    ranks = pq.read_table(more.out / "rows.parquet")["match_rank:mbconv"].to_pylist()
    assert ranks[0] == ranks[2] == 1 and ranks[1] > 1
    with pytest.raises(UserError, match="unknown evaluator 'nobody': give mbconv, efficientnet-lite0, or a folder"):
        run_attack("oracle", images=folders / "images", out=folders / "no", prior=prior, evaluators=["nobody"])
    assert not (folders / "no").exists()
