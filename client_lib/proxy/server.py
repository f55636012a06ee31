"""Runs the proxy: a socket, uvicorn on it, and an orderly end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from client_lib._validation import invalid

__all__ = ["bind", "configure", "serve", "url_of"]


def bind(host: str, port: int) -> socket.socket:
    """An address to listen on; port 0 takes a free one. Raises ``InvalidRequest`` that names host or port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise invalid("host", f"{host!r} ({error.strerror})", "an address of this machine") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # From now on callers wait instead of being refused, so the address may be announced.
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise invalid("port", f"{port} at {host} ({error.strerror})", "one that is free; 0 takes any") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def configure(app: Starlette, grace_s: float = 30.0) -> uvicorn.Config:
    """uvicorn's configuration; its own log lines, which hold the query, are switched off."""
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
    """Serve until SIGTERM or SIGINT: no new connections then, and ``grace_s`` seconds for the answers under way.

    Run it in the main thread. The socket is closed at the end.
    """
    server = uvicorn.Server(configure(app, grace_s))
    with _signals_end_here():
        await server.serve(sockets=[bound])


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it has stopped; here that has no further effect."""

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, nothing) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
