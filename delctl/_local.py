"""A local server for the length of a command, with words about its start and its end on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Literal

from delctl._terminal import console

if TYPE_CHECKING:
    from cluster.local import LocalServer
    from deployments.settings import Settings

__all__ = ["PROXY_WORDS", "running_server"]

PROXY_WORDS = {"haproxy": "HAProxy", "serve": "Ray Serve's own proxy"}


@contextlib.contextmanager
def running_server(
    settings: Settings, *, host: str = "127.0.0.1", port: int = 0, proxy: Literal["auto", "haproxy", "serve"] = "auto"
) -> Iterator[LocalServer]:
    """A server that is up, stopped again when the context is left, also by Ctrl-C and SIGTERM.

    Port 0 takes a free one. Raises what :func:`cluster.local.start_local` raises.
    """
    from cluster.local import start_local

    messages = console(stderr=True)
    with _sigterm_leaves():
        with messages.status("starting Ray and vLLM, about half a minute"):
            if not messages.is_terminal:
                messages.print("starting Ray and vLLM, about half a minute")
            server = start_local(settings, host=host, port=port, proxy=proxy)
        try:
            yield server
        finally:
            with messages.status("stopping"):
                server.stop()


@contextlib.contextmanager
def _sigterm_leaves() -> Iterator[None]:
    """SIGTERM raises SystemExit inside, so that the server is stopped before the process ends (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
