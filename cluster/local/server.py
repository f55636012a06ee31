"""A local server: a Ray cluster with the application on this machine.

    with local_server(settings) as url:
        ...                                # requests to url; at the end everything is stopped

A supervisor process starts a Ray cluster on loopback with token authentication, Serve and the
application. It stops them when its standard input closes, also if this process dies. Processes that
are still alive after that are found by the cluster's token and killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from cluster.config.env import local_environment, python_path
from cluster.local import processes
from cluster.local.channel import Channel, SupervisorOptions
from cluster.local.nodes import LOOPBACK, Nodes
from cluster.local.ports import free_port
from cluster.local.proxy import Proxy, haproxy_binary, haproxy_environment
from del_core.bundle import load_bundle
from del_core.errors import DelError
from del_core.net.addresses import is_loopback
from deployments.service.base_model import verify_checksum
from deployments.settings import ServedApplication, Settings, absolute_paths, as_applications, fetched

logger = logging.getLogger("cluster.local")

ProxyChoice = Literal["auto", "haproxy", "serve"]

_STOP_TIMEOUT_S = 30.0
_DRAIN_SPARE_S = 15.0  # beyond the completions that draining waits for
# Unix socket paths have at most 107 characters, and Ray's are long.
_RUN_DIRECTORY = "/tmp" if os.path.isdir("/tmp") else None


class LocalServerError(DelError):
    """The local server failed; the message has the reason and the directory of its logs."""


class Terminated(SystemExit):
    """SIGTERM was received inside :func:`terminated_as_exit`."""


class LocalServer:
    """A running local server. Use it as a context manager, or call :meth:`stop`.

    Attributes:
        url: base URL without a trailing slash; each application adds its ``path``.
        host, port: where the proxy listens.
        nodes: the nodes of the cluster.
        applications: the served applications.
        proxy: HTTP proxy in use.
        startup_s: seconds from the call to the first answer.
        metrics: host:port of each node's Prometheus metrics, at /metrics.
        dashboard_url: Ray's dashboard, which asks for ``ray_token``; None if it is off.
        ray_token: secret of the cluster's control ports and dashboard.
        token: identifies the cluster's processes (:mod:`cluster.local.processes`).
        directory: files of the cluster, removed when it stops.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        options: SupervisorOptions,
        applications: tuple[ServedApplication, ...],
        *,
        secrets: _Secrets,
        proxy: Proxy,
    ) -> None:
        self._process = process
        self._channel = Channel(process)
        self.token = secrets.marker
        self.ray_token = secrets.ray
        self._options = options
        self._stopped = False
        self.directory = Path(options.directory)
        self.url = f"http://{LOOPBACK if options.host == '0.0.0.0' else options.host}:{options.port}"
        self.host, self.port = options.host, options.port
        self.nodes = Nodes(**options.nodes)
        self.applications = applications
        self.proxy = proxy
        self.startup_s = 0.0
        self.metrics: tuple[str, ...] = ()
        port = options.dashboard_port
        self.dashboard_url = None if port is None else f"http://{LOOPBACK}:{port}"

    def worker_nodes(self) -> list[psutil.Process]:
        """Return the root process of each Ray node beside the head."""
        return [process for process in self.processes() if processes.runs(process, processes.WORKER_NODE)]

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this server, its supervisor included."""
        return list(processes.members(self.token, self._process.pid))

    @property
    def supervisor_pid(self) -> int:
        """Process id of the supervisor, which leads the session of all processes."""
        return self._process.pid

    @property
    def gcs_address(self) -> str:
        """Address of the Ray cluster for drivers on this machine."""
        return f"{LOOPBACK}:{self._options.gcs_port}"

    @property
    def running(self) -> bool:
        """Whether the supervisor is alive."""
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server ends by itself; return False after the timeout."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return not self.running

    def deploy(self, served: Settings | Sequence[ServedApplication], *, timeout_s: float = 300.0) -> None:
        """Replace the settings, such as the bundle, while requests are served.

        A new replica answers before an old one stops, which finishes its requests first, within
        ``scaling.graceful_shutdown_timeout_s``. If the new settings do not start, the old replicas
        continue. Unchanged applications are not touched, unless all are unchanged: then all are
        replaced. New names start, missing names stop.

        Raises:
            SettingsError, BundleError, BaseModelError: as :func:`start_local`; nothing has changed.
            LocalServerError: it did not start, or needs more CPUs than the cluster has.
        """
        applications = check_applications(as_applications(served), self.host)
        nodes = self.nodes
        cpus = required_cpus(applications, nodes.minimum - 1)
        if cpus > nodes.cpus:
            scalings = {one.name: one.settings.scaling for one in applications}
            asked = ", ".join(
                f"{name}: scaling.max_replicas {one.max_replicas}, {one.num_cpus} each"
                for name, one in scalings.items()
            )
            raise LocalServerError(f"CPUs of all replicas must be at most {nodes.cpus}, got {cpus} ({asked})")
        order = {"deploy": applications_to_json(applications, nodes.minimum - 1)}
        self._order(order, timeout_s, "the new settings were not deployed")
        self.applications = applications

    def drain(self, grace_s: float | None = None) -> None:
        """Refuse new requests and wait for those in flight, within the shutdown timeout.

        The server must still be stopped. Raises LocalServerError.

        Args:
            grace_s: the shutdown timeout; None for that of ``applications``.
        """
        grace_s = grace_period_s(self.applications) if grace_s is None else grace_s
        order = {"drain": grace_s + _DRAIN_SPARE_S}
        self._order(order, grace_s + 2 * _DRAIN_SPARE_S, "the local server did not finish its requests")

    def _order(self, order: dict[str, Any], timeout_s: float, failure: str) -> dict[str, Any]:
        try:
            answer = self._channel.ask(order, timeout_s)
        except (TimeoutError, ChildProcessError) as error:
            answer = {"failed": str(error) or type(error).__name__}
        if reason := answer.get("failed"):
            raise LocalServerError(f"{failure}: {reason}; its logs are in {self.directory}")
        return answer

    def _wait_for_start(self, began: float, timeout_s: float, launched: Callable[[LocalServer], object] | None) -> None:
        """Wait for the first deployment. Raises LocalServerError after everything has stopped."""
        timeout_s = began + timeout_s - time.monotonic()
        try:
            if launched is not None:
                launched(self)
            report = self._order(dataclasses.asdict(self._options), timeout_s, "the local server did not start")
        except BaseException as error:
            self.stop(keep_files=isinstance(error, LocalServerError))
            raise
        self.metrics = tuple(report["metrics"])
        self.startup_s = time.monotonic() - began
        logger.info("serving on %s behind %s after %.1f s", self.url, self.proxy, self.startup_s)

    def stop(self, *, keep_files: bool = False) -> None:
        """Stop all processes and remove the files. Requests in flight are lost. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(_STOP_TIMEOUT_S)  # the supervisor stops the cluster
        except subprocess.TimeoutExpired:
            logger.warning("the supervisor did not end in %.0f s and is killed", _STOP_TIMEOUT_S)
        finally:
            left = processes.end_all(self.token, process.pid)
            if left:
                logger.warning("%d processes of the local server could not be ended", left)
            process.wait()
        if not keep_files:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def start_local(
    served: Settings | Sequence[ServedApplication],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    proxy: ProxyChoice = "auto",
    worker_nodes: int = 0,
    dashboard: bool = False,
    startup_timeout_s: float = 300.0,
) -> LocalServer:
    """Start a local server and wait until it answers.

    Args:
        served: settings of one model, served at ``/``, or several applications.
        port: 0 takes a free port.
        proxy: "auto" is HAProxy if it is available, else Serve's own proxy.
        worker_nodes: Ray nodes beside the head, to test the loss of a node. Each has room for its
            share of the replicas; a node that dies is restarted.
        dashboard: start Ray's dashboard on loopback.

    Raises:
        SettingsError: other machines could reach the server, and authentication is not configured.
        BundleError, BaseModelError: a bundle is damaged or made for another model; nothing was
            started.
        LocalServerError: the server did not start; nothing is left running.
    """
    applications = check_applications(as_applications(served), host)
    count = 1 + worker_nodes
    return _start(
        Nodes(count, count, required_cpus(applications, worker_nodes)),
        applications,
        _Entrance(host, port, proxy),
        dashboard=dashboard,
        startup_timeout_s=startup_timeout_s,
    )


def start_nodes(
    nodes: Nodes,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    proxy: ProxyChoice = "auto",
    launched: Callable[[LocalServer], object] | None = None,
    startup_timeout_s: float = 300.0,
) -> LocalServer:
    """Start a local cluster that serves nothing yet, with Ray's dashboard.

    Applications are deployed through the dashboard, as on any Ray cluster
    (:mod:`cluster.deploy`).

    Args:
        launched: called with the server as soon as its supervisor runs.

    Raises:
        LocalServerError: the cluster did not start; nothing is left running.
    """
    entrance = _Entrance(host, port, proxy)
    return _start(nodes, (), entrance, dashboard=True, startup_timeout_s=startup_timeout_s, launched=launched)


@dataclasses.dataclass(frozen=True)
class _Entrance:
    """Where and through which proxy a cluster answers."""

    host: str
    port: int
    proxy: ProxyChoice


@dataclasses.dataclass(frozen=True)
class _Secrets:
    """Token of a cluster's processes, and token of its Ray ports."""

    marker: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    ray: str = dataclasses.field(default_factory=lambda: secrets.token_hex(32))


def _start(
    nodes: Nodes,
    applications: tuple[ServedApplication, ...],
    entrance: _Entrance,
    *,
    dashboard: bool,
    startup_timeout_s: float,
    launched: Callable[[LocalServer], object] | None = None,
) -> LocalServer:
    """Start a supervisor and wait until it has started the cluster. Raises LocalServerError."""
    began = time.monotonic()
    binary = haproxy_binary() if entrance.proxy != "serve" else None
    if entrance.proxy == "haproxy" and binary is None:
        raise LocalServerError("proxy must be auto or serve, as HAProxy is not installed, got haproxy")
    if entrance.port:
        _check_port(entrance.host, entrance.port)
    # Chosen first: if none is free, nothing has been made.
    port, gcs_port, dashboard_port = entrance.port or free_port(), free_port(), free_port() if dashboard else None
    directory = Path(tempfile.mkdtemp(prefix="del-", dir=_RUN_DIRECTORY))
    tokens = _Secrets()
    environment = _environment(tokens, directory)
    if binary is not None:
        environment |= haproxy_environment(directory / "h", binary)
    options = SupervisorOptions(
        applications=applications_to_json(applications, nodes.minimum - 1),
        host=entrance.host,
        port=port,
        nodes=dataclasses.asdict(nodes),
        gcs_port=gcs_port,
        dashboard_port=dashboard_port,
        directory=str(directory),
    )
    with (directory / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.local.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=directory,
            # Ctrl-C in a terminal reaches this process only, which then stops the others in order.
            start_new_session=True,
        )
    used: Proxy = "haproxy" if binary is not None else "serve"
    server = LocalServer(process, options, applications, secrets=tokens, proxy=used)
    server._wait_for_start(began, startup_timeout_s, launched)
    return server


@contextlib.contextmanager
def local_server(
    served: Settings | Sequence[ServedApplication],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    proxy: ProxyChoice = "auto",
    startup_timeout_s: float = 300.0,
) -> Iterator[str]:
    """Yield the URL of a local server, and stop it at the end, however the context ends.

    After SIGTERM, requests in flight are finished first; a second SIGTERM ends that.
    """
    with (
        terminated_as_exit(),
        start_local(served, host=host, port=port, proxy=proxy, startup_timeout_s=startup_timeout_s) as server,
    ):
        try:
            yield server.url
        except Terminated:
            with contextlib.suppress(LocalServerError):  # it has ended by itself, or a request does not end
                server.drain()
            raise


@contextlib.contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, so that contexts exit in order (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def applications_to_json(applications: Sequence[ServedApplication], worker_nodes: int) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "route_prefix": one.route_prefix, "settings": _settings_to_json(one.settings, worker_nodes)}
        for one in applications
    ]


def grace_period_s(applications: Sequence[ServedApplication]) -> float:
    """Return the longest time that requests in flight may take when the server stops."""
    return max(one.settings.scaling.graceful_shutdown_timeout_s for one in applications)


def required_cpus(applications: Sequence[ServedApplication], worker_nodes: int) -> int:
    """Return the CPUs of each node. Ray only counts them, so they may exceed the machine's cores.

    Without worker nodes this includes one more replica of each application for replacements.
    """
    scalings = [one.settings.scaling for one in applications]
    shares = sum(math.ceil(one.max_replicas / (1 + worker_nodes)) * one.num_cpus for one in scalings)
    spare = 0 if worker_nodes else max(1, math.ceil(sum(one.num_cpus for one in scalings)))
    return math.ceil(shares) + spare


def check_applications(applications: Sequence[ServedApplication], host: str) -> tuple[ServedApplication, ...]:
    """Return the applications, with what they name by URL on this machine.

    Raises SettingsError, StorageError, BundleError or BaseModelError for what would not start.
    """
    for one in applications:
        one.settings.check_access(loopback=is_loopback(host))
    applications = tuple(dataclasses.replace(one, settings=fetched(one.settings)) for one in applications)
    for one in applications:
        verify_checksum(one.settings.base_model_path, load_bundle(one.settings.bundle_path).manifest.base_model)
    return applications


def _settings_to_json(settings: Settings, worker_nodes: int) -> dict[str, Any]:
    values = absolute_paths(settings)  # the supervisor has a working directory of its own
    if worker_nodes:
        # Each node has room for its share only: an additional replica would never start.
        values["scaling"] = {**values.get("scaling", {}), "max_surge_percent": 0}
    return values


def _environment(tokens: _Secrets, directory: Path) -> dict[str, str]:
    """Return the environment of the supervisor and its descendants."""
    # Ray's variables in this environment belong to another cluster.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    temporary = directory / "t"
    temporary.mkdir()
    interval = os.environ.get("DEL_METRICS_INTERVAL_MS")
    return {
        **environment,
        processes.MARKER: tokens.marker,
        "PYTHONPATH": python_path(environment.get("PYTHONPATH")),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
        **local_environment(haproxy=False),
        "RAY_AUTH_TOKEN": tokens.ray,
        **({} if interval is None else {"RAY_metrics_report_interval_ms": interval}),
    }


def _check_port(host: str, port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            reason = f"port must be free on {host} ({error.strerror}), or 0 for any free port, got {port}"
            raise LocalServerError(reason) from None
