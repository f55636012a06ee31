"""Conversations: prompts that repeat what was sent before, at no further cost of privacy.

A conversation keeps the counts of every private span that it has encoded (:mod:`client_lib.prompts.span_memory`), so
a history that
is sent with every turn is quantised, and charged to a ledger, once. Fresh noise for something said before is an
explicit choice: ``fresh=True`` for one call, or ``forget()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, Unpack, cast

from client_lib._core.order import SamplingOptions
from client_lib._validation import invalid
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.encoder import EncodedPrompt
from client_lib.prompts.span_memory import Recall, SpanMemory
from client_lib.prompts.spans import Prompt
from client_lib.types import Completion

if TYPE_CHECKING:
    from client_lib._core.async_driver import AsyncDriver
    from client_lib._core.sync_driver import SyncDriver
    from client_lib.async_client import AsyncStream
    from client_lib.client import Stream

__all__ = ["AsyncConversation", "Conversation"]

#: What a turn may be: the whole prompt, as spans or as chat messages.
Turn: TypeAlias = Prompt | Sequence[Message] | EncodedPrompt


class _Base:
    """What the two kinds of conversation share."""

    def __init__(self, variant: str, template: ChatTemplate | None, memory: bytes | None, key: bytes | None) -> None:
        self.variant = variant
        self._template = template
        if memory is None:
            self._memory = SpanMemory()
        elif key is None:
            raise invalid("key", "missing", "the 32 bytes that save() was given")
        else:
            self._memory = SpanMemory.load(memory, key)

    def forget(self) -> None:
        """Drop all counts: what is said again is quantised anew, with fresh noise, and paid for again."""
        self._memory.forget()

    def save(self, key: bytes) -> bytes:
        """All counts, encrypted with 32 bytes of key (AES-256-GCM), to go on later with ``conversation(memory=...)``.

        Needs the package ``cryptography`` (extra ``memory``). No text is in it, only keyed digests of the spans.
        """
        return self._memory.save(key)

    def _prompt(self, turn: Turn) -> Prompt | EncodedPrompt:
        if isinstance(turn, str | EncodedPrompt) or not isinstance(turn, Sequence):
            return turn
        if not any(isinstance(part, Message) for part in turn):
            return cast(Prompt, turn)
        if self._template is None:
            raise invalid("template", "missing", "a ChatTemplate, for prompts of messages")
        return self._template.render(cast(Sequence[Message], turn), self.variant)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(variant={self.variant!r}, {len(self._memory)} spans)"


class Conversation(_Base):
    """A conversation of a :class:`client_lib.Client`; made by its method ``conversation``.

    Every call takes the whole prompt, history included. Safe to use from several threads.
    """

    def __init__(
        self,
        driver: SyncDriver,
        variant: str,
        template: ChatTemplate | None,
        memory: bytes | None,
        key: bytes | None,
    ) -> None:
        super().__init__(variant, template, memory, key)
        self._driver = driver

    def complete(
        self,
        prompt: Turn,
        *,
        fresh: bool = False,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """As :meth:`client_lib.Client.complete`; ``fresh`` draws new noise for all private spans of the prompt."""
        recall = Recall(self._memory, fresh)
        flow = self._driver.core.complete(self._prompt(prompt), self.variant, sampling, recall, idempotency_key)
        return self._driver.run(flow)

    def stream(
        self,
        prompt: Turn,
        *,
        fresh: bool = False,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """As :meth:`client_lib.Client.stream`; ``fresh`` draws new noise for all private spans of the prompt."""
        from client_lib._core.sync_driver import SyncRun
        from client_lib.client import Stream

        recall = Recall(self._memory, fresh)
        flow = self._driver.core.stream(self._prompt(prompt), self.variant, sampling, recall, idempotency_key)
        return Stream(SyncRun(self._driver, flow, streams=True))


class AsyncConversation(_Base):
    """A conversation of a :class:`client_lib.AsyncClient`: the twin of :class:`Conversation`."""

    def __init__(
        self,
        driver: AsyncDriver,
        variant: str,
        template: ChatTemplate | None,
        memory: bytes | None,
        key: bytes | None,
    ) -> None:
        super().__init__(variant, template, memory, key)
        self._driver = driver

    async def complete(
        self,
        prompt: Turn,
        *,
        fresh: bool = False,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Completion:
        """As :meth:`client_lib.AsyncClient.complete`; ``fresh`` draws new noise for all private spans."""
        recall = Recall(self._memory, fresh)
        flow = self._driver.core.complete(self._prompt(prompt), self.variant, sampling, recall, idempotency_key)
        return await self._driver.run(flow)

    def stream(
        self,
        prompt: Turn,
        *,
        fresh: bool = False,
        idempotency_key: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """As :meth:`client_lib.AsyncClient.stream`; ``fresh`` draws new noise for all private spans."""
        from client_lib._core.async_driver import AsyncRun
        from client_lib.async_client import AsyncStream

        recall = Recall(self._memory, fresh)
        flow = self._driver.core.stream(self._prompt(prompt), self.variant, sampling, recall, idempotency_key)
        return AsyncStream(AsyncRun(self._driver, flow, streams=True))
