"""An ASGI application in a thread of its own, on a free port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from client_lib.proxy.server import bind, configure

__all__ = ["running"]


@contextlib.contextmanager
def running(app: Any) -> Iterator[int]:
    """Serve an application in a thread; yield its port."""
    bound: socket.socket = bind("127.0.0.1", 0)
    config = configure(app)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()
