"""From a request to what the client sends: spans, and what was sent before for the same text."""

from __future__ import annotations

from dataclasses import dataclass, field

from client_lib._core import SamplingOptions
from client_lib.async_client import AsyncClient, AsyncStream
from client_lib.proxy._template import render
from client_lib.proxy.requests import ChatRequest, CompletionRequest
from client_lib.proxy.settings import ProxySettings
from client_lib.spans import CLEAR, Prompt
from client_lib.types import Completion

__all__ = ["Prompts", "Submission"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A request with everything that the proxy has decided about it."""

    asked: CompletionRequest | ChatRequest
    variant: str
    subject: str | None = field(repr=False)
    fresh: bool


class Prompts:
    """Sends submissions."""

    def __init__(self, client: AsyncClient, settings: ProxySettings) -> None:
        self._client = client
        self._settings = settings

    async def complete(self, submission: Submission) -> Completion:
        """The completion in one piece."""
        prompt, sampling = self._prompt(submission), self._sampling(submission.asked)
        return await self._client.complete(prompt, variant=submission.variant, **sampling)

    async def stream(self, submission: Submission) -> AsyncStream:
        """The completion in pieces; nothing has been sent before the first is asked for."""
        prompt, sampling = self._prompt(submission), self._sampling(submission.asked)
        return self._client.stream(prompt, variant=submission.variant, **sampling)

    def _sampling(self, asked: CompletionRequest | ChatRequest) -> SamplingOptions:
        sampling = asked.sampling.copy()
        if asked.max_tokens is not None:
            sampling["max_tokens"] = asked.max_tokens
        elif isinstance(asked, ChatRequest):
            sampling["max_tokens"] = self._settings.chat_max_tokens
        return sampling

    def _prompt(self, submission: Submission) -> Prompt:
        asked = submission.asked
        if isinstance(asked, CompletionRequest):
            return asked.prompt
        return render(asked.messages, is_clear=submission.variant == CLEAR, public_system=self._settings.public_system)
