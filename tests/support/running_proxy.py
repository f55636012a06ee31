"""A proxy in a thread of its own, on a free port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

from client_lib import AsyncClient
from client_lib.proxy import ProxySettings, create_app
from client_lib.proxy.server import bind, configure, url_of

__all__ = ["RunningProxy"]


class RunningProxy:
    """The application under uvicorn; ``url`` does not include ``/v1``."""

    def __init__(self, server_url: str, settings: ProxySettings, **client_options: Any) -> None:
        self._socket = bind("127.0.0.1", 0)
        self.url = url_of(self._socket)
        self._server_url = server_url
        self._settings = settings
        self._client_options = client_options
        self._server: uvicorn.Server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        async with AsyncClient(self._server_url, **self._client_options) as client:
            app = create_app(client, self._settings)
            self._server = uvicorn.Server(configure(app))
            self._ready.set()
            await self._server.serve(sockets=[self._socket])

    @contextlib.contextmanager
    def running(self) -> Iterator[RunningProxy]:
        """Serve for the length of a with block."""
        self._thread.start()
        assert self._ready.wait(10), "the proxy did not start"
        try:
            yield self
        finally:
            self._server.should_exit = True
            self._thread.join(10)
            assert not self._thread.is_alive(), "the proxy did not stop"
            self._socket.close()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Send a JSON body and return the answer."""
        return httpx.post(self.url + path, json=body, timeout=30, trust_env=False, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET and return the answer."""
        return httpx.get(self.url + path, timeout=30, trust_env=False, **options)
