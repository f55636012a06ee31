"""Disconnection handling for ASGI applications, without a framework."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class DisconnectedError(Exception):
    """The peer closed the connection before the work was done."""


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the peer has closed the connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """Return the result of ``work``, or cancel it as soon as the peer disconnects.

    Cancelled work has ended when this returns, so whatever it held is free again.

    Raises:
        DisconnectedError: the peer disconnected first.
    """

    async def run() -> T:
        return await work

    task = asyncio.ensure_future(run())
    gone = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectedError
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
