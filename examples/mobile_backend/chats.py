"""The chats, in Redis, encrypted: any process can answer the next message of any chat.

A chat is its newest turns, and the noise of everything that was sent of it. Losing the noise would
mean drawing it anew for the history, and charging the user for it again.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.asyncio import Redis

from .errors import RefusedError
from .turns import queue

_MOST_TURNS = 50
_MOST_MEMORY_BYTES = 1 << 20
_KEPT_S = 30 * 24 * 3600  # after the last message
_NONCE_BYTES = 12

_SAVE = """
-- KEYS: queue, chat. ARGV: ticket, bytes, seconds to keep. Returns whether the ticket has the turn.
if redis.call('LINDEX', KEYS[1], 0) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
return 1
"""


@dataclass
class Turn:
    """A message and its answer, which is None until the whole of it is there.

    ``at`` is when the message came, in seconds since 1970. ``variant`` is the level that it was
    sent under; its noise is of no use under another one.
    """

    id: str
    text: str = field(repr=False)
    at: float
    variant: str
    answer: str | None = field(default=None, repr=False)
    finish_reason: str | None = None


@dataclass
class Chat:
    """A chat. ``memory`` is what ``conversation.save`` returned."""

    turns: list[Turn] = field(default_factory=list)
    memory: bytes | None = field(default=None, repr=False)

    def find(self, message_id: str) -> Turn | None:
        """Return the turn of a message, if it is among those that are kept."""
        return next((turn for turn in self.turns if turn.id == message_id), None)

    def history(self, variant: str, since: float) -> list[Turn]:
        """Return the answered turns whose noise is still paid for, oldest first."""
        return [one for one in self.turns if one.answer is not None and one.variant == variant and one.at > since]


class Chats:
    """The chats of all users, by names that only the backend's key can compute."""

    def __init__(self, redis: Redis, key: bytes) -> None:
        self._redis = redis
        self._cipher = AESGCM(key)
        self._save = redis.register_script(_SAVE)

    async def load(self, name: str) -> Chat:
        """Return a chat, new if there is none."""
        data: bytes | None = await self._redis.get(_key(name))  # type: ignore[assignment]
        if data is None:
            return Chat()
        text = self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], name.encode())
        content: dict[str, Any] = json.loads(text)
        memory = content["memory"]
        turns = [Turn(**turn) for turn in content["turns"]]
        return Chat(turns, None if memory is None else base64.b64decode(memory))

    async def save(self, name: str, chat: Chat, ticket: str) -> None:
        """Keep a chat. Raises ``RefusedError`` if the ticket has lost its turn."""
        chat.turns = chat.turns[-_MOST_TURNS:]
        if chat.memory is not None and len(chat.memory) > _MOST_MEMORY_BYTES:
            # The chat begins anew; answers are kept for apps that ask for them again.
            chat.memory = None
            for turn in chat.turns:
                turn.variant = ""
        memory = None if chat.memory is None else base64.b64encode(chat.memory).decode()
        text = json.dumps({"turns": [asdict(turn) for turn in chat.turns], "memory": memory}).encode()
        nonce = os.urandom(_NONCE_BYTES)
        data = nonce + self._cipher.encrypt(nonce, text, name.encode())
        if not await self._save(keys=[queue(name), _key(name)], args=[ticket, data, _KEPT_S]):
            raise RefusedError(503, "turn_lost", "the message took too long; send it again", retry_after=1)

    async def delete(self, name: str) -> None:
        """Forget a chat. What it has revealed stays charged."""
        await self._redis.delete(_key(name))


def _key(name: str) -> str:
    return f"chat:{{{name}}}"
