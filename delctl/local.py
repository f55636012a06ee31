"""A local server for the duration of a command, with progress on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from delctl.terminal import console

if TYPE_CHECKING:
    from cluster.local import LocalServer
    from deployments.settings import ServedApplication, Settings

PROXY_WORDS = {"haproxy": "HAProxy", "serve": "Ray Serve's own proxy"}


@contextlib.contextmanager
def running_server(
    served: Settings | Sequence[ServedApplication],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    proxy: Literal["auto", "haproxy", "serve"] = "auto",
) -> Iterator[LocalServer]:
    """Run a server until the context is left, also by Ctrl-C and SIGTERM.

    SIGTERM first finishes running completions; a second one, or Ctrl-C, ends that. Port 0 takes a
    free port. Raises as :func:`cluster.local.start_local`.
    """
    from cluster.local import LocalServerError, Terminated, start_local, terminated_as_exit

    messages = console(stderr=True)
    with terminated_as_exit():
        with messages.status("starting Ray and vLLM, about half a minute"):
            if not messages.is_terminal:
                messages.print("starting Ray and vLLM, about half a minute")
            server = start_local(served, host=host, port=port, proxy=proxy)
        try:
            yield server
        except Terminated:
            with messages.status("finishing running completions"):
                try:
                    server.drain()
                except LocalServerError as error:
                    messages.print(str(error), markup=False, highlight=False)
            raise
        finally:
            with messages.status("stopping"):
                server.stop()
