"""Asks the processes, again and again, how they are: a process that hangs keeps its connections, and says nothing."""

from __future__ import annotations

import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitsight.wire.operator import OperatorClient
from splitsight.wire.v1 import operator_pb2 as pb

__all__ = ["Monitor"]

_EVERY_S, _PATIENCE_S = 0.5, 2.0


class Monitor:
    """A thread that asks once or twice a second.

    Args:
        cloud: channel to the cloud server, which is closed in the end; ``None`` asks it nothing.
        clients: of the others, by role; may be added to.

    Attributes:
        said: what each answered last, by role.
    """

    def __init__(self, cloud: grpc.Channel | None, clients: dict[str, OperatorClient]) -> None:
        self.clients = clients
        self.said: dict[str, pb.OperatorStatus] = {}
        self._heard: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._channel = cloud
        self._health = None if cloud is None else health_pb2_grpc.HealthStub(cloud)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)
        self._thread.start()

    def asked(self, role: str) -> bool:
        """Whether a process is asked at all."""
        return role in self.clients or (role == "cloud" and self._health is not None)

    def silent(self, role: str) -> float:
        """Seconds for which a process has not answered; 0 while it does."""
        asked = self._asked.get(role)
        if asked is None:
            return 0.0
        quiet = time.monotonic() - self._heard.get(role, asked)
        return quiet if quiet > _PATIENCE_S + 2 * _EVERY_S else 0.0

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(_PATIENCE_S * 3)
        if self._channel is not None:
            self._channel.close()

    def _work(self) -> None:
        while not self._closed.wait(_EVERY_S):
            if self._health is not None:
                self._note("cloud", self._healthy())
            for role, client in list(self.clients.items()):
                found = client.status()
                if found is not None:
                    self.said = {**self.said, role: found}
                self._note(role, found is not None)

    def _note(self, role: str, answered: bool) -> None:
        now = time.monotonic()
        self._asked.setdefault(role, now)
        if answered:
            self._heard[role] = now

    def _healthy(self) -> bool:
        try:
            check = self._health.Check  # type: ignore[union-attr]  missing in the stub
            found = check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S)
        except grpc.RpcError:
            return False
        return found.status == health_pb2.HealthCheckResponse.SERVING
