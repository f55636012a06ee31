"""Lines about the progress of a long run."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

__all__ = ["timed_lines"]


def timed_lines() -> Callable[[str], None]:
    """Return what prints a line on standard error, behind the seconds since this call."""
    began = time.monotonic()
    return lambda line: click.echo(f"[{time.monotonic() - began:6.0f} s] {line}", err=True)
