"""Connections of the fuzzed client to answers: through httpcore's parser in memory, or sockets."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import httpcore
import httpx

__all__ = ["PATIENCE_S", "Answer", "AsyncMemoryTransport", "MemoryTransport", "SocketServer"]

PATIENCE_S = 23.0
"""The longest that a connection is held."""

Answer: TypeAlias = Callable[[bytes], Iterator[bytes]]
"""Returns the pieces of an answer to the bytes of a request, which only a sealed one needs."""

_RESET = struct.pack("ii", 1, 0)

# --- in memory ----------------------------------------------------------------------------


class _Pieces(httpcore.NetworkStream):
    """A connection that delivers the pieces of an answer, and then ends, hangs or breaks."""

    def __init__(self, pieces: Iterator[bytes], chooser: random.Random) -> None:
        self._pieces = pieces
        self._rest = b""
        self._end = chooser.choice((b"", b"", b"", httpcore.ReadError, httpcore.ReadTimeout))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._rest or next((piece for piece in self._pieces if piece), b"")
        if not data and not isinstance(self._end, bytes):
            raise self._end
        self._rest = data[max_bytes:]
        return data[:max_bytes]

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class _Memory(httpcore.NetworkBackend):
    """Connections to a server in memory; each gets the next answer."""

    def __init__(self, answers: Iterator[Answer], chooser: random.Random) -> None:
        self._answers, self._chooser = answers, chooser

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        return _Pieces(next(self._answers)(b""), self._chooser)


class MemoryTransport(httpx.BaseTransport):
    """httpcore's pool over :class:`_Memory`; ``answers`` is set before each call."""

    def __init__(self) -> None:
        self.answers: Iterator[Answer] = iter(())
        self.chooser = random.Random()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool = httpcore.ConnectionPool(network_backend=_Memory(self.answers, self.chooser))
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        response = pool.handle_request(
            httpcore.Request(request.method, url, headers=request.headers.raw, content=request.stream)
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response.stream)  # type: ignore[arg-type]

    def close(self) -> None:
        self._response.close()


class AsyncMemoryTransport(httpx.AsyncBaseTransport):
    """The same for the asynchronous client: the pool's bytes come from memory, so nothing waits."""

    def __init__(self, inner: MemoryTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        return httpx.Response(response.status_code, headers=response.headers, stream=_AsyncBody(response))


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for piece in self._response.stream:  # type: ignore[union-attr]
            yield piece
            await asyncio.sleep(0)  # where a real connection waits, and where a limit takes effect

    async def aclose(self) -> None:
        self._response.close()


# --- over sockets -------------------------------------------------------------------------


class SocketServer:
    """A server on loopback; every connection gets the next answer, whatever was asked."""

    def __init__(self) -> None:
        self.answers: Iterator[Answer] = iter(())
        self.chooser = random.Random()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @contextmanager
    def running(self) -> Iterator[SocketServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                answer = next(self.answers, _nothing)
                how = self.chooser.choice(("whole",) * 12 + ("drip", "hang", "reset", "close first"))
            threading.Thread(target=_deliver, args=(connection, answer, how), daemon=True).start()


def _nothing(_: bytes) -> Iterator[bytes]:
    return iter(())


def _request(connection: socket.socket) -> bytes:
    """Return a whole request. Raises OSError if it does not come."""
    data, size = b"", 0
    while not data or len(data) < size:
        if not (piece := connection.recv(1 << 16)):
            raise ConnectionError
        data += piece
        head, end, _ = data.partition(b"\r\n\r\n")
        found = re.search(rb"\ncontent-length: *(\d+)", head, re.I)
        size = len(head) + len(end) + (int(found[1]) if found else 0) if end else len(data) + 1
    return data


def _deliver(connection: socket.socket, answer: Answer, how: str) -> None:
    with connection, suppress(OSError, StopIteration):
        connection.settimeout(PATIENCE_S)
        if how == "close first":
            return
        pieces = answer(_request(connection))
        if how == "drip":
            first = next(pieces) + next(pieces, b"")
            for byte in first[:2000]:
                connection.sendall(bytes((byte,)))
                time.sleep(0.003)
        for piece in pieces:
            connection.sendall(piece)
        if how == "hang":
            while connection.recv(1 << 16):
                pass
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
