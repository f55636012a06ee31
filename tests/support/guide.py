"""Runs the commands of a guide."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "Shell", "blocks"]

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```sh(?P<server> server)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands; the block of a server runs until the end."""

    text: str
    is_server: bool


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that are marked ``sh``, in order."""
    return [Block(match["text"].strip(), bool(match["server"])) for match in _FENCE.finditer(page.read_text("utf-8"))]


class Shell:
    """Runs blocks in a directory that looks like a clone, with other ports than the page has."""

    def __init__(self, directory: Path, environment: dict[str, str], *, command_timeout_s: float = 120.0) -> None:
        self._command_timeout_s = command_timeout_s
        self._directory = directory
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._ports: dict[str, str] = {}
        directory.mkdir()
        for name in ("cluster", "examples"):
            (directory / name).symlink_to(ROOT / name)
        (directory / ".venv" / "bin").mkdir(parents=True)
        for name in ("python", "delctl", "uvicorn"):
            program = Path(sys.executable).parent / name
            (directory / ".venv" / "bin" / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
            (directory / ".venv" / "bin" / name).chmod(0o755)

    def moved(self, text: str) -> str:
        """Replace every port by a free one, the same port always by the same one."""
        return re.sub(r"(?<=127\.0\.0\.1:)\d{4}|(?<=--port )\d{4}", lambda match: self._port(match[0]), text)

    def use(self, port: str, real: str) -> None:
        """Set the port that replaces a port of the page."""
        self._ports[port] = real

    def _port(self, port: str) -> str:
        if port not in self._ports:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                self._ports[port] = str(taken.getsockname()[1])
        return self._ports[port]

    def run(self, block: Block) -> str:
        """Run a block and return its output; fail with the output if a command fails."""
        done = subprocess.run(
            ["sh", "-e", "-c", self.moved(block.text)],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=self._command_timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def serving(self, block: Block, ready: str, within_s: float = 180.0) -> Iterator[None]:
        """Run a server until it is stopped by SIGTERM.

        It is up when it answers at ``ready`` (port of the page, path), or accepts connections (port
        alone).
        """
        process = subprocess.Popen(
            ["sh", "-c", "exec env " + self.moved(block.text)],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            place = self.moved(f"127.0.0.1:{ready}")
            end = time.monotonic() + within_s
            while not _answers(place):
                assert process.poll() is None, f"{block.text}\n{process.stdout and process.stdout.read()}"
                assert time.monotonic() < end, f"{block.text}: not ready after {within_s} s"
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()


def _answers(place: str) -> bool:
    address, slash, _ = place.partition("/")
    if not slash:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", int(address.partition(":")[2]))) == 0
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{place}", timeout=2) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False
