"""Simulated machines: Linux namespaces whose links lead to one switch.

The switch is a bridge in the namespace of this process, which therefore is a machine of the network
itself: the one of the clients.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CLIENTS", "Host", "Network", "NetworkError", "namespaces"]

CLIENTS = "10.77.0.1"
"""Address of the switch's own namespace."""

_PREFIX = "10.77.0"
_BRIDGE = "switch"
_NOBODY = "02:00:00:00:00:01"  # a hardware address that no link has


class NetworkError(RuntimeError):
    """The simulated network could not be made; the message has the reason."""


def namespaces() -> list[str]:
    """Return the command that runs another one in namespaces of its own.

    The end of the command ends every process inside.
    """
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *mapped, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


@dataclass
class Host:
    """A machine with one link, which runs one command.

    Args:
        number: 2 to 254, the last part of its address.
        directory: its files; ``tmp`` inside is its ``/tmp``.
    """

    number: int
    directory: Path
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{_PREFIX}.{self.number}"

    @property
    def link(self) -> str:
        """Name of the link's end at the switch."""
        return f"port{self.number}"

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs another one in the network of this machine."""
        if self.process is None:
            raise NetworkError(f"host {self.address} must be on")
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--", *command]


class Network:
    """A switch with machines. Use it as a context manager, in namespaces of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.hosts: dict[int, Host] = {}

    def __enter__(self) -> Network:
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{CLIENTS}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            self.power_off(host)
        _run("ip", "link", "delete", _BRIDGE)

    def power_on(
        self, number: int, command: Sequence[str], environment: Mapping[str, str], files: Mapping[str, str]
    ) -> Host:
        """Start a machine that runs a command whenever that is not running.

        ``files`` are those in its ``/tmp``: name -> text.
        """
        directory = self._directory / f"host{number}"
        tmp = directory / "tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        for name, text in files.items():
            (tmp / name).write_text(text, "utf-8")
        host = self.hosts[number] = Host(number, directory)
        with (directory / "output.log").open("ab") as log:
            host.process = subprocess.Popen(
                [*namespaces(), sys.executable, "-m", "benchmarks.network.host", str(tmp), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=dict(environment),
            )
        assert host.process.stdin is not None
        assert host.process.stdout is not None
        if host.process.stdout.readline() != "up\n":
            raise NetworkError(f"a host did not start: {(directory / 'output.log').read_text('utf-8')[-500:]}")
        _run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", str(host.process.pid))
        self.reconnect(host)
        _run("ip", "link", "set", host.link, "up")
        for configuration in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            # Leads nowhere; programs ask the route for the machine's own address.
            ("route", "add", "default", "via", CLIENTS),
        ):
            _run(*host.inside("ip", *configuration))
        host.process.stdin.write("network\n")
        host.process.stdin.flush()
        return host

    def power_off(self, host: Host) -> None:
        """End a machine at once; nothing that it would send by ending arrives anywhere."""
        if host.process is None:
            return
        with contextlib.suppress(NetworkError):  # the machine has ended, and its link with it
            _run("ip", "link", "delete", host.link)
        host.process.kill()
        host.process.wait()
        for pipe in (host.process.stdin, host.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        host.process = None

    def cut(self, host: Host) -> None:
        """Take a machine's link out of the switch: packets vanish, nobody is told."""
        _run("ip", "link", "set", host.link, "nomaster")

    def reconnect(self, host: Host) -> None:
        """Put a link back into the switch."""
        _run("ip", "link", "set", host.link, "master", _BRIDGE)

    def isolate(self, host: Host, others: Iterable[Host]) -> None:
        """Let packets from a machine to others vanish; the clients still reach it."""
        for other in others:
            entry = ("neighbour", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
            _run(*host.inside("ip", *entry))

    def join(self, host: Host, others: Iterable[Host]) -> None:
        """End an isolation."""
        for other in others:
            _run(*host.inside("ip", "neighbour", "delete", other.address, "dev", "eth0"))

    def narrow(self, host: Host, kbit_per_s: int, queue_ms: int) -> None:
        """Limit a link in both directions; what waits longer than ``queue_ms`` is dropped."""
        shape = ("root", "tbf", "rate", f"{kbit_per_s}kbit", "burst", "8kb", "latency", f"{queue_ms}ms")
        _run("tc", "qdisc", "replace", "dev", host.link, *shape)
        _run(*host.inside("tc", "qdisc", "replace", "dev", "eth0", *shape))

    def widen(self, host: Host) -> None:
        """End a limit."""
        _run("tc", "qdisc", "delete", "dev", host.link, "root")
        _run(*host.inside("tc", "qdisc", "delete", "dev", "eth0", "root"))
