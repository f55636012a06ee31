"""Work that ends when the peer disconnects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from del_core.net.asgi import DisconnectedError, unless_disconnected


class Connection:
    """A peer that disconnects when it is told to."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._sent_body = False

    async def receive(self) -> dict[str, Any]:
        if not self._sent_body:
            self._sent_body = True
            return {"type": "http.request", "body": b""}
        await self.closed.wait()
        return {"type": "http.disconnect"}


def test_finished_work_gives_its_result() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def run() -> int:
        return await unless_disconnected(Connection().receive, answer())

    assert asyncio.run(run()) == 7


def test_failed_work_raises_its_error() -> None:
    async def fail() -> None:
        raise KeyError("no")

    async def run() -> None:
        await unless_disconnected(Connection().receive, fail())

    with pytest.raises(KeyError):
        asyncio.run(run())


@pytest.mark.parametrize("by", ["the peer", "the caller"])
def test_work_is_cancelled_and_has_ended(by: str) -> None:
    ended: list[str] = []

    async def work(started: asyncio.Event) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append("work")

    async def run() -> None:
        connection, started = Connection(), asyncio.Event()
        task = asyncio.ensure_future(unless_disconnected(connection.receive, work(started)))
        await started.wait()
        if by == "the peer":
            connection.closed.set()
            with pytest.raises(DisconnectedError):
                await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ended == ["work"]

    asyncio.run(run())
