"""A bare HTTP/1.1 client for very many requests: keep-alive connections, no parsing beyond what framing needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from del_core.wire import MEDIA_TYPE

__all__ = ["Answer", "Connection", "connection", "post_all"]

PATH = "/v1/private/completions"


@dataclass(frozen=True)
class Answer:
    """Status and body of a response."""

    status: int
    body: bytes


class Connection:
    """One keep-alive connection, opened anew when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> Answer:
        """Send a frame and read the whole answer; one retry if a kept connection turns out to be closed."""
        kept = self._streams is not None
        try:
            return await self._post(body)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            if not kept:
                raise
        return await self._post(body)

    async def _post(self, body: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = [f"POST {PATH} HTTP/1.1", f"host: {self._address[0]}", f"content-length: {len(body)}"]
        head += [f"content-type: {MEDIA_TYPE}"]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            content = b"".join([chunk async for chunk in self._chunks(reader)])
        else:
            content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, content)

    @staticmethod
    async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[Connection]:
    """A connection that is closed at the end."""
    one = Connection(host, port)
    try:
        yield one
    finally:
        one.close()


async def post_all(host: str, port: int, bodies: Iterable[bytes], *, connections: int) -> list[tuple[int, Answer]]:
    """Send every body over a number of connections at once; (index, answer) in the order of the answers."""
    waiting = iter(enumerate(bodies))
    answers: list[tuple[int, Answer]] = []

    async def work() -> None:
        async with connection(host, port) as one:
            for index, body in waiting:
                answers.append((index, await one.post(body)))

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return answers
