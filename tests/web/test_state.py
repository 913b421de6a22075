"""The board holds the latest of everything; requests are answered one by one."""

import math
import queue

import pytest

from scenarios.web.state import Board, Picture, Requests


def test_a_picture_is_put_up_once_and_replaced_by_the_next():
    board = Board()
    board.show(a=Picture(b"1", "one"), b=Picture(b"2", "two"))
    assert (board.version, set(board.pictures)) == (1, {"a", "b"})
    board.show(a=Picture(b"1", "one"))
    assert board.version == 1
    tag = board.pictures["a"].tag
    board.show(a=Picture(b"1", "one", "more words"), b=None)
    assert (board.version, set(board.pictures)) == (2, {"a"}) and board.pictures["a"].tag != tag
    board.clear()
    assert (board.version, dict(board.pictures)) == (3, {})


def test_curves_keep_their_newest_points():
    board = Board()
    for i in range(1000):
        board.plot("rtt", "ms", i, math.pi * i)
    points = board.curves("rtt")["ms"]
    assert len(points) == 240 and points[-1] == (999, 3138.5) and board.curves("lag") == {}


def test_requests_wait_their_turn_and_there_is_an_end_to_them():
    requests = Requests()
    assert requests.take(0.001) is None
    done = requests.ask("change", speed=2)
    taken = requests.take(0.001)
    assert (taken.action, taken.values) == ("change", {"speed": 2})
    taken.done.set_result("Done.")
    assert done.result(0) == "Done."
    with pytest.raises(queue.Full):
        for _ in range(1000):
            requests.ask("change")
