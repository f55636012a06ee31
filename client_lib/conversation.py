"""Conversations, which repeat the counts of earlier turns at no further cost of privacy.

Fresh noise for earlier text is an explicit choice: ``fresh=True`` for one call, or ``forget()``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, Unpack

from client_lib._core.effects import Flow
from client_lib._core.request import CompletionCall
from client_lib._validation import invalid
from client_lib.options import ConversationOptions, RequestOptions
from client_lib.prompts.chat import Message, PromptOrChat, is_chat
from client_lib.prompts.span_memory import Recall, SpanMemory
from client_lib.prompts.types import EncodedPrompt
from client_lib.streams import AsyncStream, Stream
from client_lib.types import Completion

if TYPE_CHECKING:
    from client_lib._core.async_driver import AsyncDriver
    from client_lib._core.sync_driver import SyncDriver
    from client_lib._core.transport import Driver

#: The whole prompt of a turn, as spans or as chat messages.
Turn: TypeAlias = PromptOrChat | EncodedPrompt


class ConversationBase:
    """The part of both kinds of conversation that sends nothing."""

    def __init__(self, driver: Driver, variant: str, options: ConversationOptions) -> None:
        self._driver = driver
        self.variant = variant
        self._template = options.get("template")
        self._private_answers = options.get("private_answers", False)
        memory, key = options.get("memory"), options.get("key")
        if memory is None:
            self._memory = SpanMemory()
        elif key is None:
            raise invalid("key", "the 32 bytes that save() was given", "None")
        else:
            self._memory = SpanMemory.load(memory, key)

    def forget(self) -> None:
        """Drop all counts: text that is sent again gets fresh noise, and costs privacy again."""
        self._memory.forget()

    def save(self, key: bytes) -> bytes:
        """Return all counts, encrypted with a key of 32 bytes (AES-256-GCM), for ``conversation``.

        The bytes contain keyed digests of the spans, but no text. Needs the extra ``memory``.
        """
        return self._memory.save(key)

    def _call(self, turn: Turn, fresh: bool, options: RequestOptions) -> CompletionCall:
        made = CompletionCall(turn, self.variant, options, Recall(self._memory, fresh))
        if not is_chat(turn):
            return made
        given = shown = turn
        # Beside new noise for an earlier message, an answer in the clear would link the two
        # drawings of that message.
        if not (fresh or self._private_answers) and all(isinstance(part, Message) for part in given):
            shown = self._memory.own_answers_public(given, self.variant)

        def note(text: str) -> None:
            self._memory.note_answer(given, self.variant, text)

        if self._template is None:
            return replace(made, prompt=shown, ended=note)
        spans, ends = self._template.render(shown, self.variant), self._template.end_token_ids
        return replace(made, prompt=spans, end_token_ids=ends, ended=note)

    def _encode(self, prompt: PromptOrChat, fresh: bool) -> Flow[EncodedPrompt]:
        made = self._call(prompt, fresh, {})
        assert not isinstance(made.prompt, EncodedPrompt)
        encoded = yield from self._driver.core.encode(made.prompt, self.variant, recall=made.recall)
        return replace(encoded, end_token_ids=(*made.end_token_ids, *encoded.end_token_ids))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(variant={self.variant!r}, {len(self._memory)} spans)"


class Conversation(ConversationBase):
    """A conversation of a :class:`client_lib.Client`, made by its method ``conversation``.

    Every call takes the whole prompt, history included. Safe to use from several threads.
    """

    _driver: SyncDriver

    def encode(self, prompt: PromptOrChat, *, fresh: bool = False) -> EncodedPrompt:
        """Return a turn with its noise drawn, to be saved before it is sent, or sent again.

        Nothing is sent or charged. The conversation repeats the counts from now on, and
        :meth:`save` includes them. The answer to an encoded turn is not recognized in later turns:
        mark it as ``public(...)`` there.
        """
        return self._driver.run(self._encode(prompt, fresh))

    def complete(self, prompt: Turn, *, fresh: bool = False, **options: Unpack[RequestOptions]) -> Completion:
        """Complete as :meth:`client_lib.Client.complete`; ``fresh`` draws all noise anew."""
        return self._driver.run(self._driver.core.complete(self._call(prompt, fresh, options)))

    def stream(self, prompt: Turn, *, fresh: bool = False, **options: Unpack[RequestOptions]) -> Stream:
        """Stream as :meth:`client_lib.Client.stream`; ``fresh`` draws all noise anew."""
        return Stream(self._driver.stream(self._driver.core.stream(self._call(prompt, fresh, options))))


class AsyncConversation(ConversationBase):
    """A conversation of a :class:`client_lib.AsyncClient`; see :class:`Conversation`."""

    _driver: AsyncDriver

    async def encode(self, prompt: PromptOrChat, *, fresh: bool = False) -> EncodedPrompt:
        """Return a turn with its noise drawn; see :meth:`Conversation.encode`."""
        return await self._driver.run(self._encode(prompt, fresh))

    async def complete(self, prompt: Turn, *, fresh: bool = False, **options: Unpack[RequestOptions]) -> Completion:
        """Complete as :meth:`client_lib.Client.complete`; ``fresh`` draws all noise anew."""
        return await self._driver.run(self._driver.core.complete(self._call(prompt, fresh, options)))

    def stream(self, prompt: Turn, *, fresh: bool = False, **options: Unpack[RequestOptions]) -> AsyncStream:
        """Stream as :meth:`client_lib.Client.stream`; ``fresh`` draws all noise anew."""
        return AsyncStream(self._driver.stream(self._driver.core.stream(self._call(prompt, fresh, options))))
