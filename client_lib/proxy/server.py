"""The proxy as a process: a listening socket, uvicorn, and graceful shutdown."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from client_lib._validation import invalid


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one. Raises ``InvalidRequestError``."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise invalid("host", "an address of this machine", f"{host!r} ({error.strerror})") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Callers wait from now on instead of being refused, so the address may be announced.
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise invalid("port", "free (0 takes any free one)", f"{port} at {host} ({error.strerror})") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def configure(app: Starlette, grace_s: float = 30.0) -> uvicorn.Config:
    """Return uvicorn's configuration, without its log lines, which contain the query."""
    return uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )


async def serve(app: Starlette, bound: socket.socket, *, grace_s: float = 30.0) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests for up to ``grace_s`` seconds.

    Must run in the main thread. Closes the socket at the end.
    """
    server = uvicorn.Server(configure(app, grace_s))
    with _signals_end_here():
        await server.serve(sockets=[bound])


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """Ignore the signal that uvicorn raises again after it has stopped."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
