"""A link that can be broken: a relay on loopback whose connections are cut, frozen, slowed or damaged on demand.

:mod:`splitsight.network.relay` makes a link behave as networks do; this one makes it fail as networks do.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

__all__ = ["Gate"]

_CHUNK = 1 << 14
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class _Pair:
    """Both ends of one connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = client, server
        self.stranded = False

    def close(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Gate:
    """Passes connections on to a port of this machine; a context manager.

    Args:
        server: the port.

    Attributes:
        port: where it listens.
        bytes_per_second: of each direction of each connection; ``None`` for no limit.
        damage_every: bytes towards the server after which one bit is turned; ``None`` for never.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.bytes_per_second: float | None = None
        self.damage_every: int | None = None
        self._whole = threading.Event()
        self._whole.set()
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def cut(self) -> None:
        """Reset all connections, and every new one."""
        self._whole.clear()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair.ends:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            pair.close()

    def restore(self) -> None:
        """Let everything pass again, but what is stranded."""
        self.bytes_per_second = self.damage_every = None
        self._whole.set()

    def strand(self) -> None:
        """Leave all connections open, without passing on anything of them ever again; new ones pass (half-open)."""
        with self._lock:
            for pair in self._pairs:
                pair.stranded = True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if not self._whole.is_set():
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.add(pair)
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(pair, source, sink, up), name="gate-pump", daemon=True
                ).start()

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if pair.stranded:
                    continue
                if (rate := self.bytes_per_second) is not None:
                    time.sleep(len(data) / rate)
                if up and (every := self.damage_every) is not None and passed // every != (passed + len(data)) // every:
                    damaged = bytearray(data)
                    damaged[len(data) // 2] ^= 0x10
                    data = bytes(damaged)
                passed += len(data)
                sink.sendall(data)
        if not pair.stranded:
            pair.close()
        with self._lock:
            self._pairs.discard(pair)

    def close(self) -> None:
        """Stop listening and end all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
