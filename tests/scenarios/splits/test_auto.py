"""`--split auto`: the rule on networks whose every number is known, and by the public command."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from torch import nn

from scenarios.cli import main
from scenarios.demo import DemoOptions, with_split
from scenarios.splits.auto import auto_split, usual_split
from splitsight.errors import UserError
from splitsight.targets import Target
from splitsight.tasks.classify import Classify


def target(*layers, aliases=None):
    task = Classify([str(i) for i in range(4)])
    return Target("made", nn.Sequential(*layers), nn.Identity(), task, 8, aliases)


def test_the_rule():
    """Four 1×1 convolutions at 8×8: 3·8, 8·2, 2·8 and 8·8 products a position; 60 % of 120 is 72."""
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1)]
    made = target(*layers, nn.Flatten(1))
    name, says = auto_split(made)
    assert name == "1" and "0.5 KiB a frame" in says and "here 33%" in says and "nothing was measured" in says
    # where as few bytes cross, the deepest
    assert auto_split(target(layers[0], layers[1], nn.ReLU(), *layers[2:], nn.Flatten(1)))[0] == "2"
    # only what the family offers, and of that only what will do, if anything does
    assert auto_split(target(*layers, nn.Flatten(1), aliases={"a": "0", "b": "2", "c": "3"}))[0] == "b"
    assert auto_split(made, lambda point: point == "0")[0] == "0"
    assert auto_split(made, lambda point: False)[0] == "1"
    with pytest.raises(UserError, match=r"more than 60% of the work at every point of made: choose one of c"):
        auto_split(target(*layers, nn.Flatten(1), aliases={"c": "3"}))


def test_an_embedded_network():
    from splitsight.targets import load

    resnet = load("resnet18")
    assert auto_split(resnet)[0] == "L8"
    assert with_split(DemoOptions(split="auto")).split == "L8"  # which has a network for previews
    assert with_split(DemoOptions(split="L4")).split == "L4"


def test_the_command(tmp_path, capsys):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "a.png")
    words = f"attack do --images {tmp_path} --split auto --out {tmp_path / 'out'} --set iterations=2 --json"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code in (0, None)
    said = capsys.readouterr()
    assert "--split auto: L8, where the fewest bytes cross" in said.err
    assert json.loads(said.out)["split"] == "L8"


@pytest.mark.parametrize(
    ("given", "target", "taken"),
    [
        (None, "resnet18", "L8"),
        (None, "efficientnet-lite0", "auto"),
        ("L4", "resnet18", "L4"),
        ("auto", "resnet18", "auto"),
    ],
)
def test_without_a_name_the_usual_network_is_cut_at_its_usual_point_and_others_by_rule(given, target, taken):
    assert usual_split(given, target) == taken
