"""From a message of the app to the events of its answer.

1. The rate limit, then the chat's turn: messages of a chat are answered one after the other.
2. A message id that was answered is answered again from the chat. Nothing is charged or sent.
3. If the server is not there, the message is refused before anything is charged.
4. The history that is still paid for goes first; the oldest turns are left out until the prompt
   fits the model's context and the budget.
5. The noise is drawn and saved with the chat. Whatever happens from here on, the same message id
   sends the same noise, which is charged once.
6. The client charges the budget, sends the prompt, and passes on the answer.

An answer goes on when the app disconnects. The app sends the message again and gets it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_lib import AsyncClient, BudgetExceededError, Chunk, ContextFullError, EncodedPrompt, PrivacyPolicy, public
from client_lib.conversation import AsyncConversation
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.streams import AsyncStream

from .budgets import Budgets
from .chats import Chat, Chats, Turn
from .errors import RefusedError
from .limits import RateLimits
from .settings import Plan, Settings
from .turns import Turns

# For models without a chat template. Contents begin with a space there, as words in a text do.
_PLAIN = ChatTemplate.simple({"system": "System:", "user": "User:", "assistant": "Assistant:"}, answer="Assistant:")
_SERVER_TRUSTED_S = 5.0

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Ask:
    """A message, and whose it is. ``person`` and ``chat`` are pseudonyms."""

    person: str
    plan_name: str
    plan: Plan
    chat: str
    message_id: str
    text: str = field(repr=False)


@dataclass
class Facts:
    """What the log and the metrics say about a message."""

    private_tokens: int = 0
    left_out: int = 0
    replayed: bool = False
    tokens_left: int | None = None


@dataclass(frozen=True)
class _Sent:
    encoded: EncodedPrompt
    stream: AsyncStream
    first: Chunk
    kept: int


class Answers:
    """Answers messages, for all users."""

    def __init__(
        self, settings: Settings, client: AsyncClient, budgets: Budgets, chats: Chats, turns: Turns, limits: RateLimits
    ) -> None:
        self._client, self._budgets = client, budgets
        self._chats, self._turns, self._limits = chats, turns, limits
        self._check_within = settings.timeout.connect
        self._memory_key = settings.derived("memory")
        self._server_seen = -_SERVER_TRUSTED_S

    async def answer(self, ask: Ask, emit: Emit) -> Facts:
        """Pass the events of an answer to ``emit``. Raises ``RefusedError`` and as the client."""
        await self._limits.take(ask.person, ask.plan)
        async with self._turns.turn(ask.chat) as ticket:
            chat = await self._chats.load(ask.chat)
            turn = chat.find(ask.message_id)
            if turn is not None and turn.text != ask.text:
                raise RefusedError(409, "id_reused", "id: must be new for another text", field="id")
            if turn is not None and turn.answer is not None:
                emit({"text": turn.answer})
                return await self._end(ask, turn, Facts(replayed=True), kept=None, emit=emit)
            await self.check_server()
            await self._budgets.open(self._client)
            if turn is None:
                turn = Turn(ask.message_id, ask.text, time.time(), ask.plan.variant)
            else:
                chat.turns.remove(turn)  # it becomes the newest turn
            chat.turns.append(turn)
            turn.variant = ask.plan.variant
            history = chat.history(turn.variant, since=time.time() - ask.plan.window.total_seconds())
            answered = sum(one.answer is not None for one in chat.turns)
            sent = await self._send(ask, chat, history, ticket)
            facts = Facts(sent.encoded.draws[-1].tokens, answered - sent.kept)
            async with sent.stream as stream:
                emit({"text": sent.first.text})
                async for chunk in stream:
                    emit({"text": chunk.text})
            self._server_seen = time.monotonic()
            assert stream.completion is not None
            turn.answer, turn.finish_reason = stream.completion.text, stream.completion.finish_reason
            await self._chats.save(ask.chat, chat, ticket)
            return await self._end(ask, turn, facts, kept=sent.kept, emit=emit)

    async def _end(self, ask: Ask, turn: Turn, facts: Facts, *, kept: int | None, emit: Emit) -> Facts:
        """Tell the app how the answer ended, what was left out, and what is left of its budget."""
        await self._budgets.open(self._client)
        budget = await self._budgets.shown(ask.plan_name, ask.plan, ask.person)
        facts.tokens_left = budget["tokens_left"]
        history = None if kept is None else {"kept": kept, "left_out": facts.left_out}
        emit({"finish_reason": turn.finish_reason, "budget": budget, "history": history})
        return facts

    async def check_server(self) -> None:
        """Ask the server for its models, unless it has answered within the last seconds.

        Refusing here costs nothing; a message that is charged and then not answered would.
        """
        if time.monotonic() - self._server_seen > _SERVER_TRUSTED_S:
            await self._client.with_options(max_retries=0, timeout=self._check_within).models()
            self._server_seen = time.monotonic()

    async def _send(self, ask: Ask, chat: Chat, history: Sequence[Turn], ticket: str) -> _Sent:
        """Send the message behind as much of the history as fits, up to the first chunk."""
        plan = ask.plan
        policy = PrivacyPolicy(max_epsilon_per_token=plan.max_epsilon_per_token, variants=[plan.variant])
        client = self._client.with_options(subject=f"{ask.plan_name}:{ask.person}", policy=policy)
        template = _PLAIN if (await client.bundle()).manifest.chat is None else None
        conversation: AsyncConversation = client.conversation(
            variant=plan.variant,
            template=template,
            memory=chat.memory,
            key=self._memory_key,
        )
        room = await client.room(variant=plan.variant)
        kept = list(history)
        while True:
            encoded = None
            try:
                encoded = await conversation.encode(_prompt(plan, kept, ask.text, is_plain=template is not None))
                if kept and room is not None and encoded.tokens + plan.answer_tokens > room:
                    kept.pop(0)
                    continue
                chat.memory = conversation.save(self._memory_key)
                await self._chats.save(ask.chat, chat, ticket)
                stream = conversation.stream(encoded, max_tokens=plan.answer_tokens)
                return _Sent(encoded, stream, await anext(stream), len(kept))
            except (ContextFullError, BudgetExceededError) as error:
                if not kept:
                    raise await self._too_large(ask, encoded, error) from None
                kept.pop(0)

    async def _too_large(
        self, ask: Ask, encoded: EncodedPrompt | None, error: ContextFullError | BudgetExceededError
    ) -> RefusedError:
        """Say which limit a message on its own exceeds, and by how much."""
        if isinstance(error, ContextFullError):
            return RefusedError(
                413,
                "message_too_long",
                f"text: must leave room for an answer in the model's context of {error.room} tokens, "
                f"got {error.prompt_tokens} tokens with what stands around it",
                field="text",
            )
        tokens = 0 if encoded is None else encoded.private_tokens
        if error.retry_at is None:
            return RefusedError(
                413,
                "message_too_long",
                f"text: must have at most {ask.plan.tokens} private tokens, all that the plan {ask.plan_name} gives "
                f"in {ask.plan.window_hours:g} h, got {tokens}",
                field="text",
            )
        left = await self._budgets.tokens_left(ask.plan_name, ask.person)
        return RefusedError(
            429,
            "budget_spent",
            f"text: must have at most {left} private tokens, the rest of the plan {ask.plan_name}'s {ask.plan.tokens} "
            f"in {ask.plan.window_hours:g} h, got {tokens}",
            field="text",
            retry_after=error.retry_at.timestamp() - time.time(),
        )


def _prompt(plan: Plan, history: Sequence[Turn], text: str, *, is_plain: bool) -> list[Message]:
    """Return a prompt's messages: the user's texts are private, the answers are not."""
    space = " " if is_plain else ""
    messages = [Message("system", public(space + plan.instructions))] if plan.instructions else []
    for turn in history:
        messages.append(Message("user", space + turn.text))
        messages.append(Message("assistant", public(space + (turn.answer or "").strip())))
    return [*messages, Message("user", space + text)]
