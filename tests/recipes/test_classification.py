"""Accuracy, distillation and what a teacher answers."""

import numpy as np
import torch
from torch.nn.functional import log_softmax, softmax

from splitsight.data import to_tensor
from splitsight.recipes import Draw
from splitsight.recipes.classification import accuracy, distillation, teacher_logits
from splitsight.recipes.vit_small import kept_tokens
from splitsight.targets import Normalize, Target
from splitsight.tasks.classify import Classify


def test_accuracy():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = (0, 255, 255, 0)
    # seven classes; the first for dark images, the last for bright ones, the others in between
    scores = torch.linspace(1, 0, 7)
    found = accuracy(
        lambda x: torch.where(x[:, 0, 0, 0, None] > 0.5, scores.flip(0), scores), images, np.array([0, 6, 2, 6])
    )
    assert found == {"top1": 0.5, "top5": 0.75}


def test_distillation_is_the_divergence_of_softened_answers():
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    p, q = softmax(teacher / 2, 1), softmax(student / 2, 1)
    assert torch.isclose(distillation(student, teacher, 2.0), 4 * (p * (p / q).log()).sum() / 3)
    assert distillation(student, student + 7, 2.0).abs() < 1e-12
    # at high temperatures its gradient is that of half the squared distance of centred logits, by the classes
    student.requires_grad_(True)
    distillation(student, teacher, 1e4).backward()
    difference = (student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)).detach()
    assert torch.allclose(student.grad, difference / 5 / 3, atol=1e-4)
    assert torch.isfinite(log_softmax(student, 1)).all()


def test_a_teacher_answers_once_for_both_sides(cache):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3 * 8 * 8, 2))
    teacher = Target("t", model, Normalize([0.5] * 3, [0.5] * 3), Classify(["a", "b"]), 8)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    found = teacher_logits(teacher, images)
    x = to_tensor(images) * 2 - 1
    assert np.allclose(found, (model(x) + model(x.flip(-1))).detach() / 2, atol=2e-3)
    files = list((cache / "teachers").glob("*.npy"))
    before = [f.stat().st_mtime_ns for f in files]
    assert np.array_equal(teacher_logits(teacher, images), found)
    assert [f.stat().st_mtime_ns for f in files] == before


def test_fewer_tokens_at_first():
    def draw(fraction):
        return Draw(fraction, np.arange(3), torch.Generator().manual_seed(0))

    few, half = kept_tokens(64, 3, draw(0.0)), kept_tokens(64, 3, draw(0.5))
    assert few.shape == (3, 16) and half.shape == (3, 32) and kept_tokens(64, 3, draw(0.9)) is None
    assert all(len(set(row)) == 16 and row == sorted(row) for row in few.tolist()) and len(few.unique()) > 16
