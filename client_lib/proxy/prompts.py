"""From a request to what the client sends: spans, and for spans that were sent before the counts of then."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary

import anyio

from client_lib._core.order import SamplingOptions
from client_lib.async_client import AsyncClient, AsyncStream
from client_lib.errors import BundleOutdated, InvalidRequest
from client_lib.prompts.encoder import EncodedPrompt
from client_lib.prompts.spans import CLEAR, Span, private, public
from client_lib.proxy.memory import CountMemory
from client_lib.proxy.requests import ChatRequest, CompletionRequest
from client_lib.proxy.settings import ProxySettings
from client_lib.proxy.template import render
from client_lib.types import Completion

__all__ = ["Prompts", "Submission"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A request with everything that the proxy has decided about it; ``fresh`` wants new noise for all of it."""

    asked: CompletionRequest | ChatRequest
    variant: str
    subject: str | None = field(repr=False)
    fresh: bool


class Prompts:
    """Encodes and sends submissions; what was sent before for the same subject is sent again as it was."""

    def __init__(self, client: AsyncClient, settings: ProxySettings) -> None:
        self._client = client
        self._settings = settings
        self._memory = CountMemory(settings.remember_bytes)
        # Of two equal prompts at the same time the second waits for the first one's counts.
        self._locks: WeakValueDictionary[bytes, anyio.Lock] = WeakValueDictionary()

    async def complete(self, submission: Submission) -> Completion:
        """The completion in one piece."""
        encoded = await self._encode(submission)
        client = self._client.with_options(subject=submission.subject)
        return await client.complete(encoded, variant=submission.variant, **self._sampling(submission.asked))

    async def stream(self, submission: Submission) -> AsyncStream:
        """The completion in pieces; nothing has been sent before the first is asked for."""
        encoded = await self._encode(submission)
        client = self._client.with_options(subject=submission.subject)
        return client.stream(encoded, variant=submission.variant, **self._sampling(submission.asked))

    def forget(self, submission: Submission) -> None:
        """Drop what is kept for a prompt, since its counts mean nothing to the server any more."""
        self._memory.forget(self._memory.names(submission.subject, submission.variant, self._spans(submission)))

    def _sampling(self, asked: CompletionRequest | ChatRequest) -> SamplingOptions:
        sampling = asked.sampling.copy()
        if asked.max_tokens is not None:
            sampling["max_tokens"] = asked.max_tokens
        elif isinstance(asked, ChatRequest):
            sampling["max_tokens"] = self._settings.chat_max_tokens
        return sampling

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
            # The session id says no more than equal counts do: what recalls no counts is a conversation of its own.
            session = next((part.session for part in known if part.draws), None) or secrets.token_hex(16)
            missing = spans[len(known) :]
            parts = [*known, *(await self._encode_missing(missing, variant, is_start=not known))] if missing else known
            if len({part.origin for part in parts}) > 1:
                self._memory.forget(names)
                raise BundleOutdated(
                    "prompt: its beginning was encoded for another bundle and its counts mean something else under the "
                    "one in use; allowed: asking again, which spends fresh noise on the whole prompt"
                )
            for name, part in zip(names[1:], parts, strict=True):
                self._memory.remember(name, replace(part, session=part.session or session))
        segments = tuple(segment for part in parts for segment in part.segments)
        return replace(parts[-1], segments=segments, session=session)

    async def _encode_missing(self, spans: list[Span], variant: str, *, is_start: bool) -> list[EncodedPrompt]:
        """What each span becomes; the beginning-of-text token, if there is one, belongs to the first."""
        encoded = await self._client.encode(spans, variant=variant)
        has_start_token = (await self._client.bundle()).manifest.bos_token_id is not None
        start, segments = encoded.segments[:has_start_token], list(encoded.segments[has_start_token:])
        parts: list[EncodedPrompt] = []
        for span in spans:
            # A tokenizer may make nothing of a span; then there are fewer segments than spans.
            has_tokens = len(segments) == len(spans) - len(parts) or await self._has_tokens(span, variant)
            parts.append(replace(encoded, segments=(segments.pop(0),) if has_tokens else ()))
        if is_start:
            parts[0] = replace(parts[0], segments=(*start, *parts[0].segments))
        return parts

    async def _has_tokens(self, span: Span, variant: str) -> bool:
        try:
            await self._client.encode([public(span.text)], variant=variant)
        except InvalidRequest:
            return False
        return True
