"""What the command line may say of limits, attackers and points."""

import pytest
import typer
from typer.main import get_command

from scenarios import cli
from scenarios.splits.attackers import parse_attackers
from scenarios.splits.points import all_points, chosen_points, is_chain
from scenarios.splits.recommend import LATENCY, UTILITY
from scenarios.splits.spec import SplitOptions, parse_limits
from splitsight import targets
from splitsight.errors import UserError


def test_limits_have_the_direction_of_their_measure():
    limits = parse_limits(20, ["ssim=0.4", "lpips=0.3", "dfil=2"], 0.7)
    assert [(x.measure, x.value, x.rises) for x in limits] == [
        (LATENCY, 20, True),
        ("ssim", 0.4, True),
        ("lpips", 0.3, False),  # a distance: less of it is more leakage
        ("dfil", 2, True),
        (UTILITY, 0.7, False),
    ]
    assert parse_limits() == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((0, [], None), "--max-latency-ms must be more than 0"),
        ((float("nan"), [], None), "--max-latency-ms"),
        ((None, ["ssim"], None), "MEASURE=VALUE"),
        ((None, ["ssim=low"], None), "MEASURE=VALUE"),
        ((None, ["sim=0.4"], None), "ssim"),
        ((None, ["recognised=20"], None), "from 0 to 1"),
        ((None, ["ssim=0.4", "ssim=0.5"], None), "twice"),
        ((None, [], 70), "from 0 to 1"),
    ],
)
def test_limits_that_cannot_be(given, words):
    with pytest.raises(UserError) as error:
        parse_limits(*given)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"edge_slowdown": 0}, "--edge-slowdown"),
        ({"limit": 0}, "--limit"),
        ({"gallery_size": 1}, "--gallery-size"),
        ({"networks": ["wifi", "wifi"]}, "twice"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        SplitOptions(target="resnet18", out=tmp_path, **options)


def test_attackers():
    assert [(a.name, a.threat) for a in parse_attackers(["default"])] == [
        ("best:sharp", "white-box"),
        ("net-best:sharp", "black-box"),
    ]
    assert [a.name for a in parse_attackers(["do,db:paper", "dmb"])] == ["do:tuned", "db:paper", "dmb:fast"]
    assert parse_attackers(["none"]) == []
    for given, words in (
        (["none,do"], "no other attack"),
        (["do,do:tuned"], "twice"),
        (["dmb-multi"], "single images"),
        (["best:blunt"], "sharp"),
        (["bst"], "best"),
    ):
        with pytest.raises(UserError, match=words):
            parse_attackers(given)


def test_attacks_may_be_given_bare():
    command = get_command(cli.app).commands["splits"]

    def parsed(*arguments: str) -> dict:
        return command.make_context("splits", list(arguments)).params

    assert parsed("--attacks")["attacks"] == ["default"]
    assert parsed("--attacks", "--quick")["attacks"] == ["default"] and parsed("--attacks", "--quick")["quick"]
    assert parsed("--attacks", "do,db", "--attacks", "best")["attacks"] == ["do,db", "best"]
    assert not parsed()["attacks"]
    with pytest.raises((SystemExit, typer.Exit, Exception), match="no-such"):
        parsed("--no-such")


def test_points_of_an_evaluation():
    target = targets.load("resnet18")
    everything, none = chosen_points(target)
    assert [p.name for p in everything] == [p.name for p in all_points(target)] and not none
    few, left_out = chosen_points(target, quick=True)
    assert [p.name for p in few] == ["L4", "L8", "L12", "L16"]
    assert {p.name for p in few} | set(left_out) == {p.name for p in everything}
    asked, _ = chosen_points(target, ["L12", "conv1"])
    assert [p.name for p in asked] == ["conv1", "L12"]  # shallow first, however they are given
    assert asked[1].at == "layer3" and is_chain(asked)
    with pytest.raises(UserError, match="L8"):
        chosen_points(target, ["L9"])
    with pytest.raises(UserError, match="later layers also read"):
        chosen_points(target, ["layer2.0.conv1"])
    with pytest.raises(UserError, match="twice"):
        chosen_points(target, ["L4", "L4"])
    skipping, _ = chosen_points(target, ["layer2.0.relu+layer1"])
    assert not is_chain(skipping)


def test_points_that_a_family_cuts_by_hand(tiny_target):
    points, _ = chosen_points(tiny_target, ["S2", "S1"])
    assert [(p.name, p.bytes) for p in points] == [("S1", 4 * 8 * 8 * 8), ("S2", 4 * 16 * 4 * 4)]
    assert points[0].flops is None
