"""A TCP relay that breaks connections at chosen bytes, can be killed and revived."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

__all__ = ["Relay"]

# Closing sends a reset, as the kernel does for a killed process with unread data.
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes bytes on to a server of this machine.

    The share ``cutting`` of the connections breaks after a random number of bytes in one direction,
    which may lie in the head of the request or of the answer. A connection on which nothing passes
    for ``idle_s`` seconds breaks, as load balancers do it.
    """

    def __init__(self, port: int, chooser: random.Random, *, idle_s: float | None = None) -> None:
        self.cutting = 0.0
        self.cuts = self.kills = 0
        self._target = ("127.0.0.1", port)
        self._chooser = chooser
        self._idle_s = idle_s
        self.idle = 0
        """Connections broken for being idle."""
        self._passed: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._is_up, self._stopped = threading.Event(), False
        self._listener = _listener()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Relay]:
        """Relay for the length of a with block."""
        self._is_up.set()
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            self._stopped = True
            self.kill()
            self._is_up.set()
            accepting.join(10)
            self._listener.close()
            for thread in self._threads:
                thread.join(10)
            assert not any(thread.is_alive() for thread in [accepting, *self._threads]), "the relay did not stop"

    def kill(self) -> None:
        """Reset all connections and refuse new ones, like a killed server; keep the port."""
        self.kills += 1
        self._is_up.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            _break(*pair)

    def revive(self) -> None:
        """Accept connections again."""
        self._listener.listen(128)
        self._is_up.set()

    def _accept(self) -> None:
        while not self._stopped:
            self._is_up.wait()
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self._target, 10)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.add((near, far))
                self._passed[near] = time.monotonic()
                limits: list[int | None] = [None, None]
                if self._chooser.random() < self.cutting:
                    # Somewhere in the first request or answer, or in a later one.
                    at = self._chooser.choice([0, 1, 200, 2000]) + self._chooser.randrange(600)
                    limits[self._chooser.randrange(2)] = at
            both = [(near, far, limits[0]), (far, near, limits[1])]
            for source, sink, limit in both:
                thread = threading.Thread(target=self._pump, args=(source, sink, limit, (near, far)), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, limit: int | None, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        near = pair[0]
        with contextlib.suppress(OSError):
            while piece := self._receive(source, near):
                if limit is not None and len(piece) >= limit:
                    sink.sendall(piece[:limit])
                    self.cuts += 1
                    break
                limit = None if limit is None else limit - len(piece)
                sink.sendall(piece)
        _break(*pair)
        with self._lock:
            self._pairs.discard(pair)
            self._passed.pop(near, None)

    def _receive(self, source: socket.socket, near: socket.socket) -> bytes:
        """Return the next bytes, or nothing at the end or when the connection is idle."""
        source.settimeout(None if self._idle_s is None else self._idle_s / 4)
        while True:
            try:
                piece = source.recv(1 << 16)
            except TimeoutError:
                assert self._idle_s is not None
                if time.monotonic() - self._passed.get(near, 0.0) < self._idle_s:
                    continue
                self.idle += 1
                return b""
            self._passed[near] = time.monotonic()
            return piece


def _break(*connections: socket.socket) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _listener() -> socket.socket:
    """Listen on a free port that the socket keeps while it does not listen.

    Only a port that was asked for by number is kept.
    """
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = probe.getsockname()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:  # another process took it
            listener.close()
            continue
        listener.listen(128)
        return listener
    raise AssertionError("no free port")
