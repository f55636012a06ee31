"""The process under which a local cluster runs; started by :mod:`cluster.local`, never by hand.

Its first line of input says what to serve. Further ones are orders: ``{"deploy": applications}`` goes over to other
ones or other settings, ``{"drain": seconds}`` finishes the requests under way and takes no more. It answers each with
one line, ``{"ready": true}`` or ``{"failed": reason}``. The end of its input is the sign to stop everything, whatever
goes on. Whatever else is printed in it goes where its errors go: Ray prints warnings, for one when many replicas start.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

import psutil

from cluster.local import processes as _processes

logger = logging.getLogger("cluster.supervisor")

LOOPBACK = "127.0.0.1"
_LONGEST_REASON = 2000
# Nothing large is passed through it: the smallest that Ray allows.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
_ENDING = threading.Lock()
_SERVED: list[dict[str, Any]] = []
"""The applications of the last order that went well."""


def main() -> None:
    """Serve until standard input ends."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    parent = os.getppid()
    report = functools.partial(_report, _reserve_output())
    options = json.loads(sys.stdin.readline())
    end = functools.partial(_end, options["directory"], parent)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, end), daemon=True).start()
    try:
        # In the main thread, which stays: the kernel ends Ray's processes with the thread that started them.
        nodes, metrics = _start(options)
        report({"ready": True, "metrics": metrics})
        threading.Thread(target=_obey, args=(orders, report), daemon=True).start()
        _wait_while_ray_lives(nodes)
        logger.error("Ray has ended")
    except Exception as error:
        logger.exception("the local server did not start")
        report({"failed": _reason(error)})
    finally:
        end()


def _reason(error: Exception) -> str:
    """The error in a few lines: without terminal colours, and of a replica's long traceback the end."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else "..." + text[-_LONGEST_REASON:]


def _wait_while_ray_lives(nodes: _WorkerNodes) -> None:
    """Return once one of the two processes without which there is no cluster has died."""
    vital = [child for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")]
    gone: list[psutil.Process] = []
    while len(vital) == 2 and not gone:
        # Returns early only if all have died.
        gone, _ = psutil.wait_procs(vital, timeout=1.0)
        nodes.keep()


class _WorkerNodes:
    """Ray nodes beside the head, on the same machine. One that dies is started again, as a cluster's manager would."""

    def __init__(self, address: str, count: int, num_cpus: int) -> None:
        arguments = (address, str(num_cpus), str(_OBJECT_STORE_BYTES))
        self._command = [sys.executable, "-m", _processes.WORKER_NODE, *arguments]
        self._nodes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.keep()

    def keep(self) -> None:
        """Start every node that does not run."""
        for index, node in enumerate(self._nodes):
            if node is None or node.poll() is not None:
                # Its standard output, too, goes into the supervisor's log.
                self._nodes[index] = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def _listen(orders: queue.SimpleQueue[str], end: Callable[[], NoReturn]) -> None:
    for line in sys.stdin:
        orders.put(line)
    end()


def _obey(orders: queue.SimpleQueue[str], report: Callable[[dict[str, Any]], None]) -> None:
    """Carry out one order after the other."""
    while True:
        order = json.loads(orders.get())
        try:
            if "deploy" in order:
                _deploy(order["deploy"])
            else:
                _drain(order["drain"])
        except Exception as error:
            logger.exception("an order could not be carried out")
            report({"failed": _reason(error)})
        else:
            report({"ready": True})


def _end(directory: str, parent: int) -> NoReturn:
    """End the cluster and this process. Requests in flight are lost: whoever wants them finished orders that first."""
    _ENDING.acquire()  # whoever comes second waits here for the end
    _processes.adopt_orphans()
    _processes.end_all(os.environ[_processes.MARKER], os.getpid())
    _processes.collect_dead()
    # A parent that lives looks after the files itself, since it may want to show them.
    if os.getppid() != parent:
        shutil.rmtree(directory, ignore_errors=True)
    # Not sys.exit: Ray's exit handlers would wait for a cluster that is gone.
    os._exit(0)


def _start(options: dict[str, Any]) -> tuple[_WorkerNodes, list[str]]:
    """Start everything; the worker nodes, and where each of the nodes that are there has its metrics."""
    import ray
    from ray import serve

    context = ray.init(
        address="local",
        num_cpus=options["num_cpus"],
        include_dashboard=options["dashboard_port"] is not None,
        dashboard_host=LOOPBACK,
        dashboard_port=options["dashboard_port"],
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address=LOOPBACK,
        _temp_dir=os.path.join(options["directory"], "r"),
    )
    nodes = _WorkerNodes(context.address_info["address"], options["worker_nodes"], options["num_cpus"])
    serve.start(
        http_options={"host": options["host"], "port": options["port"]},
        proxy_location="HeadOnly",
        logging_config={"enable_access_log": False},
    )
    _deploy(options["applications"])
    metrics = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    return nodes, metrics


def _deploy(applications: list[dict[str, Any]]) -> None:
    """Serve these; what is served already goes over to its new settings replica by replica, or is taken away.

    Ray Serve would replace the replicas of all. So those that are as before are not named to it, unless nothing at all
    has changed: then somebody wants them replaced, perhaps for other files under the same names.
    """
    from ray import serve

    from deployments.app import build_from
    from deployments.settings import parse_settings

    targets = [
        # One attempt: what fails here once, on the machine of the one who waits for it, is to be heard of now.
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
        # It says that an application failed; why, the deployment's own status knows.
        found = serve.status().applications
        mine = [found[target.name] for target in targets if target.name in found]
        deployments = [deployment for one in mine for deployment in one.deployments.values()]
        messages = [one.message for one in deployments if one.message]
        raise RuntimeError("\n".join(messages) or str(error)) from error
    for name in {one["name"] for one in _SERVED} - {one["name"] for one in applications}:
        serve.delete(name, _blocking=False)
    _SERVED[:] = applications


def _drain(timeout_s: float) -> None:
    """Take all applications away; returns when their replicas have finished their requests and are gone."""
    from ray import serve

    deadline = time.monotonic() + timeout_s
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        if time.monotonic() > deadline:
            raise TimeoutError(f"requests are still under way after {timeout_s:.0f} s")
        time.sleep(0.1)


def _reserve_output() -> TextIO:
    """Standard output for the reports alone: what is printed from now on, here or by a child, is on standard error."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return reports


def _report(reports: TextIO, report: dict[str, Any]) -> None:
    try:
        reports.write(json.dumps(report) + "\n")
        reports.flush()
    except OSError:
        pass  # whoever wanted to know is gone, and the end of the input says so as well


if __name__ == "__main__":
    main()
