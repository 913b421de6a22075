"""Finding the right frame: distractors, exact copies, ranks by definition, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from splitsight import targets
from splitsight.data import to_tensor, write_png
from splitsight.errors import UserError
from splitsight.metrics import matched
from splitsight.metrics.gallery import SPACES, Gallery
from splitsight.summary import MatchSummary

SIZE = 64


@pytest.fixture(scope="module")
def target():
    return targets.load("resnet18")


@pytest.fixture(scope="module")
def pictures():
    """Thirty different images."""
    low = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(low, size=(SIZE, SIZE), mode="bilinear").mul(255).round().byte()
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Twenty of them as files, two of them twice."""
    out = tmp_path_factory.mktemp("gallery")
    for i, image in enumerate([*pictures[:20], *pictures[:2]]):
        write_png(out / f"{i:02d}.png", image)
    return out


def draw(folder, target, size, seed=0, features="pixels", spare=False):
    return Gallery.draw(folder, target, size=size, features=features, seed=seed, spare=spare)


def noisy(images, sigma=0.02):
    x = to_tensor(images)
    return (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


@pytest.mark.parametrize("features", ["pixels", "target"])
def test_finds_what_is_nearly_right_and_not_what_is_wrong(folder, target, pictures, features):
    gallery = draw(folder, target, 15, features=features)
    lineup = gallery.against(to_tensor(pictures[20:25]))
    assert lineup.ranks(noisy(pictures[20:25])) == [1] * 5
    wrong = lineup.ranks(noisy(pictures[:5]))
    assert min(wrong) > 1 and max(wrong) <= 15
    assert lineup.ranks(torch.full((5, 3, SIZE, SIZE), float("nan"))) == [15] * 5


def test_ranks_are_those_of_the_definition(folder, target, pictures):
    """An original that is in the gallery, and one that is not, each in a gallery of its own."""
    gallery, queries = draw(folder, target, 20), noisy(pictures[[3, 25]], 0.6)
    ranks = gallery.against(to_tensor(pictures[[3, 25]])).ranks(queries)
    for rank, query, own in zip(ranks, queries, (3, 25), strict=True):
        others = [x for x in gallery.images if not (x == pictures[own]).all()][:19]
        alone = to_tensor(np.stack([*others, pictures[own]]))
        assert rank == int(matched(query[None], alone, [19]).ranks)


def test_an_exact_copy_of_the_original_is_no_distractor(folder, target, pictures):
    originals = to_tensor(pictures[:20])
    lineup = draw(folder, target, 20).against(originals)
    assert lineup.ranks(originals) == [1] * 20
    assert lineup.rivals.sum(1).tolist() == [19] * 20
    # frames of the run itself never are
    assert not lineup.rivals[:, 20:].any()


def test_the_draw_depends_on_the_seed_alone(folder, target):
    first = draw(folder, target, 9, seed=4)
    assert (first.images == draw(folder, target, 9, seed=4).images).all()
    assert not (first.images == draw(folder, target, 9, seed=5).images).all()
    assert len({image.tobytes() for image in draw(folder, target, 21).images}) == 20


def test_what_is_refused(folder, target, pictures, tmp_path):
    with pytest.raises(UserError, match=r"holds 20 different images where a gallery of 1000 needs 999: .*-size 21"):
        draw(folder, target, 1000)
    with pytest.raises(UserError, match=r"holds 20 different images where a gallery of 21 needs 21: .*-size 20"):
        draw(folder, target, 21, spare=True)
    # twenty distractors do for an original of other origin, not for one of them
    gallery = draw(folder, target, 21)
    gallery.against(to_tensor(pictures[25:]))
    with pytest.raises(UserError, match=r"holds 19 different images where a gallery of 21 needs 20: .*-size 20"):
        gallery.against(to_tensor(pictures[4:5]))
    with pytest.raises(UserError, match="unknown features to compare images in 'vgg': choose one of pixels, target"):
        draw(folder, target, 5, features="vgg")
    with pytest.raises(UserError, match="--gallery-size must be at least 2"):
        draw(folder, target, 1)
    with pytest.raises(UserError, match="no such file or folder"):
        draw(tmp_path / "none", target, 5)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match="not a readable PNG"):
        draw(tmp_path, target, 5)


def test_the_target_space_is_what_its_last_layer_reads(target, pictures):
    images = to_tensor(pictures[:3])
    space = SPACES["target"](target)
    assert space.name == "resnet18-penultimate" and SPACES["pixels"](target).name == "pixels-16x16"
    features = space.features(images)
    assert features.shape == (3, 512)
    torch.testing.assert_close(target.model.fc(features), target.model(target.preprocess(images)))
    assert not target.model.fc._forward_pre_hooks


def test_summary_has_wilson_intervals(folder, target):
    ranks = [1, 1, 3, 9, 1, 2, 20]
    got = draw(folder, target, 20).summary(ranks)
    MatchSummary.model_validate(got)
    assert (got["gallery"], got["features"]) == (20, "pixels-16x16")
    for k in (1, 5):
        hits = sum(r <= k for r in ranks)
        interval = binomtest(hits, len(ranks)).proportion_ci(method="wilson")
        assert got[f"top{k}"] == pytest.approx(
            {"mean": hits / len(ranks), "low": interval.low, "high": interval.high}, abs=1e-9
        )


def test_rivals_must_fit():
    gallery, query = torch.rand(4, 3, 16, 16), torch.rand(2, 3, 16, 16)
    good = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert matched(query, gallery, [0, 1], rivals=good).gallery == 3
    assert matched(query[:0], gallery, [], rivals=good[:0]).gallery == 4
    for wrong in (
        good[:1],
        good.float(),
        torch.ones_like(good),
        torch.tensor([[False, True, True, True], [True] + [False] * 3]),
    ):
        with pytest.raises(ValueError, match="rivals"):
            matched(query, gallery, [0, 1], rivals=wrong)
