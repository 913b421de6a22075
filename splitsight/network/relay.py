"""A connection that behaves like a network: a relay on loopback, inside the process whose connections it shapes.

It listens on a port of its own and opens, for each connection that it accepts, one to the server. Each direction has
two threads: one reads and asks :mod:`splitsight.network.shaping` when what it read is to come out, the other waits
until then and writes. Threads sleep with a precision of some ten microseconds, where an event loop rounds up to
milliseconds. A full link stops reading, so that TCP holds the sender back; the end of a connection comes out behind its
last bytes, and a connection that breaks on one side breaks on the other.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from splitsight.network.prediction import SEGMENT
from splitsight.network.profiles import NetworkProfile
from splitsight.network.shaping import Direction, directions
from splitsight.wire.channels import Address

__all__ = ["Relay"]

_CHUNK = 8 * SEGMENT
_CONNECT_S = 5.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Relay:
    """Accepts connections and passes them on to a server, shaped; a context manager.

    Args:
        server: where they go.
        profile: what they are to be like.
        seed: of jitter and losses, of all connections in their order; ``None`` for a random one.
        clock: seconds, monotonic.

    Attributes:
        address: where it listens, on loopback.
    """

    def __init__(
        self,
        server: Address,
        profile: NetworkProfile,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server, self._profile, self._clock = server, profile, clock
        self._rng = np.random.default_rng(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._carried = [0, 0]
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes that have come out so far, towards the server and from it."""
        with self._lock:
            up, down = self._carried
            for connection in self._open:
                up, down = up + connection.up.carried, down + connection.down.carried
        return up, down

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._connect, args=(client,), name="relay-connect", daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, timeout=_CONNECT_S)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            if not self._closed:
                links = directions(self._profile, self._rng)
                connection = _Connection(client, server, links, self._clock, self._ended)
                self._open.add(connection)
                connection.start()
                return
        client.close()
        server.close()

    def _ended(self, connection: _Connection) -> None:
        with self._lock:
            if connection in self._open:
                self._open.remove(connection)
                self._carried[0] += connection.up.carried
                self._carried[1] += connection.down.carried

    def close(self) -> None:
        """Stop listening and break what is open; may be called twice."""
        with self._lock:
            self._closed = True
            connections = list(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            connection.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Connection:
    """Both directions of one connection."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        links: tuple[Direction, Direction],
        clock: Callable[[], float],
        ended: Callable[[_Connection], None],
    ) -> None:
        self._ends = client, server
        self._ended = ended
        self._running = 2
        self._lock = threading.Lock()
        self.up = _Pump(client, server, links[0], clock, self._done, self.abort)
        self.down = _Pump(server, client, links[1], clock, self._done, self.abort)

    def start(self) -> None:
        """Begin to pass on what comes."""
        self.up.start()
        self.down.start()

    def abort(self) -> None:
        """Break the connection on both sides."""
        self._shut()
        for pump in (self.up, self.down):
            pump.stop()

    def _shut(self) -> None:
        # closing alone would neither wake a thread that reads nor, while it does, tell the other side
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _done(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self._shut()
            for end in self._ends:
                end.close()
            self._ended(self)


class _Pump:
    """One direction: a thread that reads, one that writes, and what is on the link between them."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        link: Direction,
        clock: Callable[[], float],
        done: Callable[[], None],
        broken: Callable[[], None],
    ) -> None:
        self._source, self._sink, self._link, self._clock = source, sink, link, clock
        self._done, self._broken = done, broken
        self._on_link: deque[tuple[float, bytes]] = deque()  # when it comes out; no bytes for the end
        self._held = 0
        self._changed = threading.Condition()
        self._stopped = False
        self.carried = 0

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"relay{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _read(self) -> None:
        out = 0.0
        while True:
            try:
                data = self._source.recv(_CHUNK)
            except OSError:
                return self._broken()
            with self._changed:
                if data:
                    out = self._link.deliver_at(len(data), self._clock())
                self._on_link.append((out, data))
                self._held += len(data)
                self._changed.notify_all()
                if not data:
                    return None
                while self._held > self._link.capacity and not self._stopped:
                    self._changed.wait()

    def _write(self) -> None:
        try:
            while (data := self._next()) is not None:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
                self.carried += len(data)
        except OSError:
            self._broken()
        finally:
            self._done()

    def _next(self) -> bytes | None:
        """What comes out next, once it is time; ``None`` if the connection was broken."""
        with self._changed:
            while not self._stopped:
                left = self._on_link[0][0] - self._clock() if self._on_link else None
                if left is not None and left <= 0:
                    _, data = self._on_link.popleft()
                    self._held -= len(data)
                    self._changed.notify_all()
                    return data
                self._changed.wait(left)
        return None
