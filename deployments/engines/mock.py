"""A stand-in for an engine: a clock that hands out tokens without meaning, at the pace of a model that is not there.

For load tests of everything around the engine (proxy, replicas, autoscaling, clients) where there are no GPUs. It is
chosen by ``engine.stand_in`` alone, says so in the log, and computes nothing: token k of a completion is a fixed
function of k, so a resumed completion goes on as it would have.

The clock is that of continuous batching. A step takes ``step_ms + step_ms_per_request * running + prompt_token_ms *
prompt tokens that join``, at most ``max_num_seqs`` requests run, the others wait in the order they came, and every
running request gets a token a step. Several steps are taken at once where nobody could tell the difference, so that
one processor can keep many clocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deployments.engines.base import Delta, EngineDeadError, EngineSampling
from deployments.settings import EngineSettings, StandInSettings

__all__ = ["TokenClock", "token_at"]

logger = logging.getLogger("deployments.engines.mock")

_FIRST_ID, _IDS = 16, 64


def token_at(position: int) -> int:
    """The token id at this position of every completion."""
    return _FIRST_ID + position * 7 % _IDS


@dataclass
class _Running:
    sampling: EngineSampling
    prompt_tokens: int
    given: int = 0
    read: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def left(self) -> int:
        return self.sampling.max_tokens - self.given


class TokenClock:
    """An engine without a model; see the module."""

    def __init__(self, settings: EngineSettings, pace: StandInSettings) -> None:
        self._pace = pace
        self._most = settings.max_num_seqs
        self._context_length = settings.max_model_len or 8192
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._arrived = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None

    @property
    def context_length(self) -> int:
        """See ``Engine``."""
        return self._context_length

    async def start(self) -> None:
        """See ``Engine``."""
        logger.warning("engine.stand_in: no model is served here, the tokens have no meaning")
        self._clock = asyncio.create_task(self._tick(), name="token-clock")

    async def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """See ``Engine``. Stop tokens are not looked at: none is ever generated but by chance."""
        await self.check_health()
        request = _Running(sampling, len(embeddings) - shared_rows)
        self._waiting.append(request)
        self._arrived.set()
        try:
            while request.read < sampling.max_tokens:
                request.news.clear()
                if request.given == request.read or (not sampling.incremental and request.left):
                    await request.news.wait()
                    await self.check_health()
                    continue
                first = sampling.position + request.read
                tokens = tuple(token_at(first + index) for index in range(request.given - request.read))
                request.read = request.given
                done = request.read == sampling.max_tokens
                yield Delta(tokens, "length" if done else None, gathered=sampling.gather_tokens > 1)
        finally:
            if request in self._running:
                self._running.remove(request)
            elif request in self._waiting:
                self._waiting.remove(request)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        while True:
            if not self._running and not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                now = loop.time()
            joining = [self._waiting.popleft() for _ in range(min(self._most - len(self._running), len(self._waiting)))]
            self._running += joining
            step_s = (self._pace.step_ms + self._pace.step_ms_per_request * len(self._running)) / 1000
            # A step that computes prompts is taken by itself, for its tokens are waited for; so is one after which a
            # request ends while another waits for its place.
            steps = 1 if joining else max(1, int(self._pace.quantum_ms / 1000 / step_s))
            if self._waiting and self._running:
                steps = min(steps, max(1, min(request.left for request in self._running)))
            prompts_s = self._pace.prompt_token_ms * sum(request.prompt_tokens for request in joining) / 1000
            now = max(now + steps * step_s + prompts_s, loop.time() - self._pace.quantum_ms / 1000)
            await asyncio.sleep(max(0.0, now - loop.time()))
            for request in list(self._running):
                request.given += min(steps, request.left)
                request.news.set()
                if not request.left:
                    self._running.remove(request)

    async def abort(self, request_id: str) -> None:
        """See ``Engine``; closing the iterator is enough."""

    async def check_health(self) -> None:
        """See ``Engine``."""
        if self._clock is None or self._clock.done():
            raise EngineDeadError("the engine has not been started, or has stopped")

    async def shutdown(self) -> None:
        """See ``Engine``."""
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.wait((self._clock,))
        for request in (*self._running, *self._waiting):
            request.news.set()
