"""An engine with scripted output, and a caller that speaks ASGI to an application directly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import Adapter
from deployments.engines.base import Delta, EngineDeadError, EngineSampling, LookUp

CONTEXT_LENGTH = 512


@dataclass
class Call:
    """One call of ``generate``: its arguments and its outcome."""

    request_id: str
    embeddings: NDArray[np.float32]
    sampling: EngineSampling
    cache_salt: str | None
    shared_rows: int = 0
    adapter: str | None = None
    finished: bool = False
    closed: bool = False


@dataclass
class ScriptedEngine:
    """Yields ``tokens`` in groups of ``group``, up to a stop token or ``max_tokens``.

    It awaits ``before`` before each group, with the number of groups so far. A test can hold the
    engine there, or let it fail.
    """

    tokens: Sequence[int] = tuple(range(10, 60))
    group: int = 1
    before: Callable[[int], Any] | None = None
    dead: bool = False
    calls: list[Call] = field(default_factory=list)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    stopped: bool = False

    @property
    def context_length(self) -> int:
        return CONTEXT_LENGTH

    async def start(self) -> None:
        pass

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        self.adapters[name] = adapter

    async def look_up(self, token_ids: Sequence[int]) -> LookUp | None:
        return None

    async def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
        adapter: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        call = Call(request_id, embeddings, sampling, cache_salt, shared_rows, adapter)
        self.calls.append(call)
        try:
            await self.check_health()
            tokens = list(self.tokens)
            reason: Any = "length"
            for index, token in enumerate(tokens):
                if token in sampling.stop_token_ids and index < sampling.max_tokens:
                    tokens, reason = tokens[: index + 1], "stop"
                    break
            tokens = tokens[: sampling.max_tokens]
            size = self.group if sampling.incremental else len(tokens)
            for number, start in enumerate(range(0, len(tokens), size)):
                if self.before is not None:
                    await self.before(number)
                await self.check_health()
                last = start + size >= len(tokens)
                yield Delta(tuple(tokens[start : start + size]), reason if last else None)
            call.finished = True
        finally:
            call.closed = True

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError("the engine has stopped")

    async def shutdown(self) -> None:
        self.stopped = True


class Exchange:
    """One HTTP request to an ASGI application; a test sees its messages and can abandon it."""

    def __init__(self, app: Any, body: bytes, headers: dict[str, str], *, more: bool = False) -> None:
        """Send ``body``; with ``more``, the rest of the body never comes."""
        path = "/v1/private/completions"
        self._received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": more})
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self._news = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.ensure_future(app(scope, self._received.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append((asyncio.get_running_loop().time(), message))
        self._news.set()

    def feed(self, body: bytes, *, more: bool = True) -> None:
        """Send more of the body."""
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self) -> None:
        """Disconnect the client."""
        self._received.put_nowait({"type": "http.disconnect"})

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a message after which ``condition`` holds."""
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()

    @property
    def bodies(self) -> list[tuple[float, bytes]]:
        """The time and the content of every body message."""
        return [(when, message.get("body", b"")) for when, message in self.sent if message["type"].endswith(".body")]
