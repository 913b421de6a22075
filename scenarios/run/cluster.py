"""Rows of a run on a Ray cluster: Ray only places workers, the run's folder says who computes what.

Each worker is one Ray task that does what a local one does (:func:`scenarios.run.run.run_worker`): it takes units that
nobody holds, under a lock in the folder, until all are done. So the folder must lie on a file system that all nodes
share and that knows locks (NFS from version 4 on does), rows are the same as without a cluster, and whatever dies, its
units are taken by others: a task whose node is lost is placed again by Ray, and nothing that was filed is computed
again.

Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scenarios.run.progress import Reporter
from scenarios.run.store import Store
from splitsight.errors import UserError
from splitsight.summary import environment

__all__ = ["check_ray", "connected", "share_on_ray"]

_LOOK_S = 0.5
_REACH_S = 5.0


def check_ray(address: str) -> Any:
    """Ray's module, once something listens at ``HOST:PORT``; Ray itself would try for a minute and end the process.

    Raises:
        UserError: Ray is not installed, or nothing listens there.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: `pip install 'splitsight[ray]'` here and on each node") from error
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # not "auto"
            socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head --port {port}`, or give "
            "the address that it printed"
        ) from error
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray's module, connected to a cluster within the block.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto`` for the one on this machine.

    Raises:
        UserError: Ray is not installed, nothing answers there, or the cluster runs other versions.
    """
    ray = check_ray(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster at {address}: start one with `ray start --head`, or give HOST:PORT") from error
    except RuntimeError as error:
        words = " ".join(str(error).split())
        if "ersion mismatch" not in words:
            raise UserError(f"Ray does not connect to {address}: {words}", code=1) from error
        raise UserError(f"the Ray cluster at {address} runs other versions, install the same ones: {words}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _work(folder: str, threads: int, device: str, version: str) -> tuple[str, int]:
    """One worker, on whatever node; what went wrong in one sentence (empty: nothing), and its exit status."""
    from scenarios.run.run import run_worker

    node = socket.gethostname()
    if (own := _version()) != version:
        return f"the node {node} has splitsight {own}, not {version}: install the same version on each node", 2
    if not Store(Path(folder)).config.is_file():
        return f"the node {node} does not see {folder}: give an --out on a file system that all nodes share", 2
    try:
        run_worker(Path(folder), threads, device)
    except UserError as error:
        return str(error), error.code
    return "", 0


def _version() -> str:
    return str(environment()["versions"]["splitsight"])


def share_on_ray(
    store: Store, reporter: Reporter, address: str, *, workers: int | None, threads: int, device: str
) -> None:
    """Have a cluster's workers do what of a run is not done, and watch.

    Args:
        store: of the run, opened; in a folder that all nodes see.
        reporter: of its progress.
        address: of the cluster, as for :func:`connected`.
        workers: tasks; as many as the cluster has cores for by default.
        threads: compute threads, and cores that Ray keeps, of each.
        device: where the attacks compute.

    Raises:
        UserError: as for :func:`connected`; a node lacks the folder or has another version; a worker failed.
    """
    with connected(address) as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        count = workers or max(1, cores // threads)
        # placed again for as long as the cluster loses nodes; a worker that ends by itself is never repeated
        task = ray.remote(_work).options(num_cpus=threads, max_retries=-1, scheduling_strategy="SPREAD")
        arguments = (str(store.folder.resolve()), threads, device, _version())
        pending = [task.remote(*arguments) for _ in range(count)]
        try:
            while reporter.refresh():
                done, pending = ray.wait(pending, timeout=_LOOK_S)
                for said, code in _answers(ray, done):
                    if said:
                        raise UserError(said, code=code)
                if not pending and reporter.refresh():
                    raise UserError("the cluster's workers ended before the work did: run the command again", code=1)
        finally:
            for one in pending:
                ray.cancel(one, force=True)


def _answers(ray: Any, done: list[Any]) -> list[tuple[str, int]]:
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"a worker on the cluster failed: {lines[-1].strip() if lines else error}", code=1) from error
