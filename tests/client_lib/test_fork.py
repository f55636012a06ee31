"""Forks: a client made before a fork works on both sides of it, on connections of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from client_lib import AsyncClient, Client, ClientClosedError, LedgerUnavailableError
from client_lib.ledger import Budget, Ledger, MemoryStore
from client_lib.prompts.types import Draw
from del_core.mechanism import Mechanism
from tests.client_lib.conftest import SHORT_PAUSES
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens

SECRET = "my test was positive"
TEXT = expected_text(expected_tokens(8))


def in_child(action: Callable[[], object]) -> None:
    """Run an action in a forked process; fails with what it raised there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            action()
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        words = said.read().decode()
    os.waitpid(child, 0)
    assert words == ""


def check(client: Client) -> None:
    assert client.complete(SECRET, variant="open", max_tokens=8).text == TEXT


def test_a_client_works_on_both_sides(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        check(client)
        before = server.connections
        in_child(lambda: [check(client) for _ in range(3)])
        assert server.connections == before + 1  # the child's own, used three times
        check(client)
        assert server.connections == before + 1  # the parent's is as it was
        other = client.with_options(variant="strict")
        in_child(lambda: check(other))
    assert len(server.requests_to("/v1/bundle")) == 1  # the mapped table is inherited


def test_a_lock_that_a_thread_of_the_parent_held_does_not_bind_the_child(
    server: ScriptedServer, tmp_path: Path
) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        conversation = client.conversation(variant="open")
        shared = client._driver.shared
        with shared.lock, conversation._memory._lock:
            in_child(lambda: (check(client), conversation.complete(SECRET, max_tokens=8)))


def test_a_stream_belongs_to_the_process_that_began_it(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        stream = client.stream(SECRET, variant="open", max_tokens=8)
        chunks = [next(stream)]

        def read_on() -> None:
            with pytest.raises(ClientClosedError, match="the process that began it"):
                list(stream)

        in_child(read_on)
        in_child(stream.close)
        chunks += stream
        assert "".join(chunk.text for chunk in chunks) == TEXT


def test_a_closed_client_stays_closed(server: ScriptedServer, tmp_path: Path) -> None:
    client = Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path)
    client.close()

    def use() -> None:
        with pytest.raises(ClientClosedError):
            check(client)

    in_child(use)


def test_an_asynchronous_client_works_in_a_child(server: ScriptedServer, tmp_path: Path) -> None:
    client = AsyncClient(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path)

    async def use() -> None:
        assert (await client.complete(SECRET, variant="open", max_tokens=8)).text == TEXT
        await client.close()

    in_child(lambda: asyncio.run(use()))
    asyncio.run(use())


def test_noise_differs_on_both_sides(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        client.bundle()
        for _ in range(3):
            in_child(lambda: check(client))
        check(client)
    assert len({frame[-64:] for frame in server.frames}) == 4


def test_a_ledger_in_memory_is_not_doubled(server: ScriptedServer) -> None:
    """A child must not spend from a copy, and must not hang on its parent's lock."""
    ledger = Ledger(MemoryStore(), budget=Budget(1e6))
    mechanism = Mechanism.from_mu(4.0, bits=4, dim=32)
    ledger.spend("ann", mechanism, [Draw(b"1" * 16, 1)])

    def spend() -> None:
        with pytest.raises(LedgerUnavailableError, match="SQLiteStore"):
            ledger.spend("ann", mechanism, [Draw(b"2" * 16, 1)])

    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.store.account("bob"):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    in_child(spend)
    done.set()
    thread.join()
    ledger.spend("ann", mechanism, [Draw(b"3" * 16, 1)])
