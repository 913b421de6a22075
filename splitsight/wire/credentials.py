"""Who may talk to whom: bearer tokens (RFC 6750), TLS and mutual TLS.

A server that others than this machine can reach is guarded by all three of a token, a certificate and its key
(:meth:`ServerCredentials.check`); with a certificate authority for clients it asks for their certificates, too (mutual
TLS). Calls without the right token are refused before any of their messages is read, whether there is such a method or
not, health checks excepted, so that an orchestrator can ask whether a process lives without being told a secret. Tokens
are compared in constant time.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from splitsight.errors import UserError
from splitsight.wire.channels import Address, channel, host_of, is_loopback

__all__ = ["ANONYMOUS", "OPEN", "ClientCredentials", "ServerCredentials", "read_token"]

_HEALTH = "/grpc.health.v1.Health/"
_LEAST = 16


def read_token(path: Path | None, what: str) -> str | None:
    """A bearer token from a file; white space around it does not count.

    Args:
        path: ``None`` for no token.
        what: whose, for messages: ``tap``.

    Raises:
        UserError: the file cannot be read, or holds no token that HTTP headers can carry or that is long enough not to
            be guessed (16 characters).
    """
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"the {what}'s token file {path} cannot be read: {reason}") from error
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"the {what}'s token in {path} cannot be sent: give one of plain ASCII characters in one word")
    if len(token) < _LEAST:
        raise UserError(
            f"the {what}'s token in {path} has {len(token)} characters: give at least {_LEAST}, "
            "for example those that `splitsight certs` makes"
        )
    return token


@dataclass(frozen=True)
class ServerCredentials:
    """What a server asks of its callers, and what it shows of itself.

    Attributes:
        token: what callers must present; ``None`` asks for nothing.
        cert: PEM certificate chain; ``None`` for no TLS.
        key: PEM private key that belongs to it.
        client_ca: PEM certificates of the authority that signed the callers' own; ``None`` asks for none.
    """

    token: str | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def check(self, what: str, risk: str, host: str) -> None:
        """Refuse settings that would leave a server open to anyone.

        Args:
            what: the server, for messages: ``tap``.
            risk: what an open one would do: ``show every session to the network``.
            host: address to listen on.

        Raises:
            UserError: no host at all, not loopback and not guarded by token, certificate and key, or half of a
                certificate and key.
        """
        host_of(host, "--host")
        if (self.cert is None) != (self.key is None):
            raise UserError(f"the {what}'s TLS needs a certificate and its key: give both or neither")
        if self.client_ca is not None and self.cert is None:
            raise UserError(f"the {what} can ask for certificates only over TLS: give it a certificate and a key, too")
        if not is_loopback(host) and not (self.token and self.cert):
            article = "an" if what[0] in "aeiou" else "a"
            raise UserError(
                f"{article} {what} on {host} would {risk}: give it a token, a certificate and a key "
                "(`splitsight certs` makes them), or let it listen on 127.0.0.1"
            )

    def tls(self, what: str) -> grpc.ServerCredentials | None:
        """For a secure port; ``None`` without a certificate.

        Raises:
            UserError: a file cannot be read or is not PEM.
        """
        if self.cert is None or self.key is None:
            return None
        pair = (
            _pem(self.key, "PRIVATE KEY", f"the {what}'s key"),
            _pem(self.cert, "CERTIFICATE", f"the {what}'s certificate"),
        )
        roots = self.client_ca and _pem(self.client_ca, "CERTIFICATE", "the certificate authority of clients")
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)

    def interceptors(self, what: str, refused: Callable[[], None] = lambda: None) -> list[Any]:
        """For a threaded server: refuses calls without the token."""
        return [_Guard(self.token, what, refused)] if self.token else []

    def aio_interceptors(self, what: str, refused: Callable[[], None] = lambda: None) -> list[Any]:
        """For an asynchronous server: the same."""
        return [_AioGuard(self.token, what, refused)] if self.token else []


@dataclass(frozen=True)
class ClientCredentials:
    """What a client shows of itself, and whom it trusts.

    Attributes:
        token: bearer token; ``None`` sends none.
        ca: PEM certificates of the authority that signed the server's; ``None`` for no TLS.
        cert: the client's own PEM certificate chain, for mutual TLS.
        key: PEM private key that belongs to it.
    """

    token: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def read(
        cls, what: str, token_file: Path | None, ca: Path | None, cert: Path | None, key: Path | None
    ) -> ClientCredentials:
        """From files, as the command line has them.

        Raises:
            UserError: a file cannot be read or holds something else, half of a certificate and key, or a secret that
                would cross the network in the clear.
        """
        made = cls(read_token(token_file, what), ca, cert, key)
        if (cert is None) != (key is None):
            raise UserError(f"the {what}'s own certificate needs its key: give both or neither")
        if cert is not None and ca is None:
            raise UserError(f"the {what}'s own certificate is shown over TLS only: give the server's --ca, too")
        return made

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """To be sent with each call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def channel(
        self,
        address: Address | Sequence[Address],
        via: Address | None = None,
        *,
        receive_bytes: int = 16 << 20,
        keepalive: bool = False,
    ) -> grpc.Channel:
        """A channel to a server, perhaps through a relay; see :func:`splitsight.wire.channels.channel`.

        Raises:
            UserError: a certificate or key cannot be read or is not PEM, or a token would leave this machine
                unencrypted.
        """
        addresses = [address] if isinstance(address, Address) else address
        if self.token and self.ca is None and not all(is_loopback(a.host) for a in addresses):
            raise UserError(
                f"the token for {', '.join(map(str, addresses))} would cross the network in the clear: give the "
                "certificate authority of the server with --ca"
            )
        if self.ca is None:
            return channel(address, via, receive_bytes=receive_bytes, keepalive=keepalive)
        roots = _pem(self.ca, "CERTIFICATE", "the certificate authority")
        key = self.key and _pem(self.key, "PRIVATE KEY", "the key")
        cert = self.cert and _pem(self.cert, "CERTIFICATE", "the certificate")
        tls = grpc.ssl_channel_credentials(roots, key, cert)
        return channel(address, via, receive_bytes=receive_bytes, keepalive=keepalive, tls=tls)


OPEN = ServerCredentials()
"""Of a server that answers anyone."""

ANONYMOUS = ClientCredentials()
"""Of a client that shows nothing."""


def _pem(path: Path, kind: str, what: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from error
    if b"BEGIN " not in data or kind.encode() not in data:
        raise UserError(f"{what} {path} is not PEM with a {kind.lower()}: give one in PEM")
    return data


def _stranger(details: grpc.HandlerCallDetails, token: str) -> bool:
    if details.method.startswith(_HEALTH):
        return False
    given = dict(details.invocation_metadata or ()).get("authorization", "")
    given = given.encode() if isinstance(given, str) else given
    return not hmac.compare_digest(given, f"Bearer {token}".encode())


def _sentence(what: str) -> str:
    return f"the {what} asks for a token: send the metadata 'authorization: Bearer TOKEN' with the right one"


# Whatever a stranger calls is answered by a handler of a stream of requests, also where the method takes a single one:
# servers read that one, into memory and in a thread, before they call its handler, and a stranger who never sends it
# would keep the thread.
_refusing = grpc.stream_stream_rpc_method_handler


class _Guard(grpc.ServerInterceptor):
    def __init__(self, token: str | None, what: str, refused: Callable[[], None]) -> None:
        self._token, self._what, self._refused = token or "", what, refused

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        if not _stranger(handler_call_details, self._token):
            return continuation(handler_call_details)

        def refuse(_request: Any, context: grpc.ServicerContext) -> None:
            self._refused()
            context.abort(grpc.StatusCode.UNAUTHENTICATED, _sentence(self._what))

        return _refusing(refuse)


class _AioGuard(grpc.aio.ServerInterceptor):
    def __init__(self, token: str | None, what: str, refused: Callable[[], None]) -> None:
        self._token, self._what, self._refused = token or "", what, refused

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if not _stranger(handler_call_details, self._token):
            return await continuation(handler_call_details)

        async def refuse(_request: Any, context: grpc.aio.ServicerContext) -> None:
            self._refused()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, _sentence(self._what))

        return _refusing(refuse)
