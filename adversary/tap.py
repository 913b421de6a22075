"""Reading a server's tap: sessions and frames, in order, until the stream or the session ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from splitsight.errors import UserError
from splitsight.wire.channels import channel, parse_address
from splitsight.wire.v1 import tap_pb2, tap_pb2_grpc

__all__ = ["TapReader"]

_MAX_BYTES = 256 << 20


class TapReader:
    """A subscription that survives a restart of the server.

    Args:
        address: ``HOST:PORT`` of the tap.
        session_id: only this session; empty for all.
        ring: frames that the server keeps for us while we do not read; 0 for its default.
        token: bearer token where the tap asks for one (then TLS is used).
        ca: PEM file of the certificate authority, for TLS.
        patience: seconds to go on trying to reach the tap, at the start and after it was lost.

    Raises:
        UserError: no such address or certificate.
    """

    def __init__(
        self,
        address: str,
        *,
        session_id: str = "",
        ring: int = 0,
        token: str | None = None,
        ca: Path | None = None,
        patience: float = 10.0,
    ) -> None:
        self.address, self.patience = address, patience
        self._request = tap_pb2.SubscribeRequest(session_id=session_id, ring=ring)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._channel = channel(
            parse_address(address, "--tap 127.0.0.1:50052"), receive_bytes=_MAX_BYTES, ca=ca, keepalive=True
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
                    lost_since = None
                    yield event
                return
            except grpc.RpcError as error:
                code = error.code()
                if self._closed or code == grpc.StatusCode.CANCELLED:
                    return
                if code != grpc.StatusCode.UNAVAILABLE:
                    raise UserError(f"the tap {self.address} refused: {error.details()}", code=1) from error
                now = time.monotonic()
                lost_since = lost_since or now
                if now - lost_since > self.patience:
                    raise UserError(
                        f"the tap {self.address} was lost and did not come back within {self.patience:g} s", code=1
                    ) from error
                time.sleep(0.3)
