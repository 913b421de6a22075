"""Run a cloud server: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any

import grpc
import structlog

from cloud_server.options import CloudOptions
from splitsight.terminal import announce
from splitsight.wire.ports import add_port, server_options

__all__ = ["CloudOptions", "serve"]


def serve(options: CloudOptions) -> int:
    """Serve until SIGTERM or SIGINT, then finish the frames under way.

    Once ready, one JSON line goes to stdout: ``{"event": "ready", "port": …, "tap_port": …, "metrics_port": …}``
    (``null`` for what is off). Logs are JSON lines on stderr. A second signal ends the drain at once.

    Returns:
        Exit status: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        UserError: a port in use, an unknown target or split, weights that do not fit, a tap open to anyone.
    """
    # F2 takes the interpreter's lock again after each operator, and by default waits 5 ms for whoever decodes frames
    sys.setswitchinterval(1e-4)
    return asyncio.run(_serve(options))


def _logger() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )


async def _serve(options: CloudOptions) -> int:
    signals: list[signal.Signals] = []
    stop, hurry = asyncio.Event(), asyncio.Event()

    def caught(which: signal.Signals) -> None:
        (hurry if stop.is_set() else stop).set()
        signals.append(which)

    if threading.current_thread() is threading.main_thread():
        for which in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(which, caught, which)

    limit = int(options.max_message_mb * (1 << 20))
    server = grpc.aio.server(
        interceptors=options.credentials.aio_interceptors("cloud server"),
        # what is a little too large is read and refused with a sentence of ours, the rest by gRPC unread
        options=server_options(limit + (1 << 20)),
    )
    try:
        # ports first: a mistake there should not cost the seconds that loading takes
        port = add_port(server, options.host, options.port, what="cloud server", credentials=options.credentials)
        return await _run(options, server, port, stop, hurry, signals)
    finally:
        await server.stop(0)


async def _run(
    options: CloudOptions,
    server: grpc.aio.Server,
    port: int,
    stop: asyncio.Event,
    hurry: asyncio.Event,
    signals: list[signal.Signals],
) -> int:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    from cloud_server.metrics import Metrics
    from cloud_server.model import Served
    from cloud_server.sessions import NAME, Inference, handlers
    from cloud_server.tap import Hub, start_tap
    from splitsight.wire.peers import Peers

    log, metrics, hub = _logger(), Metrics(), Hub()
    metrics_port = None if options.metrics_port is None else metrics.serve(options.metrics_port)
    served = Served(options)
    served.warm_up(options.max_batch)
    tap, tap_port = None, None
    if options.tap_port is not None:
        frame_size = sum(spec.bytes for spec in served.specs)
        tap, tap_port = start_tap(hub, metrics, options, frame_size)
    service = Inference(
        served.description,
        list(served.specs),
        served,
        hub,
        metrics,
        log,
        max_batch=options.max_batch,
        batch_window=options.batch_window_ms / 1000,
        resume_seconds=options.resume_seconds,
        peers=Peers(options.max_streams_per_peer, options.max_frame_rate),
        idle=options.idle_seconds,
        longest=options.stream_hours * 3600,
    )
    server.add_generic_rpc_handlers((handlers(service),))
    checker = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  missing in the stub
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    reflection.enable_server_reflection((NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await server.start()
    for name in ("", NAME):
        await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    log.info("ready", target=options.target, split=options.split, port=port, tap_port=tap_port)
    ready = {"event": "ready", "port": port, "tap_port": tap_port, "metrics_port": metrics_port}
    with_tap = "" if tap_port is None else f", its tap on port {tap_port}"
    announce(ready, f"serving {options.target} at {options.split} on port {port}{with_tap}; stays up until Ctrl-C")

    await stop.wait()
    log.info("draining", signal=signals[0].name if signals else None)
    await checker.enter_graceful_shutdown()
    drain = asyncio.ensure_future(service.drain(options.drain_seconds))
    impatient = asyncio.ensure_future(hurry.wait())
    await asyncio.wait({drain, impatient}, return_when=asyncio.FIRST_COMPLETED)
    hub.close()
    if tap is not None:
        # readers get what is left in their rings; one that hangs is cut off after two seconds
        done = tap.stop(0 if hurry.is_set() else 2)
        await asyncio.get_running_loop().run_in_executor(None, done.wait)
    impatient.cancel()
    drain.cancel()
    await server.stop(0)
    log.info("stopped")
    return 130 if signals and signals[0] == signal.SIGINT else 0
