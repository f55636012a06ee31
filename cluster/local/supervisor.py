"""The supervisor process of a local cluster; :mod:`cluster.local.channel` describes its input.

The end of its standard input stops everything at once. All output but its answers goes to standard
error.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import psutil

from cluster.local import processes
from cluster.local.channel import SupervisorOptions
from cluster.local.nodes import LOOPBACK, FixedNodes, Nodes, start_head
from cluster.reasons import reason_in

logger = logging.getLogger("cluster.supervisor")

_PROXY_WITHIN_S = 300.0
_NODES_WITHIN_S = 120.0
_ENDING = threading.Lock()
_SERVED: list[dict[str, Any]] = []
"""Applications of the last successful deployment."""


def main() -> None:
    """Run the supervisor until standard input ends."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parent = os.getppid()
    report = functools.partial(_report, _reserve_output())
    options = SupervisorOptions(**json.loads(sys.stdin.readline()))
    end = functools.partial(_end, options.directory, parent)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, end), daemon=True).start()
    try:
        # In the main thread: the kernel ends Ray's processes with the thread that started them.
        workers, metrics = start_cluster(options)
        report({"ready": True, "metrics": metrics})
        threading.Thread(target=_execute, args=(orders, report), daemon=True).start()
        _wait_while_ray_lives(workers)
        logger.error("Ray has ended")
    except Exception as error:
        logger.exception("the local server did not start")
        report({"failed": reason_of(error)})
    finally:
        end()


def reason_of(error: Exception) -> str:
    """Return what an error says, or the name of its class."""
    return reason_in(str(error)) or type(error).__name__


def _wait_while_ray_lives(workers: FixedNodes) -> None:
    """Return when one of the two processes that a cluster needs has died."""
    vital = [child for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")]
    gone: list[psutil.Process] = []
    while len(vital) == 2 and not gone:
        gone, _ = psutil.wait_procs(vital, timeout=1.0)
        workers.start_missing()


def _listen(orders: queue.SimpleQueue[str], end: Callable[[], NoReturn]) -> None:
    for line in sys.stdin:
        orders.put(line)
    end()


def _execute(orders: queue.SimpleQueue[str], report: Callable[[dict[str, Any]], None]) -> None:
    while True:
        order = json.loads(orders.get())
        try:
            if "deploy" in order:
                _deploy(order["deploy"])
            else:
                _drain(order["drain"])
        except Exception as error:
            logger.exception("an order failed")
            report({"failed": reason_of(error)})
        else:
            report({"ready": True})


def _end(directory: str, parent: int) -> NoReturn:
    """End the cluster and this process. Requests in flight are lost unless drained first."""
    _ENDING.acquire()  # a second caller waits here for the end
    processes.adopt_orphans()
    processes.end_all(os.environ[processes.MARKER], os.getpid())
    processes.collect_dead()
    # A living parent removes the files itself, because it may want to show them.
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)
    # Not sys.exit: Ray's exit handlers would wait for a cluster that is gone.
    os._exit(0)


def start_cluster(options: SupervisorOptions) -> tuple[FixedNodes, list[str]]:
    """Start Ray, Serve and the applications; return worker nodes and metrics addresses."""
    import ray

    nodes = Nodes(**options.nodes)
    address = start_head(
        nodes, port=options.gcs_port, dashboard_port=options.dashboard_port, directory=Path(options.directory)
    )
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, _node_ip_address=LOOPBACK)
    workers = FixedNodes(address, 0 if nodes.autoscaled else nodes.minimum - 1, nodes.cpus)
    _start_serve(options)
    _deploy(options.applications)
    _wait_for_nodes(nodes.minimum)
    metrics = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    return workers, metrics


def _wait_for_nodes(number: int) -> None:
    """Wait until ``number`` nodes are there: an application may answer before all have joined."""
    import ray

    deadline = time.monotonic() + _NODES_WITHIN_S
    while (found := sum(node["Alive"] for node in ray.nodes())) < number:
        if time.monotonic() > deadline:
            logger.warning("%d nodes must be there, and %d are after %.0f s", number, found, _NODES_WITHIN_S)
            return
        time.sleep(0.1)


def _start_serve(options: SupervisorOptions) -> None:
    """Start Serve and wait for its proxy, longer than the 60 s after which Ray gives up."""
    from ray import serve

    deadline = time.monotonic() + _PROXY_WITHIN_S
    try:
        serve.start(
            http_options={"host": options.host, "port": options.port},
            proxy_location="HeadOnly",
            logging_config={"enable_access_log": False},
        )
    except TimeoutError:
        # Serve goes on with the start.
        while not (proxies := serve.status().proxies) or any(one != "HEALTHY" for one in proxies.values()):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _deploy(applications: list[dict[str, Any]]) -> None:
    """Serve these applications: replace changed ones replica by replica, and delete missing ones.

    Ray Serve replaces the replicas of every application that it is given, so unchanged ones are
    left out. If nothing has changed, all are replaced: the files may be different.
    """
    from ray import serve

    from deployments.app import build_from
    from deployments.settings import parse_settings

    targets = [
        # One attempt: on one machine, a failure should be reported at once.
        serve.RunTarget(
            build_from(parse_settings(one["settings"]), start_attempts=1),
            name=one["name"],
            route_prefix=one["route_prefix"],
        )
        for one in applications
        if one not in _SERVED or applications == _SERVED
    ]
    try:
        if targets:
            serve.run_many(targets)
    except RuntimeError as error:
        # The error only says that an application failed; the deployment's status has the reason.
        found = serve.status().applications
        failed = [found[target.name] for target in targets if target.name in found]
        deployments = [deployment for one in failed for deployment in one.deployments.values()]
        messages = [one.message for one in deployments if one.message]
        raise RuntimeError("\n".join(messages) or str(error)) from error
    for name in {one["name"] for one in _SERVED} - {one["name"] for one in applications}:
        serve.delete(name, _blocking=False)
    _SERVED[:] = applications


def _drain(timeout_s: float) -> None:
    """Delete all applications; return when their replicas have finished their requests."""
    from ray import serve

    deadline = time.monotonic() + timeout_s
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        if time.monotonic() > deadline:
            raise TimeoutError(f"requests are still in flight after {timeout_s:.0f} s")
        time.sleep(0.1)


def _reserve_output() -> TextIO:
    """Reserve standard output for reports; redirect all other output to standard error."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return reports


def _report(reports: TextIO, report: dict[str, Any]) -> None:
    try:
        reports.write(json.dumps(report) + "\n")
        reports.flush()
    except OSError:
        pass  # the reader is gone; the end of standard input follows


if __name__ == "__main__":
    main()
