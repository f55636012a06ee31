"""One message of a chat at a time, in the order of their arrival, over all processes.

A message takes a ticket in the chat's queue in Redis. Whose ticket is the first has the turn. Who
waits, and who has the turn, says so every few seconds; a ticket of a process that died is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

from .errors import RefusedError

_POLLED_S = 0.05
_LONGEST_WAIT_S = 120.0
_FULL, _LOST = -1, -2

_ENTER = """
-- KEYS: queue, deadlines. ARGV: ticket, milliseconds to live, most tickets (0: renew only).
-- Returns the number of tickets before this one; -1 if there are too many; -2 if it was dropped.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local first = redis.call('LINDEX', KEYS[1], 0)
while first and first ~= ARGV[1] and tonumber(redis.call('HGET', KEYS[2], first) or '0') < now do
  redis.call('LPOP', KEYS[1])
  redis.call('HDEL', KEYS[2], first)
  first = redis.call('LINDEX', KEYS[1], 0)
end
local place = redis.call('LPOS', KEYS[1], ARGV[1])
if not place then
  if ARGV[3] == '0' then return -2 end
  place = redis.call('LLEN', KEYS[1])
  if place >= tonumber(ARGV[3]) then return -1 end
  redis.call('RPUSH', KEYS[1], ARGV[1])
end
redis.call('HSET', KEYS[2], ARGV[1], now + tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], 600000)
redis.call('PEXPIRE', KEYS[2], 600000)
return place
"""

_LEAVE = """
-- KEYS: queue, deadlines. ARGV: ticket.
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 0
"""


def queue(chat: str) -> str:
    """Return the key of a chat's queue, whose first entry is the ticket that has the turn."""
    return f"queue:{{{chat}}}"


class Turns:
    """The queues of all chats."""

    def __init__(self, redis: Redis, most_waiting: int, silence: float) -> None:
        self._enter, self._leave = redis.register_script(_ENTER), redis.register_script(_LEAVE)
        self._most, self._silence = most_waiting, silence

    @contextlib.asynccontextmanager
    async def turn(self, chat: str) -> AsyncIterator[str]:
        """Wait for the turn and hold it; yields the ticket. Raises ``RefusedError``."""
        ticket = secrets.token_hex(16)
        end = time.monotonic() + _LONGEST_WAIT_S
        try:
            place = await self._place(chat, ticket, self._most)
            if place == _FULL:
                raise RefusedError(
                    429,
                    "chat_busy",
                    f"chat: at most {self._most} messages may wait for their answers",
                    retry_after=5,
                )
            while place != 0:
                if place == _LOST or time.monotonic() > end:
                    raise RefusedError(503, "chat_busy", "earlier messages of the chat take too long", retry_after=5)
                await asyncio.sleep(_POLLED_S)
                place = await self._place(chat, ticket, 0)
            renewing = asyncio.create_task(self._renew(chat, ticket))
            try:
                yield ticket
            finally:
                renewing.cancel()
        finally:
            with contextlib.suppress(RedisError):  # the ticket is dropped after a while
                await asyncio.shield(self._leave(keys=_keys(chat), args=[ticket]))

    async def _place(self, chat: str, ticket: str, most: int) -> int:
        return int(await self._enter(keys=_keys(chat), args=[ticket, round(1000 * self._silence), most]))

    async def _renew(self, chat: str, ticket: str) -> None:
        while True:
            await asyncio.sleep(self._silence / 5)
            with contextlib.suppress(RedisError):  # who lost the turn can save nothing
                await self._place(chat, ticket, 0)


def _keys(chat: str) -> list[str]:
    return [queue(chat), f"deadlines:{{{chat}}}"]
