"""How often a user may send: a token bucket for each user, in Redis, for all processes together."""

from __future__ import annotations

from redis.asyncio import Redis

from .errors import RefusedError
from .settings import Plan

_TAKE = """
-- KEYS: bucket. ARGV: refill a second, size. Returns 0, or the milliseconds to wait.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local rate, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
local passed = math.max(0, now - (tonumber(kept[2]) or now))
local level = math.min(size, (tonumber(kept[1]) or size) + passed * rate)
local wait = 0
if level >= 1 then level = level - 1 else wait = math.ceil((1 - level) / rate * 1000) end
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(size / rate * 1000) + 1000)
return wait
"""


class RateLimits:
    """The buckets of all users."""

    def __init__(self, redis: Redis) -> None:
        self._take = redis.register_script(_TAKE)

    async def take(self, person: str, plan: Plan) -> None:
        """Count one message. Raises ``RefusedError`` if it comes too early."""
        arguments = [plan.messages_per_minute / 60, plan.burst]
        wait = int(await self._take(keys=[f"rate:{person}"], args=arguments))
        if wait:
            raise RefusedError(
                429,
                "too_many_messages",
                f"messages: must be at most {plan.burst} at once and {plan.messages_per_minute:g} a minute; "
                f"the next one in {wait / 1000:.1f} s",
                retry_after=wait / 1000,
            )
