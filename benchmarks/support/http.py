"""A bare HTTP/1.1 client: keep-alive connections, one request at a time, the time of every packet.

While an answer arrives, only its packets are kept. They are parsed after the run, so that a load
generator takes as little as possible of the cores that it shares with the servers it measures.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from del_core.wire import MEDIA_TYPE

__all__ = ["PATH", "Answer", "Connection", "Timeline", "connection", "post_all", "post_message", "read_timeline"]

PATH = "/v1/private/completions"
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def post_message(host: str, port: int, body: bytes, *, path: str = PATH, media_type: str = MEDIA_TYPE) -> bytes:
    """Build a whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: {media_type}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Answer:
    """The packets of a response, each with the time of its arrival (time.perf_counter)."""

    packets: list[tuple[float, bytes]]

    @cached_property
    def _parts(self) -> tuple[bytes, bytes]:
        head, _, rest = b"".join(data for _, data in self.packets).partition(_HEAD_END)
        return head, rest

    @property
    def status(self) -> int:
        """The status code."""
        return int(self._parts[0].split(b" ", 2)[1])

    def header(self, name: str) -> str | None:
        """Return the first header of this name (lower case)."""
        return _header(self._parts[0], name)

    @cached_property
    def chunks(self) -> list[tuple[float, bytes]]:
        """The chunks of the body, each with the time of the packet that ended it."""
        head, rest = self._parts
        if self.header("transfer-encoding") != "chunked":
            return [(self.packets[-1][0], rest)]
        ends: list[int] = []
        for _, data in self.packets:
            ends.append(len(data) + (ends[-1] if ends else 0))
        found, start = [], 0
        while True:
            line_end = rest.index(b"\r\n", start)
            size = int(rest[start:line_end], 16)
            if size == 0:
                return found
            end = line_end + 2 + size
            packet = bisect.bisect_left(ends, len(head) + len(_HEAD_END) + end)
            found.append((self.packets[packet][0], rest[line_end + 2 : end]))
            start = end + 2

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(chunk for _, chunk in self.chunks)


class Connection(asyncio.Protocol):
    """A keep-alive connection, opened anew if the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._packets: list[tuple[float, bytes]] = []
        self._tail = b""
        # Bytes of the body still to come: None before the end of the head, -1 for a chunked body.
        self._missing: int | None = None

    async def post(self, message: bytes, *, retry: bool = False) -> Answer:
        """Send a whole request and return the answer.

        Args:
            retry: Send it once more if the server closes a connection that was kept open.

        Raises:
            OSError: The connection failed, or the answer was cut off.
        """
        kept = self._transport is not None
        try:
            return await self._post(message)
        except ConnectionError:
            self.close()
            if not (retry and kept):
                raise
        return await self._post(message)

    async def _post(self, message: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, *self._address)
        assert self._transport is not None
        self._packets, self._tail, self._missing = [], b"", None
        self._answer = loop.create_future()
        self._transport.write(message)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the same methods

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._packets.append((time.perf_counter(), data))
        if self._answer is None or self._answer.done():
            return
        self._tail += data
        if self._missing is None:
            head, end, rest = self._tail.partition(_HEAD_END)
            if not end:
                return
            length = _header(head, "content-length")
            self._missing = -1 if length is None else int(length) - len(rest)
        elif self._missing >= 0:
            self._missing -= len(data)
        if self._missing == 0 or (self._missing < 0 and self._tail.endswith(_LAST_CHUNK)):
            answer = Answer(self._packets)
            self._answer.set_result(answer)
            if answer.header("connection") == "close":
                self.close()
        self._tail = self._tail[-len(_LAST_CHUNK) :]

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the answer was cut off"))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._transport is not None:
            self._transport.close()


def _header(head: bytes, name: str) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.encode():
            return value.strip().decode("latin-1").lower()
    return None


@asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[Connection]:
    """Provide a connection and close it at the end."""
    one = Connection(host, port)
    try:
        yield one
    finally:
        one.close()


async def post_all(host: str, port: int, frames: Iterable[bytes], *, connections: int) -> list[tuple[int, Answer]]:
    """Send every frame over several connections; return (index, answer) as they come."""
    waiting = iter(enumerate(frames))
    answers: list[tuple[int, Answer]] = []

    async def work() -> None:
        async with connection(host, port) as one:
            for index, frame in waiting:
                answers.append((index, await one.post(post_message(host, port, frame), retry=True)))

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return answers


@dataclass(frozen=True)
class Timeline:
    """The start of a request, the arrival of each event with tokens (seconds), and the tokens."""

    began: float
    events: tuple[float, ...]
    tokens: int


def read_timeline(began: float, answer: Answer) -> Timeline:
    """Read the events of a streamed completion; the last `usage` gives the number of tokens.

    Raises:
        ValueError: The answer is not a whole streamed completion.
    """
    if answer.status != 200 or answer.header("transfer-encoding") != "chunked":
        raise ValueError("the answer is no streamed success")
    events: list[float] = []
    tokens = 0
    finished = False
    pending = b""
    for arrived, chunk in answer.chunks:
        *whole, pending = (pending + chunk).split(b"\n\n")
        for event in whole:
            if event == b"data: [DONE]":
                finished = True
                continue
            if event.startswith(b":"):  # keeps the connection open while nothing is generated
                continue
            fields = json.loads(event.removeprefix(b"data: "))
            if fields.get("choices"):
                events.append(arrived)
            tokens = (fields.get("usage") or {}).get("completion_tokens", tokens)
    if not finished or not events:
        raise ValueError("the stream ended early")
    return Timeline(began, tuple(events), tokens)
