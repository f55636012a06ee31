"""Fixtures of the client's tests: bundles, a scripted server, clients of both kinds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from client_lib import AsyncClient, Chunk, Client, Completion, EncodedPrompt, Prompt, RetryPolicy
from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.redis_server import RedisServer
from tests.support.scripted_server import ScriptedServer


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Skip fsync: test files need not survive a crash, and waiting for the disk is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    """The bundle that servers hand out unless a test says otherwise."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis server that keeps what it acknowledges."""
    with RedisServer.running() as running:
        yield running


@pytest.fixture
def server(bundle: ClientBundle) -> Iterator[ScriptedServer]:
    with ScriptedServer(bundle).running() as running:
        yield running


SHORT_PAUSES = RetryPolicy(first_pause=0.001)
"""Backs off for milliseconds."""


class Calls(Protocol):
    """A client of either kind, called the same way."""

    def complete(self, prompt: Prompt | EncodedPrompt, **options: Any) -> Completion: ...
    def stream(
        self, prompt: Prompt | EncodedPrompt, *, take: int | None = None, **options: Any
    ) -> tuple[list[Chunk], Completion | None]: ...
    def call(self, method: str, *arguments: Any, **options: Any) -> Any: ...
    def with_options(self, **options: Any) -> Calls: ...
    def close(self) -> None: ...


class SyncCalls:
    """The synchronous client."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def complete(self, prompt: Prompt | EncodedPrompt, **options: Any) -> Completion:
        return self.client.complete(prompt, **options)

    def stream(
        self, prompt: Prompt | EncodedPrompt, *, take: int | None = None, **options: Any
    ) -> tuple[list[Chunk], Completion | None]:
        """All chunks, or the first ``take``, and the completion."""
        chunks = []
        with self.client.stream(prompt, **options) as stream:
            for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == take:
                    break
            return chunks, stream.completion

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, method)(*arguments, **options)

    def with_options(self, **options: Any) -> Calls:
        return SyncCalls(self.client.with_options(**options))

    def close(self) -> None:
        self.client.close()


class AsyncCalls:
    """The asynchronous client, driven by synchronous tests on one event loop."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self.client = client
        self._runner = runner

    def complete(self, prompt: Prompt | EncodedPrompt, **options: Any) -> Completion:
        return self._runner.run(self.client.complete(prompt, **options))

    def stream(
        self, prompt: Prompt | EncodedPrompt, *, take: int | None = None, **options: Any
    ) -> tuple[list[Chunk], Completion | None]:
        """All chunks, or the first ``take``, and the completion."""

        async def collect() -> tuple[list[Chunk], Completion | None]:
            chunks = []
            async with self.client.stream(prompt, **options) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    if len(chunks) == take:
                        break
                return chunks, stream.completion

        return self._runner.run(collect())

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._runner.run(getattr(self.client, method)(*arguments, **options))

    def with_options(self, **options: Any) -> Calls:
        return AsyncCalls(self.client.with_options(**options), self._runner)

    def close(self) -> None:
        self._runner.run(self.client.close())


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, server: ScriptedServer, tmp_path: Path) -> Iterator[Callable[..., Calls]]:
    """Make clients of both kinds in turn; a test's clients share a cache that is empty at first."""
    opened: list[SyncCalls | AsyncCalls] = []
    with asyncio.Runner() as runner:

        def make(**options: Any) -> Calls:
            options = {"base_url": server.url, "cache_dir": tmp_path / "cache", "retry": SHORT_PAUSES, **options}
            calls: SyncCalls | AsyncCalls
            if request.param == "sync":
                calls = SyncCalls(Client(**options))
            else:
                calls = AsyncCalls(AsyncClient(**options), runner)
            opened.append(calls)
            return calls

        yield make
        for calls in opened:
            calls.close()
