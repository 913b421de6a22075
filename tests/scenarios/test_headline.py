"""What a page says first, and the words on it."""

import re
import shlex
from pathlib import Path

import pytest

from scenarios.explained import WORDS, try_next
from scenarios.headline import default_evaluators, default_gallery, headline
from splitsight.data import load_images


def summary(recognised=None, found=None, **more):
    share = {"recognised:mbconv": {"mean": recognised}} if recognised is not None else {}
    share |= {"matched_top1:mbconv": {"mean": found}} if found is not None else {}
    match = {"match": {"gallery": 1000, "top1": {"mean": 0.5}}}
    return {"methods": {"preview": {"n": 9, **match}, "window": {"n": 8, **match, **share, **more}}}


@pytest.mark.parametrize(
    ("recognised", "found", "says"),
    [
        (
            0.9,
            1.0,
            "can tell which of 1,000 pictures was sent, and what it shows is nearly always recognised",
        ),
        (
            0.0,
            1.0,
            "can tell which of 1,000 pictures was sent, but what it shows is hardly ever recognised",
        ),
        (
            0.1,
            0.0,
            "cannot tell which of 1,000 pictures was sent, and what it shows is hardly ever recognised",
        ),
        (
            0.5,
            0.2,
            "can sometimes tell which of 1,000 pictures was sent, but what it shows is often recognised",
        ),
    ],
)
def test_one_sentence_on_what_can_be_seen(recognised, found, says):
    told = headline(summary(recognised, found), ("preview", "window"))
    assert told.says == f"Whoever reads the features {says} by a classifier."
    assert (told.method, told.gallery, told.evaluator) == ("window", 1000, "mbconv")


def test_without_an_evaluator_the_gallery_answers_and_without_any_image_nobody():
    told = headline(summary())
    assert (told.recognised, told.found) == (None, 0.5) and told.says.endswith(
        "can mostly tell which of 1,000 pictures was sent."
    )
    assert headline({"methods": {}}) is None
    assert headline({"methods": {"preview": {"n": 1}}}).says.startswith("Nobody was asked")


def test_defaults_ship_with_the_package():
    assert default_evaluators((), "resnet18") == ("mbconv",) and default_evaluators((), "mbconv") == ()
    assert default_evaluators(("none",), "resnet18") == ("none",)
    images = load_images(default_gallery(), 64)
    assert len({image.tobytes() for image in images.images}) == 1001


def test_three_commands_to_try_next_change_one_thing_each():
    def commands(**options):
        return [command for command, _ in try_next(options, ("L4", "L8", "L12", "L16"))]

    assert commands() == [
        "splitsight demo --split L12",
        "splitsight demo --defense gaussian:ratio=0.5 --compare",
        "splitsight demo --threat black-box",
    ]
    noisy = commands(split="L16", defense="topk:keep=0.1", threat="black-box", video="my clip.mp4", prior="half")
    base = ["splitsight", "demo", "--video", "my clip.mp4", "--prior", "half"]
    assert [shlex.split(command)[:6] for command in noisy] == [base] * 3
    assert [shlex.split(command)[6:] for command in noisy] == [
        ["--split", "L12"],
        ["--split", "L16", "--defense", "topk:keep=0.1", "--compare"],
        ["--split", "L16", "--threat", "white-box"],
    ]


def test_the_words_of_a_page_are_the_glossarys():
    text = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
    lines = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.M))
    assert len(WORDS) == 10 and {word: lines.get(word) for word in WORDS} == WORDS
