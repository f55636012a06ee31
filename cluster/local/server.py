"""A local server: Ray and Serve with the application on this machine, for ``delctl serve``, the demo and tests.

    with local_server(settings) as url:
        ...                                # requests to url; at the end everything is stopped

Several base models run side by side as applications under paths of their own (:mod:`deployments.settings`).

Everything runs under a supervisor process, which starts a Ray cluster of its own on loopback (token authentication on,
no dashboard, no usage reports), Serve and the application. The supervisor stops it all when its standard input closes,
which happens when the context is left and also when this process dies, however it dies. What is still alive after that
is killed by the cluster's own token (:mod:`cluster.local.processes`), so other Ray clusters on the machine are left
alone.
"""

from __future__ import annotations

import contextlib
import logging
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import psutil

from cluster.local import applications as _applications
from cluster.local import processes as _processes
from cluster.local.channel import Channel
from cluster.local.proxy import Proxy, haproxy_binary, haproxy_environment
from del_core.errors import DelError
from deployments.api.ingress import CALLBACK
from deployments.settings import ServedApplication, Settings, as_applications

__all__ = [
    "LocalServer",
    "LocalServerError",
    "Terminated",
    "free_port",
    "local_server",
    "start_local",
    "terminated_as_exit",
]

logger = logging.getLogger("cluster.local")

LOOPBACK = "127.0.0.1"
_STOP_TIMEOUT_S = 30.0
# What draining takes beside the completions that it waits for.
_DRAIN_SPARE_S = 15.0
# Unix socket paths end at 107 characters, and Ray's are long: the directory has to have a short name.
_RUN_DIRECTORY = "/tmp" if os.path.isdir("/tmp") else None


class LocalServerError(DelError):
    """The local server did not start; the message says why and where its logs are."""


class Terminated(SystemExit):
    """SIGTERM has come, where :func:`terminated_as_exit` is entered."""


@dataclass(frozen=True)
class _Options:
    """What the supervisor is told, as JSON on its first line of input."""

    applications: list[dict[str, Any]]
    host: str
    port: int
    num_cpus: int
    worker_nodes: int
    dashboard_port: int | None
    directory: str


class LocalServer:
    """A running local server. Use it as a context manager, or call :meth:`stop`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: Channel,
        token: str,
        options: _Options,
        applications: tuple[ServedApplication, ...],
        url: str,
        proxy: Proxy,
        startup_s: float,
        metrics: tuple[str, ...] = (),
    ) -> None:
        self._process = process
        self._channel = channel
        self._token = token
        self._options = options
        self._stopped = False
        self.directory = Path(options.directory)
        """Where the cluster keeps its files; removed when it stops."""
        self.url = url
        """Base URL, without a slash at the end; of several applications each adds its ``path`` to it."""
        self.applications = applications
        """What is served."""
        self.proxy = proxy
        """Which HTTP proxy is in front."""
        self.startup_s = startup_s
        """Seconds from the call to the first answer."""
        self.metrics = metrics
        """host:port of each node's Prometheus metrics, at /metrics."""
        port = options.dashboard_port
        self.dashboard_url = None if port is None else f"http://{LOOPBACK}:{port}"
        """Ray's dashboard, which asks for the cluster's token; None where it is off."""

    def worker_nodes(self) -> list[psutil.Process]:
        """The living processes under which Ray nodes beside the head run; everything of a node is its descendant."""
        return [process for process in self.processes() if _processes.is_worker_node(process)]

    def processes(self) -> list[psutil.Process]:
        """The living processes of this server, its supervisor included."""
        return list(_processes.members(self._token, self._process.pid))

    @property
    def running(self) -> bool:
        """Whether the supervisor lives."""
        return self._process.poll() is None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has ended by itself; false if the time was up first."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return not self.running

    def deploy(self, served: Settings | Sequence[ServedApplication], *, timeout_s: float = 300.0) -> None:
        """Go over to other settings, such as a new bundle, while requests are served; returns when all replicas have.

        Replicas are replaced one after the other: the new one answers before an old one is taken away, and the old one
        finishes its requests first, for up to ``scaling.graceful_shutdown_timeout_s``. Address and proxy stay. If the
        new settings do not start, the replicas that there are go on. Of several applications, those whose settings are
        as before are left alone (unless all are: then all are replaced); new names are started and names that are no
        longer there are taken away.

        Raises:
            SettingsError, BundleError, BaseModelError: as :func:`start_local`; nothing has changed.
            LocalServerError: it did not start, or asks for more replicas than the cluster was started for.
        """
        applications = as_applications(served)
        _applications.check(applications, self._options.host)
        if _applications.num_cpus(applications, self._options.worker_nodes) > self._options.num_cpus:
            asked = "; ".join(
                f"{field}: is {one.settings.scaling.max_replicas} with {one.settings.scaling.num_cpus} CPUs each"
                for one in applications
                for field in [f"{one.name}: scaling.max_replicas" if len(applications) > 1 else "scaling.max_replicas"]
            )
            raise LocalServerError(
                f"{asked}, more than this cluster was started for ({self._options.num_cpus} CPUs, some to spare)"
            )
        values = _applications.to_json(applications, self._options.worker_nodes)
        self._order({"deploy": values}, timeout_s, "the local server did not go over to the new settings")
        self.applications = applications

    def drain(self) -> None:
        """Take no more requests and wait for those under way, up to ``scaling.graceful_shutdown_timeout_s``.

        What comes afterwards is refused. The server has still to be stopped. Raises LocalServerError.
        """
        grace_s = _applications.grace_s(self.applications)
        order = {"drain": grace_s + _DRAIN_SPARE_S}
        self._order(order, grace_s + 2 * _DRAIN_SPARE_S, "the local server did not finish its requests")

    def _order(self, order: dict[str, Any], timeout_s: float, failure: str) -> None:
        try:
            answer = self._channel.ask(order, timeout_s)
        except (TimeoutError, ChildProcessError) as error:
            raise LocalServerError(f"{failure}: {error}; its logs are in {self.directory}") from None
        if answer.get("failed"):
            raise LocalServerError(f"{failure}: {answer['failed']}; its logs are in {self.directory}")

    def stop(self, *, keep_files: bool = False) -> None:
        """Stop every process of the server and remove its files. Requests under way are lost. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        _stop(self._process, self._token)
        if not keep_files:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_local(
    served: Settings | Sequence[ServedApplication],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    proxy: Literal["auto", "haproxy", "serve"] = "auto",
    worker_nodes: int = 0,
    dashboard: bool = False,
    startup_timeout_s: float = 300.0,
) -> LocalServer:
    """Start a local server and wait until it answers.

    ``served`` are the settings of one model, which is then at ``/``, or several applications. ``port`` 0 takes a free
    one. ``proxy`` "auto" is HAProxy where it can run, else Serve's own. ``worker_nodes`` is for trying out what the
    loss of a node does: so many Ray nodes are started on this machine beside the head, each with room for its share of
    the replicas, and one that dies is started again. ``dashboard`` starts Ray's dashboard too, on loopback.

    Raises:
        SettingsError: other machines could reach it, and the settings do not say who may call.
        BundleError, BaseModelError: the bundle is damaged, or made for another model; nothing was started.
        LocalServerError: it did not start; nothing is left running.
    """
    began = time.monotonic()
    applications = as_applications(served)
    _applications.check(applications, host)
    binary = haproxy_binary() if proxy != "serve" else None
    if proxy == "haproxy" and binary is None:
        raise LocalServerError("proxy: is haproxy, which is not installed here; auto or serve are allowed")
    if port:
        _check_port(host, port)
    else:
        port = free_port()
    token = secrets.token_hex(16)
    directory = Path(tempfile.mkdtemp(prefix="del-", dir=_RUN_DIRECTORY))
    environment = _environment(token, directory)
    if binary is not None:
        environment |= haproxy_environment(directory / "h", binary)
    options = _Options(
        applications=_applications.to_json(applications, worker_nodes),
        host=host,
        port=port,
        num_cpus=_applications.num_cpus(applications, worker_nodes),
        worker_nodes=worker_nodes,
        dashboard_port=free_port() if dashboard else None,
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
            # Ctrl-C in a terminal reaches this process alone, which then stops the others in order.
            start_new_session=True,
        )
    channel = Channel(process)
    try:
        report = channel.ask(options.__dict__, began + startup_timeout_s - time.monotonic())
    except BaseException as error:
        _stop(process, token)
        if isinstance(error, Exception):
            raise LocalServerError(f"the local server did not start ({error}); its logs are in {directory}") from None
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if report.get("failed"):
        _stop(process, token)
        raise LocalServerError(f"the local server did not start: {report['failed']}; its logs are in {directory}")
    used: Proxy = "haproxy" if binary is not None else "serve"
    url = f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"
    startup_s = time.monotonic() - began
    logger.info("serving on %s behind %s after %.1f s", url, used, startup_s)
    return LocalServer(process, channel, token, options, applications, url, used, startup_s, tuple(report["metrics"]))


@contextlib.contextmanager
def local_server(
    served: Settings | Sequence[ServedApplication],
    *,
    host: str = LOOPBACK,
    port: int = 0,
    proxy: Literal["auto", "haproxy", "serve"] = "auto",
    startup_timeout_s: float = 300.0,
) -> Iterator[str]:
    """The URL of a local server that is stopped at the end, also by an exception, SIGINT or SIGTERM.

    After SIGTERM, requests under way are finished first; a second one ends that.
    """
    with (
        terminated_as_exit(),
        start_local(served, host=host, port=port, proxy=proxy, startup_timeout_s=startup_timeout_s) as server,
    ):
        try:
            yield server.url
        except Terminated:
            with contextlib.suppress(LocalServerError):  # it has ended by itself, or a request never does
                server.drain()
            raise


@contextlib.contextmanager
def terminated_as_exit() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` inside, so that contexts are left in order (main thread only)."""
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


def _environment(token: str, directory: Path) -> dict[str, str]:
    """The environment of the supervisor and everything under it."""
    # Another cluster's address or settings in this environment are not meant for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    packages = str(Path(__file__).resolve().parents[2])
    paths = [packages, *filter(None, [environment.get("PYTHONPATH")])]
    temporary = directory / "t"
    temporary.mkdir()
    return {
        **environment,
        _processes.MARKER: token,
        "PYTHONPATH": os.pathsep.join(paths),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
        # Ray's control ports listen on every interface whatever the node's address is: they ask for a token.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # The node's address is loopback (Ray does this by itself on macOS and Windows only).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray gives its workers the priority of work that can wait (15): here somebody waits for an answer.
        "RAY_worker_niceness": "0",
        # How often Ray's processes pass their metrics on to where Prometheus reads them.
        "RAY_metrics_report_interval_ms": os.environ.get("DEL_METRICS_INTERVAL_MS", "5000"),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
        # The application is asynchronous throughout: no thread between it and the socket.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Serve's controller looks after a few replicas at most here; ten times a second costs 3 % of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # A dead proxy is replaced after three failed checks: in two seconds, not in half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    }


def _check_port(host: str, port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise LocalServerError(
                f"port: {host}:{port} cannot be had ({error.strerror}); 0 takes a free one"
            ) from None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        port: int = one.getsockname()[1]
    return port


def _stop(process: subprocess.Popen[bytes], token: str) -> None:
    """Let the supervisor stop the cluster, then end whatever is left of it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        logger.warning("the local server's supervisor did not end in %.0f s and is killed", _STOP_TIMEOUT_S)
    finally:
        left = _processes.end_all(token, process.pid)
        if left:
            logger.warning("%d processes of the local server could not be ended", left)
        process.wait()
