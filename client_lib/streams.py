"""Streams of chunks, synchronous and asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from client_lib.types import Chunk, Completion

if TYPE_CHECKING:
    from client_lib._core.async_driver import AsyncRun
    from client_lib._core.sync_driver import SyncRun


class StreamBase:
    """The part of both kinds of streams that does not wait."""

    def __init__(self, run: SyncRun[Completion] | AsyncRun[Completion]) -> None:
        self._run = run

    @property
    def completion(self) -> Completion | None:
        """The whole completion after the last chunk; None before."""
        return self._run.result() if self._run.is_finished else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'finished' if self._run.is_finished else 'open'})"


class Stream(StreamBase):
    """An iterator over the chunks of one completion, for one thread at a time."""

    def __init__(self, run: SyncRun[Completion]) -> None:
        super().__init__(run)
        self._chunks = run.chunks()

    def close(self) -> None:
        """Stop generation and close the connection; does nothing after the end."""
        self._chunks.close()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(StreamBase):
    """An asynchronous iterator over the chunks of one completion, for one task at a time."""

    def __init__(self, run: AsyncRun[Completion]) -> None:
        super().__init__(run)
        self._chunks = run.chunks()

    async def close(self) -> None:
        """Stop generation and close the connection; does nothing after the end."""
        await self._chunks.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
