"""Addresses, and the one place that makes gRPC channels.

Channels to this machine never go through a proxy. Of the proxy variables only ``grpc_proxy`` (with ``no_grpc_proxy``
and ``no_proxy``) counts for other machines: ``http_proxy`` and ``https_proxy`` are for the web, and what they name
rarely passes a long stream of HTTP/2 to a port of its own.

One server may be several (replicas): a name that resolves to several addresses, or a list of addresses. gRPC itself
then chooses: it connects to all of them and takes one that answers, by turns (``round_robin``,
https://github.com/grpc/grpc/blob/master/doc/load-balancing.md). A stream stays where it was opened; the next one of the
same session goes to whichever replica is there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import grpc

from splitsight.errors import UserError

__all__ = ["Address", "aio_channel", "channel", "host_of", "is_loopback", "parse_address", "parse_addresses"]

_DNS = "dns:///"
_BY_TURNS = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")
_SCHEME = re.compile(r"(unix|unix-abstract|vsock):|[A-Za-z][A-Za-z0-9+.-]*://|(dns|ipv4|ipv6|xds|passthrough):/*.*:")


class Address(NamedTuple):
    """Where a server is: a name or an IP address without brackets, and a port in 1 … 65535 (0 … where it listens)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host.lower() == "localhost":
        return True
    ip = _ip(host.removeprefix("[").removesuffix("]"))
    return ip is not None and (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def host_of(text: str, option: str) -> str:
    """A host as the user wrote it, checked; an IPv6 address may stand in brackets.

    Args:
        text: name, IPv4 or IPv6 address (``fe80::1%eth0`` with its scope).
        option: where it was given, for messages: ``--host``.

    Returns:
        It without brackets.

    Raises:
        UserError: neither a name nor an address; says what it is instead.
    """
    if _SCHEME.match(text):
        raise UserError(_scheme(text, f"a name or an IP address, for example {option} 127.0.0.1"))
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    ip = _ip(host)
    if ip is not None and (ip.version == 6 or not bracketed):
        return host
    name, _, port = host.rpartition(":")
    if port.isdecimal() and not bracketed and (_ip(name) or _named(name)):
        raise UserError(f"{option} '{text}' holds a port: give the host alone here, and the port by its own option")
    if bracketed or not _named(host):
        raise UserError(f"{option} '{text}' is neither a host's name nor an IP address: give, for example, 127.0.0.1")
    return host


def _named(host: str) -> bool:
    """Whether it can be a host's name; a name whose last part is a number is a mistyped IPv4 address."""
    try:
        labels = host.removesuffix(".").encode("idna").decode().split(".")
    except UnicodeError:  # an empty or an overlong part, or signs that no name holds
        return False
    return all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def _scheme(text: str, instead: str) -> str:
    if text.startswith(("unix", "vsock")):
        return f"'{text}' is a local socket, which is not supported: give {instead}"
    return f"'{text}' is a URL: give {instead}"


def parse_address(text: str, example: str) -> Address:
    """``HOST:PORT`` as the user wrote it, checked; an IPv6 address stands in brackets: ``[::1]:50051``.

    Args:
        text: what to parse.
        example: the option and what it could be, for messages: ``--server 127.0.0.1:50051``.

    Raises:
        UserError: says what is wrong with it.
    """
    give = f"HOST:PORT, for example {example}"
    if _SCHEME.match(text):
        raise UserError(_scheme(text, give))
    if "/" in text:
        raise UserError(f"'{text}' holds a slash and is not HOST:PORT: give {give}")
    match = re.fullmatch(r"(\[.*\]|[^:]*)(?::([^:\]]*))?", text)
    if match is None or (match[1].startswith("[") and not match[2]):
        raise UserError(f"'{text}' is not HOST:PORT: give {give}; an IPv6 address stands in brackets, [::1]:50051")
    host, port = match[1], match[2]
    if not host or not port:
        raise UserError(f"'{text}' is not HOST:PORT, the {'port' if host else 'host'} is missing: give {give}")
    if not re.fullmatch(r"[0-9]{1,9}", port) or not 0 < int(port) < 65536:
        raise UserError(f"'{text}' is not HOST:PORT, {port} is not a port (1 … 65535): give {give}")
    return Address(host_of(host, example.split()[0]), int(port))


def parse_addresses(text: str, example: str) -> tuple[Address, ...]:
    """One server's addresses, with commas between: ``10.0.0.1:50051,10.0.0.2:50051``.

    Args:
        text: as :func:`parse_address` takes one.
        example: likewise.

    Raises:
        UserError: one is wrong, or several that are not IP addresses of one version, which is what gRPC takes.
    """
    found = tuple(dict.fromkeys(parse_address(part.strip(), example) for part in text.split(",")))
    if len(found) == 1:
        return found
    found = tuple(Address("127.0.0.1", a.port) if a.host.lower() == "localhost" else a for a in found)
    versions = {None if (ip := _ip(a.host)) is None else ip.version for a in found}
    if len(versions) > 1 or None in versions:
        raise UserError(
            f"'{text}' has several addresses that are not all IPv4 or all IPv6: give such, or one name that resolves "
            "to all of them"
        )
    return found


def _target(addresses: Sequence[Address]) -> str:
    ip = _ip(addresses[0].host)
    if ip is None:
        # idna, so that a name in other scripts is looked up as a resolver knows it
        return f"{_DNS}{addresses[0].host.encode('idna').decode()}:{addresses[0].port}"
    return f"ipv{ip.version}:{','.join(quote(str(address), safe=':[]') for address in addresses)}"


def _options(addresses: Sequence[Address], receive_bytes: int, keepalive: bool) -> list[tuple[str, int | str]]:
    hosts = [(a.host, _ip(a.host)) for a in addresses]
    local = all(is_loopback(host) or (ip is not None and ip.is_unspecified) for host, ip in hosts)
    several = len(addresses) > 1 or hosts[0][1] is None
    proxy = None if local else os.environ.get("grpc_proxy")  # noqa: SIM112, gRPC reads it in lower case
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", receive_bytes),
        # nothing that a server could make this side inflate
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # our own back-off decides; a channel must not inherit the refused state of the one before
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # despite its name how long an attempt may take: a distant server answers after several hundred milliseconds
        ("grpc.min_reconnect_backoff_ms", 20_000),
        ("grpc.max_reconnect_backoff_ms", 500),
        *([("grpc.service_config", _BY_TURNS)] if several else []),
        *([("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)] if keepalive else []),
        *([("grpc.http_proxy", proxy)] if proxy else [("grpc.enable_http_proxy", 0)]),
    ]


def channel(
    address: Address | Sequence[Address],
    via: Address | None = None,
    *,
    receive_bytes: int = 16 << 20,
    keepalive: bool = False,
    tls: grpc.ChannelCredentials | None = None,
) -> grpc.Channel:
    """A channel to a server; connects when it is used.

    Args:
        address: of the server, or of its replicas.
        via: where to connect, if it is reached through a relay; its certificate is still checked for ``address``.
        receive_bytes: largest message that may come.
        keepalive: ask every 20 s whether the server is still there.
        tls: what :class:`splitsight.wire.credentials.ClientCredentials` makes; ``None`` for no TLS.
    """
    addresses = [address] if isinstance(address, Address) else address
    where = addresses if via is None else [via]
    options = _options(where, receive_bytes, keepalive)
    if tls is None:
        return grpc.insecure_channel(_target(where), options)
    if via is not None or len(addresses) > 1:
        # of several, each certificate must hold the first address: gRPC checks one name a channel
        options.append(("grpc.ssl_target_name_override", addresses[0].host))
    return grpc.secure_channel(_target(where), tls, options)


def aio_channel(address: Address, *, receive_bytes: int = 16 << 20) -> grpc.aio.Channel:
    """:func:`channel` for asyncio, without TLS."""
    return grpc.aio.insecure_channel(_target([address]), _options([address], receive_bytes, keepalive=False))
