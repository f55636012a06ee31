"""The process that keeps a local cluster after ``delctl up`` has returned.

It starts the cluster, records it, deploys the applications through the dashboard, and holds the
supervisor's input open, whose end stops everything. Its own input is one line, the JSON of
:class:`KeeperOptions`; its output is one line, ``{"ready": true}`` or ``{"failed": reason}``.
SIGTERM finishes the requests in flight and stops the cluster; SIGINT stops it at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import sys
from typing import Any, TextIO

from cluster.deploy import ClusterError, Dashboard, deploy
from cluster.local.nodes import Nodes
from cluster.local.server import (
    LocalServer,
    LocalServerError,
    ProxyChoice,
    Terminated,
    start_nodes,
    terminated_as_exit,
)
from cluster.local.state import ClusterRecord, ProcessId, remove_record, write_record

logger = logging.getLogger("cluster.keeper")

_DEFAULT_GRACE_S = 60.0
_START_ATTEMPTS = 2


@dataclasses.dataclass(frozen=True)
class KeeperOptions:
    """Options of a keeper.

    Args:
        config: the applications, in Serve's schema.
        nodes: the fields of :class:`cluster.local.nodes.Nodes`.
    """

    config: dict[str, Any]
    nodes: dict[str, Any]
    port: int
    proxy: ProxyChoice
    startup_timeout_s: float


def main() -> None:
    """Keep a cluster until a signal, or until it ends by itself."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll
    # A shell that started this in the background has it ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = KeeperOptions(**json.loads(sys.stdin.readline()))
    answers = sys.stdout
    with contextlib.suppress(KeyboardInterrupt), terminated_as_exit():
        try:
            server = _start(options)
        except BaseException as error:
            remove_record(os.getpid())
            if not isinstance(error, LocalServerError | OSError):  # OSError: no port is free
                raise
            _answer(answers, {"failed": str(error)})
            return
        with server:
            _keep(server, options, answers)


def _start(options: KeeperOptions) -> LocalServer:
    """Start the nodes; try again if Ray gave up, as it does on a busy machine."""
    for attempt in range(_START_ATTEMPTS, 0, -1):
        launched: list[LocalServer] = []
        try:
            return start_nodes(
                Nodes(**options.nodes),
                port=options.port,
                proxy=options.proxy,
                launched=functools.partial(_launched, launched),
                startup_timeout_s=options.startup_timeout_s,
            )
        except LocalServerError as error:
            if attempt == 1 or not launched:
                raise
            logger.warning("the nodes are started again: %s", error)
            shutil.rmtree(launched[0].directory, ignore_errors=True)
    raise AssertionError


def _launched(servers: list[LocalServer], server: LocalServer) -> None:
    servers.append(server)
    _record("starting", server)


def _keep(server: LocalServer, options: KeeperOptions, answers: TextIO) -> None:
    record = _record("starting", server)
    try:
        config = {**options.config, "http_options": record.http_options}
        with Dashboard(record.dashboard_url, record.ray_token) as dashboard:
            try:
                deploy(dashboard, config, timeout_s=options.startup_timeout_s)
            except ClusterError as error:
                _answer(answers, {"failed": f"{error}; its logs are in {server.directory}"})
                server.stop(keep_files=True)
                return
            _record("running", server)
            _answer(answers, {"ready": True})
            try:
                server.wait()
                logger.error("the cluster has ended by itself; its logs are in %s", server.directory)
                server.stop(keep_files=True)
            except Terminated:
                with contextlib.suppress(LocalServerError, ClusterError):
                    server.drain(_grace_s(dashboard))
                raise
    finally:
        server.stop()
        remove_record(os.getpid())


def _grace_s(dashboard: Dashboard) -> float:
    """Return the longest time that requests in flight may take, by what is deployed now."""
    found = dashboard.serve_details()["applications"].values()
    deployments = [one for application in found for one in application["deployments"].values()]
    times = [one["deployment_config"]["graceful_shutdown_timeout_s"] for one in deployments]
    return max(times, default=_DEFAULT_GRACE_S)


def _record(phase: str, server: LocalServer) -> ClusterRecord:
    record = ClusterRecord(
        phase=phase,
        keeper=ProcessId.of(os.getpid()),
        supervisor=ProcessId.of(server.supervisor_pid),
        token=server.token,
        ray_token=server.ray_token,
        url=server.url,
        dashboard_url=str(server.dashboard_url),
        gcs_address=server.gcs_address,
        directory=str(server.directory),
        proxy=server.proxy,
        nodes=dataclasses.asdict(server.nodes),
        http_options={"host": server.host, "port": server.port},
    )
    write_record(record)
    return record


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
