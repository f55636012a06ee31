"""A Redis server for tests: a process with a Unix socket in a directory of its own, and no port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

__all__ = ["RedisServer"]

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """A ``redis-server`` process; by default with the settings that a ledger needs."""

    def __init__(self, directory: Path, options: tuple[str, ...]) -> None:
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, *options: str) -> Iterator[RedisServer]:
        """Run a server for the length of a with block; ``options`` replace the durable ones."""
        # The path of a socket has at most 107 bytes; pytest's directories are deeper.
        with tempfile.TemporaryDirectory(prefix="redis-") as directory:
            server = cls(Path(directory), options or DURABLE)
            server.start()
            try:
                yield server
            finally:
                server.stop(signal.SIGKILL)

    @property
    def url(self) -> str:
        """The URL of the socket."""
        return f"unix://{self._directory}/socket"

    def start(self) -> None:
        """Start the process on the data that it has kept."""
        program = shutil.which("redis-server") or shutil.which("redis-server", path=str(Path(sys.executable).parent))
        if program is None:
            pytest.fail(
                "no redis-server found; make dev unpacks Debian's package, elsewhere install it: the tests of the "
                "ledger's store in Redis need it"
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
        """Continue after :meth:`freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
