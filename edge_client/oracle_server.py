"""The oracle as a process: ports, deadlines, how many queries one peer may have under way, and a drain.

Messages are awaited on an event loop and answered in one thread, so that whoever is slow to send its query, a stranger
at the health check among them, keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import structlog

from edge_client.oracle import Allowance, Metrics, OracleOptions, OracleService, Refusal, edge
from splitsight.wire.fields import parsed
from splitsight.wire.peers import Peers
from splitsight.wire.ports import add_port, serve_metrics, server_options
from splitsight.wire.tensors import WireError
from splitsight.wire.v1 import oracle_pb2 as pb

__all__ = ["handlers", "serve_oracle"]

NAME = pb.DESCRIPTOR.services_by_name["Oracle"].full_name

_STREAMS = 8  # queries of one peer under way, each with its message in memory
_PATIENCE = 10.0  # seconds for a query's message to arrive
_DRAIN = 5.0


def handlers(
    service: OracleService, streams: int = _STREAMS, patience: float = _PATIENCE
) -> tuple[grpc.GenericRpcHandler, ThreadPoolExecutor]:
    """``splitsight.v1.Oracle`` for an asynchronous server, and the thread that computes.

    Args:
        service: what is said.
        streams: queries that one peer may have under way.
        patience: seconds in which the message of a query must come.
    """
    thread, peers = ThreadPoolExecutor(1, thread_name_prefix="oracle"), Peers(streams)

    async def describe(raw: bytes, context: grpc.aio.ServicerContext) -> pb.DescribeOracleResponse:
        try:
            parsed(pb.DescribeOracleRequest, raw)
        except WireError as error:
            await context.abort(error.code, error.message)
        return service.describe()

    async def query(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> pb.QueryResponse:
        try:
            with peers.stream(context.peer()):
                request = service.read(await _first(requests, patience))
                return await asyncio.get_running_loop().run_in_executor(thread, service.query, request)
        except WireError as error:
            trailing = error.trailing if isinstance(error, Refusal) else ()
            await context.abort(error.code, error.message, trailing)
            raise AssertionError("abort raises") from error

    made = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            describe, request_deserializer=None, response_serializer=pb.DescribeOracleResponse.SerializeToString
        ),
        # one message, but as a stream: the peer is counted before the message is read, and it is read as bytes
        "Query": grpc.stream_unary_rpc_method_handler(
            query, request_deserializer=None, response_serializer=pb.QueryResponse.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler(NAME, made), thread


async def _first(requests: AsyncIterator[bytes], patience: float) -> bytes:
    try:
        async with asyncio.timeout(patience):
            return await anext(requests)
    except TimeoutError:
        raise WireError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no query came within {patience:g} s") from None
    except StopAsyncIteration:
        raise WireError(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a query") from None


def serve_oracle(options: OracleOptions) -> int:
    """Answer queries until SIGTERM or SIGINT, then finish those under way.

    Once ready, one JSON line goes to stdout: ``{"event": "ready", "port": …, "metrics_port": …}``. Logs are JSON
    lines on stderr.

    Returns:
        Exit status: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        UserError: a port in use, an unknown target, split or defence, weights that do not fit.
    """
    return asyncio.run(_serve(options))


async def _serve(options: OracleOptions) -> int:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    caught: list[signal.Signals] = []
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def handle(which: signal.Signals) -> None:
        caught.append(which)
        stop.set()

    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, handle, which)
    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    metrics = Metrics()
    server = grpc.aio.server(
        interceptors=options.credentials.aio_interceptors("oracle", metrics.refused.labels("token").inc),
        # what is a little too large is read and refused with a sentence of ours, the rest by gRPC unread
        options=server_options(3 * options.max_side**2 * options.max_batch + (1 << 20)),
    )
    try:
        # ports first: a mistake there should not cost the seconds that loading takes
        port = add_port(server, options.host, options.port, what="oracle", credentials=options.credentials)
        metrics_port = None if options.metrics_port is None else serve_metrics(metrics.registry, options.metrics_port)
        allowance = Allowance(options.budget, options.rate, options.max_batch)
        handler, thread = handlers(OracleService(*edge(options), allowance, metrics))
        server.add_generic_rpc_handlers((handler,))
        checker = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  missing in the stub
        health_pb2_grpc.add_HealthServicer_to_server(checker, server)
        reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await server.start()
        for name in ("", NAME):
            await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("ready", target=options.target, split=options.split, port=port, budget=options.budget)
        with suppress(OSError):  # whoever started us need not listen
            print(json.dumps({"event": "ready", "port": port, "metrics_port": metrics_port}), flush=True)
        await stop.wait()
        await checker.enter_graceful_shutdown()
        await server.stop(_DRAIN)
        thread.shutdown(wait=False)
        log.info("stopped", answered=options.budget - allowance.left)
        return 130 if caught[0] == signal.SIGINT else 0
    finally:
        await server.stop(0)
