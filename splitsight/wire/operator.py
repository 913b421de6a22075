"""The operator's way into a running process: see what it does, change what can be changed without a new one.

An edge and an adversary each serve ``splitsight.v1.Operator`` on a port of its own, off unless asked for, and never
without a token; beyond loopback it takes TLS, too (:mod:`splitsight.wire.credentials`). What a process can change it
says by its :class:`Handler`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc

from splitsight.errors import UserError
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials, ServerCredentials, read_token
from splitsight.wire.fields import parsed
from splitsight.wire.ports import add_port, server_options
from splitsight.wire.tensors import WireError
from splitsight.wire.v1 import operator_pb2 as pb
from splitsight.wire.v1 import operator_pb2_grpc as rpc

__all__ = ["Handler", "OperatorClient", "OperatorOptions", "answer", "only", "served"]

NAME = "splitsight.v1.Operator"
_LONGEST = 4096  # characters of a name that a change may carry


class Handler(Protocol):
    """What a process lets its operator do; called from the server's threads, one at a time."""

    def status(self) -> pb.OperatorStatus:
        """What it does now."""
        ...

    def change(self, wanted: pb.ChangeRequest) -> None:
        """Change all of it, or nothing.

        Raises:
            UserError: what cannot be, in one sentence.
        """
        ...


@dataclass(frozen=True)
class OperatorOptions:
    """Where a process listens for its operator.

    Attributes:
        port: 0 for a free one.
        host: address to listen on; other than loopback it needs certificate and key.
        token_file: file of the operator's bearer token.
        cert: PEM certificate chain; ``None`` for no TLS.
        key: PEM private key that belongs to it.

    Raises:
        UserError: no token, or a port that would be open to anyone.
    """

    port: int = 0
    host: str = "127.0.0.1"
    token_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    credentials: ServerCredentials = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"the operator's port {self.port} is not a port: give 0 (any free one) … 65535")
        token = read_token(self.token_file, "operator")
        if token is None:
            raise UserError("an operator's port needs a token: give its file with --operator-token-file")
        credentials = ServerCredentials(token, self.cert, self.key)
        credentials.check("operator's port", "let anyone steer this process", self.host)
        object.__setattr__(self, "credentials", credentials)


def only(wanted: pb.ChangeRequest, known: set[str], role: str) -> None:
    """Refuse what this role has no use for.

    Raises:
        UserError: names it.
    """
    for descriptor, _ in wanted.ListFields():
        if descriptor.name not in known:
            raise UserError(f"an {role} has no {descriptor.name} to change: it takes {', '.join(sorted(known))}")
    for name in ("source", "attack", "prompt"):
        if len(getattr(wanted, name)) > _LONGEST:
            raise UserError(f"the {name} has more than {_LONGEST} characters: give a shorter one")
    if wanted.HasField("speed") and not (math.isfinite(wanted.speed) and 0.05 <= wanted.speed <= 20):
        raise UserError(f"the speed must be between 0.05 and 20, not {wanted.speed:g}")


def answer(handler: Handler, method: str, raw: bytes) -> pb.OperatorStatus:
    """What a handler says to the bytes of a call of ``Status`` or ``Change``.

    Raises:
        WireError: ``INVALID_ARGUMENT`` for what cannot be, ``INTERNAL`` where changing failed otherwise.
    """
    if method == "Status":
        parsed(pb.StatusRequest, raw)
        return handler.status()
    wanted = parsed(pb.ChangeRequest, raw)
    try:
        handler.change(wanted)
    except UserError as error:
        raise WireError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    except Exception as error:  # the process goes on; the operator reads why
        raise WireError(grpc.StatusCode.INTERNAL, f"the change failed ({type(error).__name__}: {error})") from error
    return handler.status()


def _handlers(handler: Handler) -> grpc.GenericRpcHandler:
    def method(name: str) -> grpc.RpcMethodHandler:
        def call(raw: bytes, context: grpc.ServicerContext) -> pb.OperatorStatus:
            try:
                return answer(handler, name, raw)
            except WireError as error:
                context.abort(error.code, error.message)
                raise AssertionError("abort raises") from error

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=None, response_serializer=pb.OperatorStatus.SerializeToString
        )

    return grpc.method_handlers_generic_handler(NAME, {name: method(name) for name in ("Status", "Change")})


@contextmanager
def served(handler: Handler, options: OperatorOptions | None) -> Iterator[int | None]:
    """Serve an operator within the block; says ``{"event": "operator", "port": …}`` on standard output.

    Args:
        handler: what it may do.
        options: where; ``None`` serves nobody.

    Yields:
        The port, if any.

    Raises:
        UserError: the port is in use, or a certificate cannot be read.
    """
    if options is None:
        yield None
        return
    server = grpc.server(
        # one: changes are made one after another
        ThreadPoolExecutor(1, thread_name_prefix="operator"),
        interceptors=options.credentials.interceptors("operator's port"),
        options=server_options(1 << 17),
        maximum_concurrent_rpcs=16,
    )
    port = add_port(server, options.host, options.port, what="operator", credentials=options.credentials)
    server.add_generic_rpc_handlers((_handlers(handler),))
    server.start()
    try:
        with suppress(OSError):  # whoever started us need not listen
            print(json.dumps({"event": "operator", "port": port}), flush=True)
        yield port
    finally:
        server.stop(0)


class OperatorClient:
    """Calls a process's operator port; as a context manager it closes its channel.

    Args:
        address: of the port.
        credentials: the operator's token, and the authority of its certificate.
        timeout: seconds a call may take.
    """

    def __init__(self, address: Address, credentials: ClientCredentials, timeout: float = 2.0) -> None:
        self._channel = credentials.channel(address)
        self._stub = rpc.OperatorStub(self._channel)
        self._metadata, self._timeout = credentials.metadata, timeout

    def status(self) -> pb.OperatorStatus | None:
        """What the process does; ``None`` where it does not answer in time."""
        try:
            return self._stub.Status(pb.StatusRequest(), timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError:
            return None

    def change(self, **wanted: object) -> pb.OperatorStatus:
        """Change fields of :class:`ChangeRequest`; returns what the process does then.

        Raises:
            UserError: it refuses, with its own sentence, or does not answer.
        """
        try:
            return self._stub.Change(pb.ChangeRequest(**wanted), timeout=self._timeout, metadata=self._metadata)  # type: ignore[arg-type]
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNAUTHENTICATED,
            ):
                raise UserError(error.details() or "it was refused") from error
            raise UserError("the process does not answer: it hangs, or has ended", code=1) from error

    def close(self) -> None:
        """Close the channel; may be called twice."""
        self._channel.close()
