"""A real Redis server for tests: a process of its own on a socket in a directory of its own, no port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

__all__ = ["RedisServer"]

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """``redis-server`` with the settings that a ledger needs, or with others."""

    def __init__(self, directory: Path, options: tuple[str, ...]) -> None:
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, *options: str) -> Iterator[RedisServer]:
        """A server for the length of a with block. ``options`` replace those that make it durable."""
        # A socket's path may have 107 bytes only, so pytest's directories are too deep.
        with tempfile.TemporaryDirectory(prefix="redis-") as directory:
            server = cls(Path(directory), options or DURABLE)
            server.start()
            try:
                yield server
            finally:
                server.stop(signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"unix://{self._directory}/socket"

    def start(self) -> None:
        """Start it, on what it has kept."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail(
                "no redis-server found, with which the ledger's store in Redis is tested; on Debian and Ubuntu: "
                "apt-get install redis-server (.ci/run does it where it may)"
            )
        command = [program, "--port", "0", "--unixsocket", "socket", "--save", "", *self._options]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        client = redis.Redis.from_url(self.url)
        end = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > end:
                    pytest.fail((self._directory / "log").read_text())
                time.sleep(0.01)
        client.close()

    def stop(self, how: signal.Signals) -> None:
        """End the process by a signal and wait for it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def freeze(self) -> None:
        """Stop answering, until :meth:`thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
