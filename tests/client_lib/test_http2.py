"""HTTP/2 with servers that support it: concurrent calls, and faults."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client_lib import AsyncClient, Client, ConnectionFailedError, InvalidRequestError, Timeout, TimeoutExceededError
from tests.client_lib.conftest import SHORT_PAUSES, Calls
from tests.support.http2_server import HTTP2Server, make_certificate
from tests.support.scripted_server import Received, ScriptedServer, chatter, cut, error, expected_text, expected_tokens

Connect = Callable[..., Calls]
SECRET = "my test was positive"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def front(server: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTP2Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HTTP2Server(server, certificate).running() as running:
        yield running


def test_calls_over_http2(connect: Connect, server: ScriptedServer, front: HTTP2Server) -> None:
    calls = connect(base_url=front.url, http2=True)
    assert calls.complete(SECRET, variant="open", max_tokens=5).token_ids == expected_tokens(5)
    server.script.extend([error(503, "overloaded", {"retry-after": "0"}), cut(500)])
    _, completion = calls.stream(SECRET, variant="open", max_tokens=12)
    assert completion is not None
    assert completion.text == expected_text(expected_tokens(12))
    assert front.connections <= 2  # a synchronous client leaves the connection of a broken stream
    payloads = {frame[-40:] for frame in server.frames[1:]}
    assert len(payloads) == 1  # the same noise in all tries


class _UntilLeft:
    """Sends one token, then comments until its connection is closed."""

    def __init__(self) -> None:
        self.was_left = threading.Event()

    async def __call__(self, server: ScriptedServer, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        writer.write(b'data: {"id":"c","choices":[{"index":0,"text":"a","token_ids":[1],"finish_reason":null}]}\n\n')
        try:
            while not server.stopping.is_set():
                writer.write(b": waiting\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            self.was_left.set()
            raise


def test_a_stream_that_a_synchronous_client_leaves_ends_at_the_server(
    server: ScriptedServer, front: HTTP2Server, tmp_path: Path
) -> None:
    behaviour = _UntilLeft()
    with Client(front.url, retry=SHORT_PAUSES, cache_dir=tmp_path, http2=True) as client:
        client.bundle()
        server.script.append(behaviour)
        with client.stream(SECRET, variant="open", max_tokens=9) as stream:
            next(stream)
        assert behaviour.was_left.wait(10)
        assert client.complete(SECRET, variant="open", max_tokens=9).text == expected_text(expected_tokens(9))


def test_threads_do_not_disturb_each_other(server: ScriptedServer, front: HTTP2Server, tmp_path: Path) -> None:
    """Nothing is sent twice, no caller gets another's answer, and connections are reused."""
    with (
        Client(front.url, retry=SHORT_PAUSES, cache_dir=tmp_path, http2=True, max_retries=0) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        client.bundle()
        lengths = [1 + number % 12 for number in range(96)]
        texts = list(pool.map(lambda n: client.complete(SECRET, variant="open", max_tokens=n).text, lengths))
    assert texts == [expected_text(expected_tokens(n)) for n in lengths]
    assert len(server.frames) == len(lengths)
    assert 1 <= front.connections <= 6


async def _tasks_at_once(url: str, cache: Path, lengths: list[int]) -> list[str]:
    async with AsyncClient(url, cache_dir=cache, http2=True, max_retries=0) as client:
        await client.bundle()
        calls = [client.complete(SECRET, variant="open", max_tokens=n) for n in lengths]
        return [completion.text for completion in await asyncio.gather(*calls)]


def test_tasks_share_one_connection(server: ScriptedServer, front: HTTP2Server, tmp_path: Path) -> None:
    lengths = [1 + number % 12 for number in range(24)]
    texts = asyncio.run(_tasks_at_once(front.url, tmp_path, lengths))
    assert texts == [expected_text(expected_tokens(n)) for n in lengths]
    assert len(server.frames) == len(lengths)
    assert front.connections == 1


def test_the_first_tokens_time_is_kept_without_harm_to_others(
    connect: Connect, server: ScriptedServer, front: HTTP2Server
) -> None:
    calls = connect(base_url=front.url, http2=True, timeout=Timeout(read=30, first_token=0.4))
    calls.call("bundle")
    server.script.append(chatter(b": waiting\n\n"))
    with pytest.raises(TimeoutExceededError) as caught:
        calls.stream(SECRET, variant="open")
    assert caught.value.phase == "first_token"
    assert calls.complete(SECRET, variant="open").token_ids


def test_a_server_without_http2_is_spoken_to_as_ever(
    connect: Connect, server: ScriptedServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the clear nothing is negotiated, so HTTP/1.1 it is."""
    assert connect(http2=True).complete(SECRET, variant="open").token_ids


@pytest.mark.parametrize("http2", [False, True])
def test_a_certificate_of_nobody_is_refused(
    connect: Connect, front: HTTP2Server, monkeypatch: pytest.MonkeyPatch, http2: bool
) -> None:
    """Also for this machine's own addresses."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectionFailedError) as caught:
        connect(base_url=front.url, http2=http2, max_retries=0).complete(SECRET, variant="open")
    link: BaseException | None = caught.value
    while link is not None and not isinstance(link, ssl.SSLCertVerificationError):
        link = link.__cause__ or link.__context__
    assert link is not None


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_without_its_package_it_is_refused(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequestError, match=r"http2 must be .*del-serve\[http2\]"):
        kind("https://del.example.com", http2=True)
