"""A mobile backend in a thread, in front of a scripted server, on a real Redis."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from client_lib import Timeout
from client_lib.proxy.server import bind
from del_core.wire import PrivateSegment
from examples.mobile_backend.__main__ import Server
from examples.mobile_backend.app import create_app
from examples.mobile_backend.backend import Backend
from examples.mobile_backend.settings import Plan, Settings
from tests.support.bundle import make_bundle
from tests.support.redis_server import RedisServer
from tests.support.scripted_server import ScriptedServer

WITHIN_S = 60.0
"""For what happens at once, on a machine that is busy with something else."""

PATIENT = Timeout(connect=WITHIN_S, read=WITHIN_S, total=600.0)
PLAN = Plan(
    variant="balanced",
    max_epsilon_per_token=1000.0,
    tokens=600,
    answer_tokens=12,
    messages_per_minute=6000,
    burst=1000,
)
"""Without limits that a test could meet by chance."""


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis server; every test has a key, and so names, of its own."""
    with RedisServer.running() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    with ScriptedServer(make_bundle(tmp_path / "bundle", names=("strict", "balanced"))).running() as running:
        yield running


@pytest.fixture
def settings(server: ScriptedServer, redis: RedisServer) -> Settings:
    plans = {"free": PLAN, "plus": PLAN.model_copy(update={"variant": "strict"})}
    return Settings(
        server.url, redis.url, secrets.token_bytes(32), plans, timeout=PATIENT, silence=600.0, drain=WITHIN_S
    )


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(events: list[dict[str, Any]]) -> str:
    """Return the text of an answer."""
    return "".join(event.get("text", "") for event in events)


def counts(server: ScriptedServer, index: int) -> list[PrivateSegment]:
    """Return the private segments of a prompt that arrived."""
    segments = server.decode(server.frames[index]).segments
    return [one for one in segments if isinstance(one, PrivateSegment)]


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Running:
    """A backend that runs, and its app's calls."""

    def __init__(self, url: str, backend: Backend, server: Server) -> None:
        self.url, self.backend = url, backend
        self._server = server
        self._http = httpx.Client(base_url=url, timeout=WITHIN_S, trust_env=False)

    def post(
        self, text: str, *, message_id: str | None = None, chat: str = "1", token: str = "alice-token"
    ) -> httpx.Response:
        """Send a message and wait for the whole answer."""
        return self._http.post(
            f"/chats/{chat}/messages",
            json={"id": message_id or secrets.token_hex(8), "text": text},
            headers={"authorization": f"Bearer {token}"},
        )

    def say(self, text: str, **options: str) -> list[dict[str, Any]]:
        """Send a message that is answered; returns the events."""
        answer = self.post(text, **options)
        assert answer.status_code == 200, answer.text
        return events_of(answer.text)

    def stream(self, text: str, message_id: str) -> AbstractContextManager[httpx.Response]:
        """Send a message and leave the answer to be read."""
        return self._http.stream(
            "POST",
            "/chats/1/messages",
            json={"id": message_id, "text": text},
            headers={"authorization": "Bearer alice-token"},
        )

    def get(self, path: str, token: str = "alice-token") -> httpx.Response:
        """Ask a route."""
        return self._http.get(path, headers={"authorization": f"Bearer {token}"})

    def left(self, token: str = "alice-token") -> int:
        """Return the private tokens that are left of a budget."""
        return int(self.get("/budget", token).json()["tokens_left"])

    def end(self) -> None:
        """Begin to end the backend, as a signal does."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the connections of the app."""
        self._http.close()


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Run a backend in a thread, with the server that ``python -m`` runs."""
    app = create_app(settings)
    bound = bind("127.0.0.1", 0)
    server = Server(app, "127.0.0.1", 0, drain=settings.drain)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert thread.is_alive()
        made = Running(f"http://127.0.0.1:{bound.getsockname()[1]}", app.state.backend, server)
        try:
            yield made
        finally:
            made.close()
    finally:
        server.should_exit = True
        thread.join(WITHIN_S)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture
def backend(settings: Settings) -> Iterator[Running]:
    with running(settings) as made:
        yield made
