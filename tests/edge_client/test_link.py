import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from edge_client.link import Link, Sent, describe
from splitsight.errors import UserError
from splitsight.wire.v1 import split_inference_pb2 as pb

sys.path.insert(0, str(Path(__file__).parent))
from fake_cloud import FakeCloud


class Run:
    """A link with its answers and events; sends frames as the client does."""

    def __init__(self, address: str, in_flight: int = 4, **options) -> None:
        self.answers: list[int] = []
        self.rtt: list[float] = []
        self.events: list[str] = []
        self.link = Link(
            address,
            pb.SessionOpen(session_id="s"),
            in_flight=in_flight,
            on_answer=self._answer,
            on_event=lambda name, _: self.events.append(name),
            seed=0,
            **options,
        )
        self.link.start()
        self.next = 0

    def _answer(self, done) -> None:
        self.answers.append(done.answer.sequence)
        self.rtt.append(done.rtt_ms)

    def send(self, n: int, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        for _ in range(n):
            while not self.link.room(0.1):
                assert time.monotonic() < end
            self.link.send(Sent(pb.Frame(sequence=self.next)))
            self.next += 1


@pytest.fixture
def clouds():
    made: list[FakeCloud] = []

    def make(**options) -> FakeCloud:
        made.append(FakeCloud(**options))
        return made[-1]

    yield make
    for cloud in made:
        cloud.stop()


@pytest.fixture
def runs():
    made: list[Run] = []

    def make(*args, **options) -> Run:
        made.append(Run(*args, **options))
        return made[-1]

    yield make
    for run in made:
        run.link.close()
        assert not run.link._thread.is_alive()


def test_every_frame_in_order_once(clouds, runs):
    cloud = clouds()
    run = runs(cloud.address)
    run.send(50)
    assert run.link.drain(5)
    assert run.answers == list(range(50))
    assert cloud.opens[0].resume_after == -1
    assert run.events == ["connected"]
    assert not run.link._thread.is_alive()
    assert all(0 < ms < 1000 for ms in run.rtt)


@pytest.mark.parametrize(("local", "server"), [(2, 8), (8, 3)])
def test_frames_in_flight_are_bounded_by_both(clouds, runs, local, server):
    cloud = clouds(max_in_flight=server, delay_s=0.01)
    run = runs(cloud.address, in_flight=local)
    most = 0
    for _ in range(20):
        run.send(1)
        most = max(most, len(run.link))
    assert run.link.drain(5)
    assert cloud.most_waiting <= min(local, server)
    assert most <= local


def test_resumes_where_it_was(clouds, runs):
    cloud = clouds(break_after=7)
    run = runs(cloud.address)
    run.send(30)
    assert run.link.drain(10)
    assert run.answers == list(range(30))
    assert [o.resume_after for o in cloud.opens] == [-1, 6, 13, 20, 27]
    assert run.link.reconnects == 4 and run.link.resent > 0
    assert run.events.count("lost") == run.events.count("resumed") == 4


def test_answers_that_come_twice_count_once(clouds, runs):
    cloud = clouds(break_after=5, twice=True)
    run = runs(cloud.address)
    run.send(20)
    assert run.link.drain(10)
    assert run.answers == list(range(20))
    assert run.link.duplicates > 0


def test_server_that_is_away_for_a_while(clouds, runs):
    first = clouds(delay_s=0.005)
    run = runs(first.address)
    run.send(10)
    first.stop()
    back: list[FakeCloud] = []
    timer = threading.Timer(1.0, lambda: back.append(clouds(port=first.port)))
    timer.start()
    run.send(20)
    assert run.link.drain(10)
    timer.join()
    assert run.answers == list(range(30))
    assert run.link.reconnects == 1
    assert back[0].opens[0].resume_after == back[0].frames[0].sequence - 1


def test_server_that_hangs_counts_as_lost(clouds, runs):
    cloud = clouds(hang_after=5)
    run = runs(cloud.address, answer_timeout_s=0.3)
    run.send(12)
    assert run.link.drain(10)
    assert run.answers == list(range(12))
    assert run.link.reconnects == 2


def test_idle_is_not_hanging(clouds, runs):
    cloud = clouds()
    run = runs(cloud.address, answer_timeout_s=0.2)
    for _ in range(3):
        run.send(1)
        time.sleep(0.5)
        run.link.room(0)
    assert run.link.drain(5)
    assert run.link.reconnects == 0 and len(cloud.opens) == 1


def test_gives_up_with_one_sentence(clouds, runs):
    cloud = clouds()
    run = runs(cloud.address, give_up_s=0.6)
    run.send(3)
    while len(run.answers) < 3:
        time.sleep(0.01)
    cloud.stop()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"within 0\.6 s") as error:
        run.send(20)
    assert 0.5 < time.monotonic() - start < 3
    assert "\n" not in str(error.value) and error.value.code != 0
    assert run.answers == [0, 1, 2]


def test_breaking_before_any_answer_does_not_reset_the_clock(clouds, runs):
    run = runs(clouds(break_after=0).address, give_up_s=0.8)
    with pytest.raises(UserError, match="broken on purpose"):
        run.send(20)


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_refusal_is_final_and_quoted(clouds, runs, code):
    cloud = clouds(refuse=(code, "the digests differ."))
    run = runs(cloud.address)
    with pytest.raises(UserError, match="the digests differ"):
        run.send(20)
    assert len(cloud.opens) == 1


def test_a_full_server_is_tried_again(clouds, runs):
    cloud = clouds(refuse=(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many sessions"))
    run = runs(cloud.address)
    time.sleep(0.5)
    cloud.refuse = None
    run.send(5)
    assert run.link.drain(5)
    assert run.answers == list(range(5))


def test_what_fails_in_the_report_ends_the_link(clouds, runs):
    run = runs(clouds().address)

    def full(_):
        raise UserError("the disk is full")

    run.link._on_answer = full
    with pytest.raises(UserError, match="full"):
        run.send(20)


def test_drain_says_when_time_ran_out(clouds, runs):
    run = runs(clouds(hang_after=0).address)
    run.send(2)
    assert not run.link.drain(0.2)


def test_describe_waits_for_the_server(clouds):
    placeholder = clouds()
    placeholder.stop()
    timer = threading.Timer(0.5, lambda: clouds(port=placeholder.port, description=pb.DescribeResponse(version="1.2")))
    timer.start()
    assert describe(placeholder.address, 5).version == "1.2"
    timer.join()


def test_describe_without_a_server():
    start = time.monotonic()
    with pytest.raises(UserError, match="splitsight cloud") as error:
        describe("127.0.0.1:9", 0.5)
    assert time.monotonic() - start < 2
    assert "\n" not in str(error.value)


def test_describe_of_something_else():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(UserError, match="not as a splitsight"):
        describe(f"127.0.0.1:{port}", 2)
    server.stop(0)
