"""Another attack while the stream runs: made beside the old one, which stays where it cannot be."""

import threading
from types import SimpleNamespace

import pytest

from adversary.live.options import LiveOptions
from adversary.live.steering import Steering
from splitsight.errors import UserError
from splitsight.wire.v1 import operator_pb2 as pb


@pytest.fixture
def steered(tmp_path):
    taken, made, go = [], [], threading.Event()

    def make(options):
        made.append((options.named, options.prompt, options.changes))
        assert go.wait(10)
        if options.prompt == "impossible":
            raise UserError("there is none")
        return SimpleNamespace(options=options)

    options = LiveOptions(tap="", out=tmp_path, attack="window", setting="live", changes={"iterations": 3})
    steering = Steering(options, make, lambda known, o: taken.append(o.named), lambda status: None)

    def settle():
        go.set()
        if (thread := steering._thread) is not None:
            thread.join(10)
        return steering.status()

    return SimpleNamespace(steering=steering, taken=taken, made=made, settle=settle)


def test_another_attack_takes_over_once_it_is_made(steered):
    assert steered.steering.status().attack == "window:live"
    steered.steering.change(pb.ChangeRequest(attack="best-multi"))
    status = steered.steering.status()
    assert (status.busy, status.attack) == (True, "window:live")
    status = steered.settle()
    assert (status.busy, status.attack, status.problem) == (False, "best-multi", "")
    # values that were set for the old attack are not the new one's
    assert steered.made == [("best-multi", "", {})] and steered.taken == ["best-multi"]


def test_the_last_wish_counts(steered):
    for attack in ("best-multi", "window:denoised", "dmb-multi:live"):
        steered.steering.change(pb.ChangeRequest(attack=attack))
    assert steered.settle().attack == "dmb-multi:live" and len(steered.made) <= 2


def test_what_cannot_be_leaves_the_old_one(steered):
    steered.steering.change(pb.ChangeRequest(prompt="impossible"))
    status = steered.settle()
    assert (status.attack, status.prompt, status.problem, steered.taken) == ("window:live", "", "there is none", [])
    steered.steering.change(pb.ChangeRequest(prompt="a dog"))
    status = steered.settle()
    assert (status.prompt, status.problem) == ("a dog", "")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"attack": "nonsense"}, "unknown attack 'nonsense'"),
        ({"attack": "window:nonsense"}, "unknown setting"),
        ({"attack": "do", "prompt": "a cat"}, "a prompt changes nothing for do"),
        ({"speed": 2.0}, "an adversary has no speed to change"),
    ],
    ids=str,
)
def test_refused_at_once(steered, wanted, words):
    with pytest.raises(UserError, match=words):
        steered.steering.change(pb.ChangeRequest(**wanted))
    assert not steered.made
