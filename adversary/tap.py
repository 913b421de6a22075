"""Reading a server's tap: sessions and frames, in order, until the stream or the session ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc

from splitsight.errors import UserError
from splitsight.wire.channels import parse_address
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.v1 import tap_pb2, tap_pb2_grpc

__all__ = ["TapReader"]

_MAX_BYTES = 256 << 20


class TapReader:
    """A subscription that survives a restart of the server.

    Args:
        address: ``HOST:PORT`` of the tap.
        session_id: only this session; empty for all.
        ring: frames that the server keeps for us while we do not read; 0 for its default.
        credentials: what the tap asks for; none by default.
        patience: seconds to go on trying to reach the tap, at the start and after it was lost.
        on_change: called with whether the tap is there, when it is lost and when it is back.

    Raises:
        UserError: no such address or certificate.
    """

    def __init__(
        self,
        address: str,
        *,
        session_id: str = "",
        ring: int = 0,
        credentials: ClientCredentials = ANONYMOUS,
        patience: float = 10.0,
        on_change: Callable[[bool], None] = lambda there: None,
    ) -> None:
        self.address, self.patience, self.on_change = address, patience, on_change
        self._request = tap_pb2.SubscribeRequest(session_id=session_id, ring=ring)
        self._metadata = credentials.metadata
        self._channel = credentials.channel(
            parse_address(address, "--tap 127.0.0.1:50052"), receive_bytes=_MAX_BYTES, keepalive=True
        )
        self._call: grpc.Call | None = None
        self._closed = False

    def close(self) -> None:
        """End the subscription; :meth:`events` then stops."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def connect(self) -> None:
        """Wait until the tap can be reached.

        Raises:
            UserError: nothing answers there within ``patience``.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self.patience)
        except grpc.FutureTimeoutError:
            raise UserError(
                f"nothing answers at the tap {self.address}: start the cloud server with --tap-port "
                "first, or check the address",
                code=1,
            ) from None

    def events(self) -> Iterator[tap_pb2.TapEvent]:
        """Yield what the tap sends; subscribes again when the connection is lost.

        Raises:
            UserError: refused (token, limits), or the tap stayed away longer than ``patience``.
        """
        stub = tap_pb2_grpc.TapStub(self._channel)
        lost_since: float | None = None
        while not self._closed:
            call = self._call = stub.Subscribe(self._request, metadata=self._metadata)
            try:
                for event in call:
                    if lost_since is not None:
                        lost_since = None
                        self.on_change(True)
                    yield event
                return
            except grpc.RpcError as error:
                code = error.code()
                if self._closed or code == grpc.StatusCode.CANCELLED:
                    return
                if code != grpc.StatusCode.UNAVAILABLE:
                    raise UserError(f"the tap {self.address} refused: {error.details()}", code=1) from error
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    self.on_change(False)
                if now - lost_since > self.patience:
                    raise UserError(
                        f"the tap {self.address} was lost and did not come back within {self.patience:g} s", code=1
                    ) from error
                time.sleep(0.3)
