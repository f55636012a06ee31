"""Request bodies, read within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request as HTTPRequest

from del_core.errors import FRAME_TOO_LARGE, TRUNCATED_FRAME, FrameError
from del_core.net.asgi import DisconnectedError
from deployments.sections import HTTPSettings
from deployments.service.service import OverloadedError

SMALL_BODY_BYTES = 64 * 1024
"""Bytes of each body that the budget does not count: large bodies never keep small ones away."""


class Bodies:
    """Reads the bodies of a replica's requests, which share a budget of memory.

    The budget counts bytes that have arrived, not declared ones: a header alone takes nothing from
    others. It holds at least one body of the largest size.
    """

    def __init__(self, settings: HTTPSettings, max_frame_bytes: int) -> None:
        self._timeout_s = settings.body_timeout_s
        self._limit = max_frame_bytes
        self.budget = max(settings.body_memory_bytes, max_frame_bytes)
        self.held = 0
        """Bytes of the budget in use."""

    @contextlib.asynccontextmanager
    async def body(self, http: HTTPRequest) -> AsyncIterator[bytes]:
        """Read a body, which the budget counts until the context is left.

        Raises FrameError, OverloadedError, DisconnectedError.
        """
        held = _Held(self)
        try:
            yield await self._read(http, held)
        finally:
            self.held -= held.bytes

    async def _read(self, http: HTTPRequest, held: _Held) -> bytes:
        declared = http.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
        body = bytearray()
        more = size <= self._limit
        if more:
            held.check(size)
        try:
            async with asyncio.timeout(self._timeout_s):
                while more:
                    message = await http.receive()
                    if message["type"] == "http.disconnect":
                        raise DisconnectedError
                    body += message.get("body", b"")
                    size = max(size, len(body))
                    more = size <= self._limit and message.get("more_body", False)
                    held.grow(len(body))
        except TimeoutError:
            raise FrameError(TRUNCATED_FRAME, "frame", f"must arrive within {self._timeout_s} s") from None
        if size > self._limit:
            raise FrameError(FRAME_TOO_LARGE, "frame", f"must have at most {self._limit} bytes, got {size} or more")
        return bytes(body)


class _Held:
    """The part of the budget that one body takes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.bytes = 0

    def check(self, size: int) -> int:
        """Return how many bytes more a body of this size takes. Raises OverloadedError."""
        more = max(0, size - SMALL_BODY_BYTES - self.bytes)
        budget = self._bodies.budget
        if more and self._bodies.held + more > budget:
            raise OverloadedError(f"bytes of all bodies being read must be at most {budget}, got {size} more")
        return more

    def grow(self, size: int) -> None:
        """Take bytes for a body that has grown to this size. Raises OverloadedError."""
        more = self.check(size)
        self._bodies.held += more
        self.bytes += more
