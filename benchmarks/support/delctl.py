"""A command of ``delctl`` that serves, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO

import click

__all__ = ["started"]


@contextlib.contextmanager
def started(
    arguments: list[str], within_s: float, environment: Mapping[str, str] | None = None, log: IO[str] | None = None
) -> Iterator[str]:
    """Run a command that prints its URL first; yield the URL and terminate the command.

    ``environment`` is added to this process's. ``log`` gets what the command reports of requests;
    by default the terminal does.
    """
    command = [sys.executable, "-m", "delctl.main", *arguments]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables) as process:
        assert process.stdout is not None
        try:
            url, end = "", time.monotonic() + within_s
            while not url.startswith("http"):
                line = process.stdout.readline()
                if not line or time.monotonic() > end:
                    raise click.ClickException(f"delctl {arguments[0]} did not start")
                url = line.strip()
            yield url
        finally:
            process.terminate()
            process.wait(60)
