"""A bare HTTP/1.1 client for streamed completions: what a load generator needs and no more.

While a response arrives, only the time and the bytes of each packet are kept; events are parsed after the run, so that
the generator takes as little as possible of the cores that it shares with the servers it measures.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from dataclasses import dataclass
from typing import cast

__all__ = ["Connection", "Timeline", "read_timeline"]

_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Timeline:
    """When a request was begun, and when each event with tokens came (seconds, the same clock); its token count."""

    began: float
    events: tuple[float, ...]
    tokens: int


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._packets: list[tuple[float, bytes]] = []
        self._tail = b""
        self._answer: asyncio.Future[list[tuple[float, bytes]]] | None = None

    async def post(self, host: str, port: int, message: bytes) -> list[tuple[float, bytes]]:
        """Send a whole request; the packets of its answer. Raises ConnectionError if the answer is cut off."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, host, port)
        assert self._transport is not None
        self._packets, self._tail = [], b""
        self._answer = loop.create_future()
        self._transport.write(message)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods alone

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._packets.append((time.perf_counter(), data))
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        # A failure comes with a length instead of chunks, and is worth no parsing here.
        failed = not self._packets[0][1].startswith(b"HTTP/1.1 200")
        if (self._tail == _LAST_CHUNK or failed) and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._packets)
            if failed:
                self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the answer was cut off"))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._transport is not None:
            self._transport.close()


def read_timeline(began: float, packets: list[tuple[float, bytes]]) -> Timeline:
    """The events of a streamed completion. Raises ValueError unless it is a whole one.

    Tokens are counted by the ``usage`` of the last event that has one.
    """
    raw = b"".join(data for _, data in packets)
    ends: list[int] = []
    for _, data in packets:
        ends.append(len(data) + (ends[-1] if ends else 0))
    head, separator, _ = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"chunked" not in head.lower():
        raise ValueError("the answer is no streamed success")
    events: list[float] = []
    tokens = 0
    finished = False
    pending = b""
    for end, chunk in _chunks(raw, len(head) + len(separator)):
        *whole, pending = (pending + chunk).split(b"\n\n")
        for event in whole:
            if event == b"data: [DONE]":
                finished = True
                continue
            fields = json.loads(event.removeprefix(b"data: "))
            if fields.get("choices"):
                events.append(packets[bisect.bisect_left(ends, end)][0])
            tokens = (fields.get("usage") or {}).get("completion_tokens", tokens)
    if not finished or not events:
        raise ValueError("the stream ended early")
    return Timeline(began, tuple(events), tokens)


def _chunks(raw: bytes, start: int) -> list[tuple[int, bytes]]:
    """The chunks of a body that begins at ``start``, each with the position of its end."""
    chunks = []
    while True:
        line_end = raw.index(b"\r\n", start)
        size = int(raw[start:line_end], 16)
        if size == 0:
            return chunks
        end = line_end + 2 + size
        chunks.append((end, raw[line_end + 2 : end]))
        start = end + 2
