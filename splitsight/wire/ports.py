"""Ports that a process listens on: of gRPC servers, and of its metrics, on loopback only."""

from __future__ import annotations

import errno
import os
import socket

import grpc
from prometheus_client import CollectorRegistry, start_http_server

from splitsight.errors import UserError
from splitsight.wire.channels import Address, host_of
from splitsight.wire.credentials import ServerCredentials

__all__ = ["add_port", "free_port", "serve_metrics", "server_options"]

_STREAMS = 128  # of one connection; what one peer may really have is less


def server_options(receive_bytes: int) -> list[tuple[str, int]]:
    """Options of a gRPC server that strangers can reach.

    Args:
        receive_bytes: of the largest message that is read; a larger one ends its call with ``RESOURCE_EXHAUSTED``.
    """
    return [
        # without this two servers share a port and a typo goes unnoticed
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", receive_bytes),
        ("grpc.max_send_message_length", -1),
        # identity alone: a message that gRPC itself would have to inflate is refused by its header (UNIMPLEMENTED)
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


def add_port(
    server: grpc.Server | grpc.aio.Server,
    host: str,
    port: int,
    *,
    what: str,
    credentials: ServerCredentials | None = None,
) -> int:
    """Let a server listen, with TLS where there is a certificate.

    Args:
        server: not started yet.
        host: address to listen on, an IPv6 address with or without brackets.
        port: 0 for a free one.
        what: the service, for messages.
        credentials: with the certificate, where there is TLS.

    Returns:
        The port.

    Raises:
        UserError: a certificate or key cannot be read, the port is in use, or the host is not of this machine.
    """
    host = host_of(host, "--host")
    address = str(Address(host, port))
    if (why := _obstacle(host, port)) is not None:  # gRPC would log it, and raise without a reason
        raise UserError(f"cannot listen on {address} for the {what}: {why}")
    try:
        tls = None if credentials is None else credentials.tls(what)
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
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


def free_port() -> int:
    """A port on loopback that nobody listens on now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
