"""Services that must not be open to anyone: loopback, or a token and TLS; and metrics, on loopback only."""

from __future__ import annotations

import errno
import hmac
import os
import socket
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, start_http_server

from splitsight.errors import UserError
from splitsight.wire.channels import Address, host_of, is_loopback

__all__ = ["add_port", "check_guard", "refuse_strangers", "serve_metrics"]


def check_guard(what: str, risk: str, *, host: str, token: str | None, cert: Path | None, key: Path | None) -> None:
    """Refuse settings that would leave a service open to anyone.

    Args:
        what: the service, for messages: ``tap``.
        risk: what an open one would do: ``show every session to the network``.
        host: address to listen on.
        token: what clients must present.
        cert: PEM certificate chain.
        key: PEM private key that belongs to it.

    Raises:
        UserError: no host at all, not loopback and not guarded by all three, half of a certificate and key, or a token
            that HTTP headers cannot carry.
    """
    host_of(host, "--host")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UserError(f"the {what}'s token cannot be sent: give one of plain ASCII characters")
    if (cert is None) != (key is None):
        raise UserError(f"the {what}'s TLS needs a certificate and its key: give both or neither")
    if not is_loopback(host) and not (token and cert):
        article = "an" if what[0] in "aeiou" else "a"
        raise UserError(
            f"{article} {what} on {host} would {risk}: "
            "give it a token, a certificate and a key, or let it listen on 127.0.0.1"
        )


def add_port(
    server: grpc.Server | grpc.aio.Server,
    host: str,
    port: int,
    *,
    what: str,
    cert: Path | None = None,
    key: Path | None = None,
) -> int:
    """Let a server listen, with TLS where there is a certificate.

    Args:
        server: not started yet.
        host: address to listen on, an IPv6 address with or without brackets.
        port: 0 for a free one.
        what: the service, for messages.
        cert: PEM certificate chain.
        key: PEM private key that belongs to it.

    Returns:
        The port.

    Raises:
        UserError: certificate or key cannot be read, the port is in use, or the host is not of this machine.
    """
    host = host_of(host, "--host")
    address = str(Address(host, port))
    if (why := _obstacle(host, port)) is not None:  # gRPC would log it, and raise without a reason
        raise UserError(f"cannot listen on {address} for the {what}: {why}")
    try:
        if cert is None or key is None:
            port = server.add_insecure_port(address)
        else:
            try:
                pair = (key.read_bytes(), cert.read_bytes())
            except OSError as error:
                raise UserError(f"the {what}'s certificate or key cannot be read: {error}") from error
            if b"PRIVATE KEY" not in pair[0] or b"CERTIFICATE" not in pair[1]:
                raise UserError(f"the {what}'s certificate or key is not PEM: give a PEM certificate and its PEM key")
            port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise UserError(f"cannot listen on {address} for the {what}: the port is in use or not allowed") from error
    if port == 0:
        raise UserError(f"cannot listen on {address} for the {what}: check the port, the certificate and its key")
    return port


def _obstacle(host: str, port: int) -> str | None:
    """Why no server can listen there; ``None`` where one can."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        return f"no host is called '{host}' here: give an address of this machine"
    error = None
    for family, kind, _, _, where in found:
        try:
            with socket.socket(family, kind) as probe:
                if os.name == "posix":  # elsewhere it would share a port in use
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                probe.listen(1)
                return None
        except OSError as failed:
            error = failed
    if error is None or error.errno == errno.EADDRINUSE:
        return "the port is in use: choose another"
    if isinstance(error, PermissionError):
        return "the port is not allowed: choose one above 1023"
    return f"{host} is not an address of this machine"


def refuse_strangers(context: grpc.ServicerContext, token: str | None, what: str) -> None:
    """Abort a call that does not present the token; ``None`` asks for nothing."""
    if token is None:
        return
    given = dict(context.invocation_metadata()).get("authorization", "")
    given = given.encode() if isinstance(given, str) else given
    if not hmac.compare_digest(given, f"Bearer {token}".encode()):
        context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            f"the {what} asks for a token: send the metadata 'authorization: Bearer TOKEN' with the right one",
        )


def serve_metrics(registry: CollectorRegistry, port: int) -> int:
    """Answer ``GET /metrics`` on loopback from a daemon thread; returns the port.

    Raises:
        UserError: the port is in use.
    """
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UserError(f"port {port} is in use or not allowed: choose another for the metrics") from error
    return server.server_port
