"""The connection of an edge: one session over as many streams as it takes.

A frame is *unanswered* from the moment it is handed over until its answer has arrived. Unanswered frames are
kept, and when a stream breaks they are sent again on the next one, which opens with ``resume_after``. Answers
are matched by sequence number, so a frame that the server computed twice is still reported once.

A server may have replicas (:mod:`splitsight.wire.channels`): each stream is opened on a new channel, so that one whose
replica died goes on at another. Since a session keeps nothing on a server, no answer is lost or counted twice.

Threads: the caller's (``room``, ``send``, ``drain``), one that holds the connection and reads answers, and
gRPC's own that pulls requests. They share the state below under one condition.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from splitsight.errors import UserError
from splitsight.wire.channels import Address, parse_addresses
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.v1 import split_inference_pb2 as pb
from splitsight.wire.v1 import split_inference_pb2_grpc as rpc

__all__ = ["Answered", "Link", "Sent", "describe"]

_EXAMPLE = "--server 127.0.0.1:50051"
_POLL_S = 0.1
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 2.0
# What a server says when it will refuse the same session for ever; anything else may pass.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
}


def _reason(error: grpc.RpcError) -> str:
    details = (error.details() or "").strip().rstrip(".")
    return details.splitlines()[0] if details else error.code().name.lower().replace("_", " ")


def _tls(error: grpc.RpcError, credentials: ClientCredentials, via: Address | None) -> str:
    """What is wrong with TLS where a connection fails for that, for messages."""
    details = error.details() or ""
    if credentials.ca is not None and ("SSL" in details or "handshake" in details.lower()):
        return "; its certificate was not signed by --ca for that name, or it asks for --cert and --key"
    if credentials.ca is None and via is None and "Socket closed" in details:  # a relay closes where no server is
        return "; it may speak TLS: give --ca"
    return ""


def describe(
    server: str,
    wait_s: float,
    stop: threading.Event | None = None,
    credentials: ClientCredentials = ANONYMOUS,
    via: Address | None = None,
) -> pb.DescribeResponse:
    """Asks a server what it serves, waiting for it to come up.

    Args:
        server: ``HOST:PORT``, or those of its replicas with commas between.
        wait_s: seconds to keep trying, ≥ 0.
        stop: gives up early when set.
        credentials: what it asks for; none by default.
        via: where to connect, if it is reached through a relay.

    Raises:
        UserError: nothing answers in time, it refuses the token, or what answers is not a splitsight server.
    """
    deadline = time.monotonic() + wait_s
    with credentials.channel(parse_addresses(server, _EXAMPLE), via) as opened:
        stub = rpc.SplitInferenceStub(opened)
        while True:
            left = deadline - time.monotonic()
            # Short tries, so that a signal during the wait is noticed.
            call = stub.Describe.future(
                pb.DescribeRequest(),
                timeout=max(0.2, min(1.0, left)),
                wait_for_ready=left > _POLL_S,
                metadata=credentials.metadata,
            )
            try:
                return call.result()
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise UserError(f"{server} refuses: {_reason(error)} (--token-file)") from error
                if error.code() in _FINAL:
                    raise UserError(
                        f"{server} answers, but not as a splitsight cloud server ({_reason(error)}): check --server"
                    ) from error
                if time.monotonic() >= deadline or (stop is not None and stop.is_set()):
                    raise UserError(
                        f"no cloud server answers at {server} (waited {wait_s:g} s{_tls(error, credentials, via)}): "
                        "start one with `splitsight cloud`, or correct --server"
                    ) from error
                time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))


@dataclass
class Sent:
    """A frame on its way.

    Attributes:
        frame: as it goes over the wire.
        sent_us: microseconds since the epoch of the last time it was sent; 0 before.
        sent: the same moment on the monotonic clock, in seconds.
        attempts: how often it was sent.
        bytes: size of the message.
    """

    frame: pb.Frame
    sent_us: int = 0
    sent: float = 0.0
    attempts: int = 0
    bytes: int = 0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """A frame and its answer.

    Attributes:
        sent: what was sent.
        answer: what came back.
        answered_us: microseconds since the epoch.
        rtt_ms: milliseconds since the frame was last sent.
    """

    sent: Sent
    answer: pb.Answer
    answered_us: int
    rtt_ms: float


class _Stream:
    """State of one stream; a new one is made for each attempt."""

    def __init__(self) -> None:
        self.closed = False
        self.opened = False
        self.cursor = -1  # highest sequence number given to gRPC on this stream
        self.activity = time.monotonic()
        self.call: grpc.Call | None = None


class Link:
    """Sends frames in order and reports each one's answer exactly once.

    Args:
        server: ``HOST:PORT``, or those of its replicas with commas between.
        opening: description of the session; ``resume_after`` is filled in here.
        in_flight: most frames unanswered at a time; the server may lower it.
        on_answer: called once a frame, from the link's thread; an exception ends the link.
        on_event: called with ``("connected" | "lost" | "resumed", details)``.
        give_up_s: seconds without a new answer, since the connection was lost, after which it gives up.
        answer_timeout_s: seconds an answer may take before the connection counts as lost.
        credentials: what the server asks for; none by default.
        seed: of the jitter; ``None`` for a random one.
        via: where to connect, if the server is reached through a relay.
    """

    def __init__(
        self,
        server: str,
        opening: pb.SessionOpen,
        *,
        in_flight: int,
        on_answer: Callable[[Answered], None],
        on_event: Callable[[str, dict], None] = lambda *_: None,
        give_up_s: float = 30.0,
        answer_timeout_s: float = 20.0,
        credentials: ClientCredentials = ANONYMOUS,
        seed: int | None = None,
        via: Address | None = None,
    ) -> None:
        self.reconnects = 0
        self.resent = 0
        self.duplicates = 0
        self._server, self._addresses, self._via = server, parse_addresses(server, _EXAMPLE), via
        self._credentials = credentials
        self._opening = opening
        self._wanted = in_flight
        self._limit = in_flight
        self._on_answer = on_answer
        self._on_event = on_event
        self._give_up = give_up_s
        self._answer_timeout = answer_timeout_s
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._unanswered: dict[int, Sent] = {}  # insertion order is sequence order
        self._last = -1  # highest sequence handed over
        self._finished = False
        self._aborted = False
        self._error: BaseException | None = None
        self._lost_at: float | None = None
        self._lost_why = ""
        self._stream = _Stream()
        self._thread = threading.Thread(target=self._run, name="edge-link", daemon=True)

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._thread.start()

    def __len__(self) -> int:
        """Frames unanswered."""
        return len(self._unanswered)

    @property
    def connected(self) -> bool:
        """Whether a session is open on a stream that stands."""
        stream = self._stream
        return stream.opened and not stream.closed

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        stream, now = self._stream, time.monotonic()
        waiting = not stream.opened or any(s.attempts and n <= stream.cursor for n, s in self._unanswered.items())
        oldest = min((s.sent for n, s in self._unanswered.items() if n <= stream.cursor), default=now)
        # A server that hangs keeps its connection; only the missing answer shows it.
        if stream.call is not None and waiting and now - max(stream.activity, oldest) > self._answer_timeout:
            self._lost_why = f"no answer for {self._answer_timeout:g} s"
            stream.call.cancel()

    def room(self, timeout_s: float) -> bool:
        """Waits for at most ``timeout_s`` seconds until one more frame may be in flight.

        Raises:
            UserError: the link gave up, or the server refused the session.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check()
                if len(self._unanswered) < self._limit:
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, _POLL_S))

    def send(self, sent: Sent) -> None:
        """Hands over the next frame; its sequence number is one more than the last one's.

        Raises:
            UserError: the link gave up, or the server refused the session.
        """
        with self._changed:
            self._check()
            assert sent.frame.sequence == self._last + 1
            self._last = sent.frame.sequence
            self._unanswered[self._last] = sent
            self._changed.notify_all()

    def drain(self, timeout_s: float | None = None, stop: threading.Event | None = None) -> bool:
        """Waits until everything is answered, then closes the session; false if it was not.

        Args:
            timeout_s: seconds to wait; ``None`` for as long as the connection is not given up.
            stop: returns early when set.

        Raises:
            UserError: the link gave up, or the server refused the session.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._unanswered:
                self._check()
                left = _POLL_S if deadline is None else deadline - time.monotonic()
                if left <= 0 or (stop is not None and stop.is_set()):
                    return False
                self._changed.wait(min(left, _POLL_S))
            if self._error is not None:
                raise self._error
            self._finished = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0)  # every answer is here; a server slow to say goodbye changes nothing
        return True

    def close(self) -> None:
        """Ends the connection, whatever is in flight; may be called twice."""
        with self._changed:
            self._aborted = True
            self._stream.closed = True
            if self._stream.call is not None:
                self._stream.call.cancel()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        try:
            failures = 0
            while not self._aborted:
                stream = _Stream()
                with self._changed:
                    self._stream = stream
                answers_before = self._progress()
                self._attempt(stream)
                with self._changed:
                    if self._aborted or (self._finished and not self._unanswered):
                        return
                failures = 0 if self._progress() > answers_before else failures
                self._wait(failures)
                failures += 1
        except BaseException as error:  # handed to the caller's thread
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _progress(self) -> int:
        with self._changed:
            return self._last + 1 - len(self._unanswered)

    def _wait(self, failures: int) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self._on_event("lost", {"why": self._lost_why, "unanswered": len(self._unanswered)})
        left = self._lost_at + self._give_up - now
        if left <= 0:
            raise UserError(
                f"the connection to {self._server} was lost and could not be taken up again within "
                f"{self._give_up:g} s ({self._lost_why}): {len(self._unanswered)} frames have no answer; "
                "restart the server and run again",
                code=1,
            )
        pause = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2 ** min(failures, 10))
        # Jitter, so that many edges do not knock at a restarted server in the same instant.
        until = now + min(left, pause * self._random.uniform(0.5, 1.0))
        with self._changed:
            while not self._aborted and (rest := until - time.monotonic()) > 0:
                self._changed.wait(rest)

    def _requests(self, stream: _Stream) -> Iterator[pb.InferRequest]:
        with self._changed:
            done = next(iter(self._unanswered), self._last + 1) - 1
        stream.cursor = done
        opening = pb.SessionOpen()
        opening.CopyFrom(self._opening)
        opening.resume_after = done
        yield pb.InferRequest(open=opening)
        while True:
            with self._changed:
                sent = None
                while not stream.closed:
                    if stream.opened and self._on_stream(stream) < self._limit:
                        sent = self._unanswered.get(stream.cursor + 1)
                        if sent is not None or (self._finished and not self._unanswered):
                            break
                        # Answered by the server's memory of the session before it was sent again.
                        if stream.cursor + 1 <= self._last:
                            stream.cursor += 1
                            continue
                    self._changed.wait(1.0)
                if sent is None:
                    return
                stream.cursor += 1
                sent.attempts += 1
                self.resent += sent.attempts > 1
                sent.sent_us = time.time_ns() // 1000
                sent.sent = time.monotonic()
                request = pb.InferRequest(frame=sent.frame)
                sent.bytes = request.ByteSize()
            yield request

    def _on_stream(self, stream: _Stream) -> int:
        # A restarted server may allow fewer than are waiting to be sent again.
        return sum(n <= stream.cursor for n in self._unanswered)

    def _attempt(self, stream: _Stream) -> None:
        """One stream, until it breaks or everything is done; sets why it broke."""
        self._lost_why = ""
        opened = self._credentials.channel(self._addresses, self._via)
        try:
            call = rpc.SplitInferenceStub(opened).Infer(self._requests(stream), metadata=self._credentials.metadata)
            with self._changed:
                stream.call = call
                if self._aborted:
                    call.cancel()
            for response in call:
                with self._changed:
                    stream.activity = time.monotonic()
                kind = response.WhichOneof("message")
                if kind == "opened":
                    self._opened(stream, response.opened)
                elif kind == "answer":
                    self._answered(response.answer)
            self._lost_why = "the server closed the session"
        except grpc.RpcError as error:
            if error.code() in _FINAL:
                raise UserError(f"the server at {self._server} refused the session: {_reason(error)}") from error
            self._lost_why = self._lost_why or _reason(error)
        finally:
            with self._changed:
                stream.closed = True
                self._changed.notify_all()
            opened.close()

    def _opened(self, stream: _Stream, opened: pb.SessionOpened) -> None:
        with self._changed:
            stream.opened = True
            self._limit = max(1, min(self._wanted, opened.max_in_flight or self._wanted))
            self._changed.notify_all()
        if self._lost_at is None:
            self._on_event("connected", {"in_flight": self._limit})
        else:
            self.reconnects += 1
            self._on_event("resumed", {"after_s": round(time.monotonic() - self._lost_at, 3)})
        with self._changed:
            if not self._unanswered:
                self._lost_at = None

    def _answered(self, answer: pb.Answer) -> None:
        with self._changed:
            sent = self._unanswered.get(answer.sequence)
            if sent is None:
                self.duplicates += 1
                return
            done = Answered(sent, answer, time.time_ns() // 1000, 1000 * (time.monotonic() - sent.sent))
        # Reported before it counts as answered: after a drain the report is complete.
        self._on_answer(done)
        with self._changed:
            del self._unanswered[answer.sequence]
            self._lost_at = None
            self._changed.notify_all()
