"""Requests as encoded prompts: rendering of spans, and reuse of counts sent before."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import anyio

from client_lib.async_client import AsyncClient
from client_lib.errors import BundleOutdatedError, InvalidRequestError
from client_lib.options import SamplingOptions
from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.memo import check_redraws
from client_lib.prompts.spans import CLEAR, Span, private, public
from client_lib.prompts.types import EncodedPrompt
from client_lib.proxy._http import log
from client_lib.proxy.memory import CountMemory
from client_lib.proxy.requests import ChatRequest, CompletionRequest
from client_lib.proxy.settings import ProxySettings
from client_lib.streams import AsyncStream
from client_lib.types import Completion

# For models without a template. Contents begin with a space, as words in a text do.
_PLAIN = ChatTemplate.simple(
    {"system": "System:", "user": "User:", "assistant": "Assistant:"}, after="\n", answer="Assistant:"
)


@dataclass(frozen=True, slots=True)
class Submission:
    """A request and the proxy's decisions about it; ``fresh`` requests new noise for all of it."""

    asked: CompletionRequest | ChatRequest
    variant: str
    subject: str | None = field(repr=False)
    fresh: bool


class Prompts:
    """Encodes and sends submissions, reusing the counts sent before for the same subject."""

    def __init__(self, client: AsyncClient, settings: ProxySettings) -> None:
        self._client = client
        self._settings = settings
        self._memory = CountMemory(settings.remember_bytes)
        # If two tasks send the same prompt, the second one waits for the counts of the first.
        self._locks: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()

    async def complete(self, submission: Submission) -> Completion:
        """Return the completion in one response."""
        encoded, client, sampling = await self._prepare(submission)
        return await client.complete(encoded, variant=submission.variant, **sampling)

    async def stream(self, submission: Submission) -> AsyncStream:
        """Return the completion in chunks; nothing is sent before the first is requested."""
        encoded, client, sampling = await self._prepare(submission)
        return client.stream(encoded, variant=submission.variant, **sampling)

    def forget(self, submission: Submission) -> None:
        """Drop the counts of a prompt that the server can no longer interpret."""
        self._memory.forget(self._memory.names(submission.subject, submission.variant, self._spans(submission)))

    async def _prepare(self, submission: Submission) -> tuple[EncodedPrompt, AsyncClient, SamplingOptions]:
        asked = submission.asked
        sampling = asked.sampling.copy()
        if isinstance(asked, ChatRequest):
            sampling.setdefault("max_tokens", self._settings.chat_max_tokens)
        client = self._client.with_options(subject=submission.subject)
        return await self._encode(submission), client, sampling

    def _spans(self, submission: Submission) -> list[Span]:
        asked, is_clear = submission.asked, submission.variant == CLEAR
        if isinstance(asked, CompletionRequest):
            return [public(asked.prompt) if is_clear else private(asked.prompt)]
        settings = self._settings
        return list(render(asked.messages, settings.template, is_clear=is_clear, public_system=settings.public_system))

    async def _encode(self, submission: Submission) -> EncodedPrompt:
        spans, variant = self._spans(submission), submission.variant
        names = self._memory.names(submission.subject, variant, spans)
        lock = self._locks.setdefault(names[0], anyio.Lock())
        async with lock:
            known = [] if submission.fresh else self._memory.recall(names)
            # The session id must link no more than equal counts do: without recalled counts it is
            # new.
            session = next((part.session for part in known if part.draws), None) or secrets.token_hex(16)
            before, missing = spans[: len(known)], spans[len(known) :]
            parts = [*known, *(await self._encode_missing(missing, variant, before))] if missing else known
            if len({part.origin for part in parts}) > 1:
                self._memory.forget(names)
                raise BundleOutdatedError(
                    "prompt: the counts of its beginning, encoded for another bundle, mean something else under the "
                    "one in use; a repeated request spends fresh noise on the whole prompt",
                    meaning_changed=True,
                )
            self._check_redraws(names[len(known) + 1 :], parts[len(known) :], is_asked=submission.fresh)
            for name, part in zip(names[1:], parts, strict=True):
                self._memory.remember(name, replace(part, session=part.session or session))
        segments = tuple(segment for part in parts for segment in part.segments)
        return replace(parts[-1], segments=segments, session=session)

    def _check_redraws(self, names: Sequence[bytes], drawn: Sequence[EncodedPrompt], *, is_asked: bool) -> None:
        """Count drawings, and refuse one too many that a change of the bundle causes."""
        redraws = max(
            (self._memory.count_redraws(name, part) for name, part in zip(names, drawn, strict=True) if part.draws),
            default=0,
        )
        if redraws:
            log.warning("a prompt got fresh noise %d times, because the server changed its bundle", redraws)
        if not is_asked:
            check_redraws(redraws, "The header X-Del-Noise: fresh")

    async def _encode_missing(self, spans: list[Span], variant: str, before: list[Span]) -> list[EncodedPrompt]:
        """Encode spans one by one; a begin-of-text token belongs to the first of a prompt."""
        encoded = await self._client.encode(spans, variant=variant, before=before)
        has_start_token = not before and (await self._client.bundle()).manifest.bos_token_id is not None
        start, segments = encoded.segments[:has_start_token], list(encoded.segments[has_start_token:])
        parts: list[EncodedPrompt] = []
        for index, span in enumerate(spans):
            # A span may have no tokens; then there are fewer segments than spans.
            has_tokens = len(segments) == len(spans) - len(parts) or await self._has_tokens(
                span, variant, [*before, *spans[:index]]
            )
            parts.append(replace(encoded, segments=(segments.pop(0),) if has_tokens else ()))
        parts[0] = replace(parts[0], segments=(*start, *parts[0].segments))
        return parts

    async def _has_tokens(self, span: Span, variant: str, before: list[Span]) -> bool:
        try:
            await self._client.encode([public(span.text)], variant=variant, before=before)
        except InvalidRequestError:
            return False
        return True


def render(
    messages: Sequence[Message], template: ChatTemplate | None, *, is_clear: bool, public_system: bool
) -> tuple[Span, ...]:
    """Return the spans of a chat, ending where the assistant's answer begins.

    Developer messages become system messages. Under a model's own template the contents are
    stripped of white space, which many templates trim anyway.
    """
    chat = []
    for message in messages:
        assert isinstance(message.content, str)  # made by client_lib.proxy.requests
        role = "system" if message.role == "developer" else message.role
        text = f" {message.content}" if template is None else message.content.strip()
        is_public = is_clear or (public_system and role == "system")
        chat.append(Message(role, public(text) if is_public else private(text)))
    return (template or _PLAIN).render(chat)
