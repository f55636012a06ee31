"""Disconnection handling for ASGI applications, without a framework."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class DisconnectedError(Exception):
    """The peer closed the connection before the work was done."""


KEEP_ALIVE = b": keep-alive\n\n"
"""A comment in an event stream, which readers ignore; no relay takes the connection for idle."""


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


async def begun(receive: Receive, work: Awaitable[T], *, within_s: float) -> asyncio.Future[T]:
    """Return ``work`` as a future: done, or still running after ``within_s`` seconds.

    The caller awaits or cancels the future.

    Raises:
        DisconnectedError: the peer disconnected first.
        Exception: that of the work, within the time.
    """

    async def run() -> T:
        return await work

    task = asyncio.ensure_future(run())
    try:
        await unless_disconnected(receive, asyncio.wait((task,), timeout=within_s))
    except BaseException:
        await ended(task)
        raise
    if task.done():
        task.result()
    return task


async def ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; its outcome is of no interest."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # retrieved: asyncio would log it


async def with_keep_alive(events: AsyncGenerator[bytes, None], interval_s: float) -> AsyncGenerator[bytes, None]:
    """Yield events, and :data:`KEEP_ALIVE` whenever none has come for ``interval_s`` seconds."""

    async def take() -> bytes | None:
        return await anext(events, None)

    task: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            task = task or asyncio.ensure_future(take())
            await asyncio.wait((task,), timeout=interval_s)
            if not task.done():
                yield KEEP_ALIVE
                continue
            event, task = task.result(), None
            if event is None:
                return
            yield event
    finally:
        if task is not None:
            await ended(task)
        await events.aclose()
