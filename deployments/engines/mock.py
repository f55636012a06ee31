"""Mock engine: generates meaningless tokens at the pace of a model, for load tests without GPUs.

Token k of a completion is a fixed function of k and the seed, so a resumed completion continues
unchanged, and a load test notices an answer that belongs to another request. The timing follows
continuous batching. One step takes ``step_ms + step_ms_per_request * running + prompt_token_ms *
prompt tokens that join``, and gives every running request one token. Where no observer can tell,
several steps are taken at once, so that one processor runs many mock engines.

With ``cache_rows``, tokens whose rows stood at the beginning of an earlier prompt take no time, as
in an engine with a prefix cache: rows count in blocks of 32, and the blocks that were not used for
the longest time are forgotten first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from del_core.bundle import Adapter
from del_core.wire import TokenLogprobs
from deployments.engines.base import (
    ENGINES,
    Delta,
    EngineDeadError,
    EngineKind,
    EngineSampling,
    EngineSettings,
    FinishReason,
    LookUp,
)

logger = logging.getLogger("deployments.engines.mock")

_FIRST_ID, _IDS = 16, 64
_CONTEXT_LENGTH = 8192
_BLOCK = 32  # rows


class MockSettings(EngineSettings):
    """Pace of the mock engine; the defaults come from data sheets (docs/guides/scaling.md)."""

    kind: Literal["mock"] = "mock"
    """Kind of engine."""
    step_ms: float = Field(default=7.0, gt=0, le=10_000)
    """Duration of a step for one request."""
    step_ms_per_request: float = Field(default=0.03, ge=0, le=1000)
    """Additional duration of a step for each running request."""
    prompt_token_ms: float = Field(default=0.035, ge=0, le=1000)
    """Additional duration of a step for each token of a prompt that joins."""
    quantum_ms: float = Field(default=50.0, gt=0, le=1000)
    """Longest time over which steps are taken together; it delays events of a stream."""
    cache_rows: int = Field(default=0, ge=0, le=10_000_000)
    """Rows of prompts that a prefix cache holds; 0 means no cache but that of the soft prompt."""


def token_at(position: int) -> int:
    return _FIRST_ID + position * 7 % _IDS


@dataclass
class _Running:
    sampling: EngineSampling
    prompt_tokens: int
    """Tokens of the prompt to compute."""
    cached_rows: int | None
    generated: int = 0
    read: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def left(self) -> int:
        return self.sampling.max_tokens - self.generated


class _PrefixCache:
    """Remembers blocks of rows by a hash of all rows up to their end."""

    def __init__(self, rows: int) -> None:
        self._most = rows // _BLOCK
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def add(self, embeddings: NDArray[np.float32]) -> int:
        """Remember a prompt; return how many rows of its beginning were remembered before."""
        prefix, found, missed = hashlib.blake2b(digest_size=16), 0, False
        for end in range(_BLOCK, len(embeddings) + 1, _BLOCK):
            prefix.update(np.ascontiguousarray(embeddings[end - _BLOCK : end]).tobytes())
            block = prefix.digest()
            missed = missed or block not in self._blocks
            found += 0 if missed else _BLOCK
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return found


class MockEngine:
    """:class:`deployments.engines.base.Engine` without a model."""

    def __init__(self, settings: MockSettings) -> None:
        self._settings = settings
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._arrived = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None
        self._cache = _PrefixCache(settings.cache_rows) if settings.cache_rows else None

    @property
    def context_length(self) -> int:
        return self._settings.max_model_len or _CONTEXT_LENGTH

    async def start(self) -> None:
        logger.warning("engine.kind is mock: no model is served, the tokens have no meaning")
        self._clock = asyncio.create_task(self._tick(), name="mock-engine")

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        pass  # there is no model to adapt

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
        """See ``Engine``. Of the sampling, only lengths, logprobs and the seed have an effect."""
        await self.check_health()
        cached = None if self._cache is None else max(shared_rows, self._cache.add(embeddings))
        request = _Running(sampling, len(embeddings) - (shared_rows if cached is None else cached), cached)
        self._waiting.append(request)
        self._arrived.set()
        try:
            while request.read < sampling.max_tokens:
                request.news.clear()
                if request.generated == request.read or (not sampling.incremental and request.left):
                    await request.news.wait()
                    await self.check_health()
                    continue
                first = (sampling.seed or 0) + sampling.position + request.read
                tokens = tuple(token_at(first + index) for index in range(request.generated - request.read))
                request.read = request.generated
                done = request.read == sampling.max_tokens
                logprobs = None if sampling.logprobs is None else tuple(map(self._logprobs, tokens))
                reason: FinishReason | None = "length" if done else None
                gathered = sampling.gather_tokens > 1
                yield Delta(tokens, reason, gathered=gathered, logprobs=logprobs, cached_rows=request.cached_rows)
        finally:
            if request in self._running:
                self._running.remove(request)
            elif request in self._waiting:
                self._waiting.remove(request)

    @staticmethod
    def _logprobs(token_id: int) -> TokenLogprobs:
        """Return the certainty that a fixed function has."""
        return TokenLogprobs(0.0, ((token_id, 0.0),))

    async def _tick(self) -> None:
        settings = self._settings
        quantum_s = settings.quantum_ms / 1000
        loop = asyncio.get_running_loop()
        now = loop.time()
        while True:
            if not self._running and not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                now = loop.time()
            free = settings.max_num_seqs - len(self._running)
            joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            self._running += joining
            step_s = (settings.step_ms + settings.step_ms_per_request * len(self._running)) / 1000
            # A step that computes prompts is taken alone, because readers wait for its tokens. So
            # is a step after which a request ends while another one waits for its slot.
            steps = 1 if joining else max(1, int(quantum_s / step_s))
            if self._waiting and self._running:
                steps = min(steps, max(1, min(request.left for request in self._running)))
            prompts_s = settings.prompt_token_ms * sum(request.prompt_tokens for request in joining) / 1000
            now = max(now + steps * step_s + prompts_s, loop.time() - quantum_s)
            await asyncio.sleep(max(0.0, now - loop.time()))
            for request in list(self._running):
                request.generated += min(steps, request.left)
                request.news.set()
                if not request.left:
                    self._running.remove(request)

    async def check_health(self) -> None:
        if self._clock is None or self._clock.done():
            raise EngineDeadError("the engine has not been started, or has stopped")

    async def shutdown(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.wait((self._clock,))
        for request in (*self._running, *self._waiting):
            request.news.set()


ENGINES.register("mock", EngineKind(MockSettings, lambda model, settings: MockEngine(settings)))
