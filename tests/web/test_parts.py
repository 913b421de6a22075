"""Pictures of features, verdicts, and what follows from a choice."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scenarios.demo import DemoOptions
from scenarios.web.choices import DEFENSES, chosen, strength_of
from scenarios.web.judge import Judge, Verdict
from scenarios.web.pictures import SIDE, drawn, jpeg
from splitsight.defenses import parse_defense
from splitsight.features import FeatureSpec


@pytest.mark.parametrize(
    "shape",
    [(64, 16, 16), (3, 1, 1), (512, 2, 2), (7, 7, 64), (197, 768), (17, 5), (1000,), (4, 3, 2, 2)],
    ids=str,
)
def test_all_features_can_be_drawn(shape):
    spec = FeatureSpec("z", shape)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = drawn([values], [spec])
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and image.std() > 1
    assert drawn([np.full(shape, np.nan, np.float32)], [spec]).shape == (SIDE, SIDE, 3)
    # the largest tensor of several
    several = drawn([np.ones(1, np.float32), values], [FeatureSpec("a", (1,)), spec])
    assert np.array_equal(several, image)


def test_jpeg_is_what_it_was():
    image = np.zeros((32, 64, 3), np.uint8)
    image[..., 0] = 200
    back = cv2.imdecode(np.frombuffer(jpeg(image), np.uint8), cv2.IMREAD_COLOR)
    assert back.shape == (128, 256, 3)
    assert np.abs(back[..., ::-1].astype(int).mean((0, 1)) - [200, 0, 0]).max() < 4


class Bright:
    """Sees whether an image is bright."""

    labels = ("dark", "bright")

    def logits(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_a_judge_says_what_a_person_would_ask():
    judge = Judge()
    judge.begin(Bright(), None, lambda image: "car")
    light, dark = np.full((8, 8, 3), 250, np.uint8), np.zeros((8, 8, 3), np.uint8)
    judge.submit("window", 1, light, light)
    judge.submit("window", 2, dark, light)
    judge.compare("car", light)
    judge.compare("bus", light)
    until = time.monotonic() + 20
    while (judge.verdict("window", 1) is None or judge.agreement() != 0.5) and time.monotonic() < until:
        time.sleep(0.01)
    right, wrong = judge.verdict("window", 1), judge.verdict("window", 2)
    assert right.recognised and right.sentence == "Recognised: a classifier sees “bright”, as in the original."
    assert wrong.sentence == "Not recognised: a classifier sees “dark”, in the original “bright”."
    assert judge.tally("window").recognised == 1 and judge.tally("preview") is None and judge.agreement() == 0.5
    judge.begin(None, None, lambda image: "")
    assert judge.verdict("window", 1) is None and judge.agreement() is None
    judge.close()


def test_a_rank_in_words():
    assert Verdict("a", "a", 1, 1000).sentence.endswith("found first among 1,000 images.")
    assert Verdict("a", "b", 4, 1000).sentence.endswith("among 1,000 images, 3 seem more alike.")


@pytest.mark.parametrize("key", DEFENSES)
def test_every_strength_is_a_defence_and_found_again(key):
    for step in range(len(DEFENSES[key].values)):
        defense = DEFENSES[key].at(step)
        assert strength_of(str(parse_defense(defense))) == strength_of(defense) == (key, step)


def test_no_strength_for_what_was_typed_in():
    assert strength_of("clip:norm=3") is None


def test_files_of_what_was_attacked_before_are_left_behind():
    options = DemoOptions(inversion=Path("i"), weights=Path("w"), attack="window:live")
    noisy = chosen(options, {"defense": "gaussian:ratio=0.5"})
    assert (noisy.inversion, noisy.weights, noisy.preview) == (Path("i"), Path("w"), True)
    deeper = chosen(DemoOptions(inversion=Path("i")), {"split": "L12"})
    assert (deeper.inversion, deeper.preview, deeper.split) == (None, True, "L12")
    # no network makes previews there: windows alone, by what needs none
    odd = chosen(options, {"prior": "elsewhere", "weights": None, "split": "L12"})
    assert (odd.preview, odd.solver) == (False, "window:denoised")
