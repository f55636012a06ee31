"""One client, many users: threads, tasks, cancellation."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client_lib import AsyncClient, Client, Completion, TimeoutExceededError
from tests.client_lib.conftest import SHORT_PAUSES
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens, hang

SECRET = "my test was positive"
USERS = 8


def test_threads_share_a_client(server: ScriptedServer, tmp_path: Path) -> None:
    """One download of the bundle, every completion whole, every frame with noise of its own."""
    start = threading.Barrier(USERS)

    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:

        def use(number: int) -> list[str]:
            start.wait(10)
            texts = []
            for _ in range(5):
                if number % 2:
                    texts.append(client.complete(SECRET * 5, variant="open", max_tokens=8, fresh=True).text)
                else:
                    texts.append(
                        "".join(
                            chunk.text for chunk in client.stream(SECRET * 5, variant="open", max_tokens=8, fresh=True)
                        )
                    )
            return texts

        with ThreadPoolExecutor(USERS) as pool:
            results = list(pool.map(use, range(USERS)))
    assert {text for texts in results for text in texts} == {expected_text(expected_tokens(8))}
    assert len(server.requests_to("/v1/bundle")) == 1
    assert len(set(server.frames)) == 5 * USERS


async def test_tasks_share_a_client(server: ScriptedServer, tmp_path: Path) -> None:
    async with AsyncClient(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:

        async def use(number: int) -> str:
            if number % 2:
                return (await client.complete(SECRET * 5, variant="open", max_tokens=8, fresh=True)).text
            return "".join(
                [chunk.text async for chunk in client.stream(SECRET * 5, variant="open", max_tokens=8, fresh=True)]
            )

        texts = await asyncio.gather(*(use(number) for number in range(4 * USERS)))
    assert set(texts) == {expected_text(expected_tokens(8))}
    assert len(server.requests_to("/v1/bundle")) == 1
    assert len(set(server.frames)) == 4 * USERS


async def test_a_cancelled_call_leaves_a_working_client(server: ScriptedServer, tmp_path: Path) -> None:
    async with AsyncClient(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        await client.bundle()
        for head in (b"", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"):
            server.script.append(hang(head))
            task = asyncio.create_task(_drain(client))
            while not server.frames or server.script:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await _drain(client)).token_ids == expected_tokens(8)
        connections = server.connections
        for _ in range(3):
            await _drain(client)
        assert server.connections == connections  # the last one went back to the pool every time


async def test_a_cancelled_bundle_download_does_not_block_others(server: ScriptedServer, tmp_path: Path) -> None:
    server.bundle_script.append(hang())
    async with AsyncClient(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        first = asyncio.create_task(_drain(client))
        while not server.received:
            await asyncio.sleep(0.005)
        second = asyncio.create_task(_drain(client))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).token_ids == expected_tokens(8)


def test_waiting_for_another_threads_download_is_limited(server: ScriptedServer, tmp_path: Path) -> None:
    """One thread hangs in the download; another with a share in it gives up at its total limit."""
    server.bundle_script.append(hang())
    with (
        Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, timeout=0.5) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        calls = [pool.submit(client.complete, SECRET, variant="open") for _ in range(2)]
        failures = [call.exception(30) for call in calls]
    assert any(isinstance(failure, TimeoutExceededError) and failure.phase == "total" for failure in failures)


async def _drain(client: AsyncClient) -> Completion:
    async with client.stream(SECRET, variant="open", max_tokens=8) as stream:
        async for _ in stream:
            pass
        assert stream.completion is not None
        return stream.completion
