"""Quotas of requests and tokens per minute that hold over all replicas.

One :class:`QuotaLedger` counts the grants of each name in the current minute. Replicas take parts
of a quota in advance (leases) and spend them locally. A lease ends with its minute, so no name
exceeds its quota in any minute of the clock. As a quota runs out the leases become smaller.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from del_core.errors import INVALID_VALUE, DelError, FrameError
from deployments.auth.keys import Caller

WINDOW_S = 60
_PLENTY = 1 << 30  # grant of a name without that limit: enough for the minute


class QuotaExceededError(DelError):
    """The quota of this minute is spent; the next minute begins in ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, retry_after)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class QuotaUnavailableError(DelError):
    """The quota actor does not answer, so the rest of the caller's quota is not known."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Granted requests and tokens (both 0 if refused) for the next ``seconds``."""

    requests: int
    tokens: int
    seconds: float


class QuotaLedger:
    """Grants of the current minute by name."""

    def __init__(self, state: Mapping[str, object] | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Restore a ledger from its :meth:`state`."""
        self._clock = clock
        self._window = -1
        self._granted: dict[str, tuple[int, int]] = {}
        if state is not None:
            granted = state["granted"]
            assert isinstance(granted, dict)
            self._window = int(str(state["window"]))
            self._granted = {name: (int(requests), int(tokens)) for name, (requests, tokens) in granted.items()}

    def state(self) -> dict[str, object]:
        return {"window": self._window, "granted": {name: list(pair) for name, pair in self._granted.items()}}

    def lease(self, name: str, requests: int | None, tokens: int | None, need: int) -> Lease:
        """Grant a part of a quota (None: unlimited) that covers ``need`` tokens, or nothing."""
        now = self._clock()
        window = int(now // WINDOW_S)
        if window > self._window:  # a clock that is set back does not renew a quota
            self._window, self._granted = window, {}
        seconds = (self._window + 1) * WINDOW_S - now
        used_requests, used_tokens = self._granted.get(name, (0, 0))
        part_requests = _part(requests, used_requests, 1)
        part_tokens = _part(tokens, used_tokens, need)
        if part_requests < 1 or part_tokens < need:
            return Lease(0, 0, seconds)
        self._granted[name] = (used_requests + part_requests, used_tokens + part_tokens)
        return Lease(part_requests, part_tokens, seconds)


def _part(limit: int | None, used: int, need: int) -> int:
    if limit is None:
        return max(need, _PLENTY)
    left = limit - used
    return min(left, max(need, min(limit // 16, left // 8)))


@dataclass
class _Held:
    lock: asyncio.Lock
    requests: int = 0
    tokens: int = 0
    until: float = 0.0
    refused: int | None = None  # smallest need refused in this minute


class Charge:
    """Tokens charged to one request; :meth:`settle` returns the unused ones."""

    def __init__(self, held: _Held | None, tokens: int) -> None:
        self._held = held
        self._until = 0.0 if held is None else held.until
        self._tokens = tokens

    def settle(self, used: int) -> None:
        """Return the tokens that were not used; call once."""
        if self._held is not None and self._held.until == self._until:
            self._held.tokens += max(0, self._tokens - used)


UNLIMITED = Charge(None, 0)

LeaseSource = Callable[[str, int | None, int | None, int], Awaitable[Lease]]


class Quotas:
    """Quotas of one replica: spends leases and takes new ones from ``source``."""

    def __init__(self, source: LeaseSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._held: dict[str, _Held] = {}

    async def charge(self, caller: Caller, tokens: int) -> Charge:
        """Charge a request for its tokens, prompt and ``max_tokens`` together.

        Raises QuotaExceededError, QuotaUnavailableError; FrameError for more than a minute allows.
        """
        if caller.requests_per_minute is None and caller.tokens_per_minute is None:
            return UNLIMITED
        if caller.tokens_per_minute is not None and tokens > caller.tokens_per_minute:
            raise FrameError(
                INVALID_VALUE,
                "header.max_tokens",
                f"plus the prompt must be at most {caller.tokens_per_minute} tokens for this key, got {tokens}",
            )
        held = self._held.get(caller.name)
        if held is None:
            held = self._held[caller.name] = _Held(asyncio.Lock())
        counted = tokens if caller.tokens_per_minute is not None else 0
        if not self._spend(held, counted):
            async with held.lock:
                while not self._spend(held, counted):
                    await self._renew(held, caller, counted)
        return Charge(held, counted)

    def _spend(self, held: _Held, tokens: int) -> bool:
        if held.requests < 1 or held.tokens < tokens or self._clock() >= held.until:
            return False
        held.requests -= 1
        held.tokens -= tokens
        return True

    async def _renew(self, held: _Held, caller: Caller, tokens: int) -> None:
        """Take another lease. Raises QuotaExceededError, QuotaUnavailableError."""
        began = self._clock()
        if began < held.until and held.refused is not None and tokens >= held.refused:
            raise self._exceeded(held)
        lease = await self._source(caller.name, caller.requests_per_minute, caller.tokens_per_minute, tokens)
        # Counted from before the request to the ledger: a lease never outlives its minute.
        until = began + lease.seconds
        if began >= held.until or until > held.until + WINDOW_S / 2:
            held.requests, held.tokens, held.refused, held.until = 0, 0, None, until
        if lease.requests == 0:
            held.refused = tokens
            raise self._exceeded(held)
        held.requests += lease.requests
        held.tokens += lease.tokens

    def _exceeded(self, held: _Held) -> QuotaExceededError:
        seconds = max(1, math.ceil(held.until - self._clock()))
        return QuotaExceededError("the key's quota of this minute is spent", seconds)
