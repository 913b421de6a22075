"""A machine that cannot keep up is told so before the stream."""

from adversary.live.pace import Pace


def test_a_slow_attack_is_said_with_what_to_expect():
    said = Pace("dmb-multi:live", 4, 13.7, 8, 2.0).warning
    for words in (
        "at least 13.7 s",
        "0.58 evaluations",
        "every 2 s",
        "14 s or more",
        "85% of the windows",
        "window:live",
    ):
        assert words in said
    assert "--stride" in Pace("window:live", 4, 3.0, 0, 2.0).warning


def test_one_that_keeps_up_says_nothing():
    assert Pace("window:live", 4, 1.9, 0, 2.0).warning == ""
