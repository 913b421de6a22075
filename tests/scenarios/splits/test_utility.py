"""Agreement with the uncut network, by task; what is told without an attack, against closed forms."""

import math

import pytest
import torch
from torch import nn

from scenarios.splits.told import told
from scenarios.splits.utility import agreement, largest_difference, task_utility
from splitsight.pipeline import EdgePipeline
from splitsight.targets import Target
from splitsight.tasks.classify import Classify
from splitsight.tasks.detect import Detect
from splitsight.tasks.embed import Embed


def test_classes_agree_or_not():
    task = Classify(["a", "b", "c"])
    uncut = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 0]])
    moved = torch.tensor([[5.0, 1, 0], [3, 1, 2], [0, 9, 0]])
    assert agreement(task, moved, uncut) == [1.0, 0.0, 1.0]
    assert task_utility(task, uncut, [0, 2, 0]) == ("top1", [1.0, 1.0, 0.0])
    assert (
        largest_difference(moved, uncut) == 6.0
        and largest_difference([uncut, {"x": uncut}], [uncut, {"x": uncut}]) == 0
    )


def test_embeddings_agree_by_their_cosine():
    uncut = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    moved = torch.tensor([[3.0, 0], [1, 1], [-1, 0]])
    assert agreement(Embed(), moved, uncut) == pytest.approx([1, 2**-0.5, 0])


def test_boxes_agree_by_their_precision():
    task = Detect(["cup", "dog"])
    boxes, nothing = torch.tensor([[0.1, 0.1, 0.4, 0.4]]), torch.zeros(0, 4)
    uncut = [{"boxes": boxes, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}]
    other = [{"boxes": boxes, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}]
    none = [{"boxes": nothing, "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}]
    assert agreement(task, uncut, uncut) == pytest.approx([1.0]) and agreement(task, other, uncut) == [0.0]
    assert all(map(math.isnan, agreement(task, none, none)))  # where there is nothing to find, nothing is known


@pytest.fixture
def linear():
    """A network that is linear up to its only split point ``f``: z = A x."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("f", nn.Sequential(nn.Flatten(1), nn.Linear(48, 20)))
    model.add_module("g", nn.Linear(20, 3))
    return Target("linear", model, nn.Identity(), Classify(["a", "b", "c"]), 4)


def _found(target, images, defense="identity"):
    rows = told(EdgePipeline(target, "f", defense), images, 64, seed=0)
    names = {row["measure"] for row in rows}
    values = {name: [row["value"] for row in rows if row["measure"] == name] for name in names}
    return values


def test_what_is_told_of_a_linear_network(linear):
    images, matrix = torch.rand(3, 3, 4, 4), linear.model.f[1].weight
    energy = float(matrix.square().sum()) / 48
    plain = _found(linear, images)
    assert set(plain) == {"sensitivity", "sensitivity_scaled", "fsinfo_assumed"}
    assert sum(plain["sensitivity"]) / 3 == pytest.approx(energy, rel=0.1)
    spread = float(linear.model.f(images).std(correction=0))
    assert plain["sensitivity_scaled"][0] == pytest.approx(plain["sensitivity"][0] / spread**2)
    noisy = _found(linear, images, "gaussian:sigma=0.5")
    assert noisy["dfil"][0] == pytest.approx(noisy["sensitivity"][0] / 0.25)
    assert noisy["cramer_rao"][0] == pytest.approx(3 / sum(noisy["dfil"]))
    # log det of the posterior's precision, exactly
    for values, sigma in ((plain["fsinfo_assumed"], 0.1 * spread), (noisy["fsinfo"], 0.5)):
        precision = matrix.T @ matrix / sigma**2 + 12 * torch.eye(48)
        exact = float(torch.logdet(precision.double()) / 96) - 0.5 * math.log(2 * math.pi * math.e)
        assert values[0] == pytest.approx(exact, rel=1e-3)


def test_noise_of_another_law_and_of_another_strength_a_frame(linear):
    images = torch.rand(3, 3, 4, 4)
    gauss, laplace = (_found(linear, images, f"noise:sigma=0.5,law={law}") for law in ("gaussian", "laplace"))
    # the Fisher information of Laplace noise about its mean is twice that of Gaussian noise of the same deviation
    assert laplace["dfil"] == pytest.approx([2 * v for v in gauss["dfil"]])
    ratio = _found(linear, images, "gaussian:ratio=0.5")
    edge, features = EdgePipeline(linear, "f", "gaussian:ratio=0.5"), linear.model.f(images)
    sigma = [edge.deviations((z[None],))[0] for z in features]
    expected = [energy / float(s) ** 2 for energy, s in zip(ratio["sensitivity"], sigma, strict=True)]
    assert ratio["dfil"] == pytest.approx(expected)


def test_scaling_the_features_changes_what_has_their_unit_alone(linear):
    images = torch.rand(3, 3, 4, 4)
    before = _found(linear, images)
    with torch.no_grad():
        linear.model.f[1].weight.mul_(10)
        linear.model.f[1].bias.mul_(10)
    # a graph remembers what its network computed
    again = Target("linear", linear.model, nn.Identity(), linear.task, 4)
    after = _found(again, images)
    assert after["sensitivity"][0] == pytest.approx(100 * before["sensitivity"][0], rel=1e-3)
    assert after["sensitivity_scaled"][0] == pytest.approx(before["sensitivity_scaled"][0], rel=1e-3)
    assert after["fsinfo_assumed"][0] == pytest.approx(before["fsinfo_assumed"][0], rel=1e-3)
