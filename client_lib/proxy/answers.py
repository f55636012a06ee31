"""The response objects of OpenAI's API, made from completions of the client."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from client_lib.types import Chunk, Completion, Usage

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


@dataclass(frozen=True)
class Answer:
    """The identity of one response, and the shapes of its parts.

    ``fingerprint`` is that of the prompt's bundle.
    """

    model: str
    fingerprint: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: "cmpl-" + secrets.token_hex(16))
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the events before the first text."""
        return ()

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the object of a finished completion."""
        raise NotImplementedError

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        raise NotImplementedError

    def closing(self, completion: Completion) -> tuple[dict[str, Any], ...]:
        """Return the events after the last text."""
        return (self._object([], _usage(completion.usage)),) if self.include_usage else ()

    def _object(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        made = {
            "id": self.id,
            "object": self.kind(usage is not None and bool(choices)),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.fingerprint[:16]}",
            "choices": choices,
        }
        # In a stream that ends with the usage, earlier events have a null usage.
        if usage is not None or self.include_usage:
            made["usage"] = usage
        return made

    def kind(self, whole: bool) -> str:
        """Return the name of the object's kind."""
        raise NotImplementedError


@dataclass(frozen=True)
class CompletionAnswer(Answer):
    """The response of ``/v1/completions``."""

    def kind(self, whole: bool) -> str:
        """Return the one name of completions and events."""
        return "text_completion"

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the object of a finished completion."""
        return self._object([_choice(completion.text, completion.finish_reason)], _usage(completion.usage))

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._object([_choice(chunk.text, chunk.finish_reason)], None)


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


@dataclass(frozen=True)
class ChatAnswer(Answer):
    """The response of ``/v1/chat/completions``."""

    id: str = field(default_factory=lambda: "chatcmpl-" + secrets.token_hex(16))

    def kind(self, whole: bool) -> str:
        """Return the name, which differs for events."""
        return "chat.completion" if whole else "chat.completion.chunk"

    def opening(self) -> tuple[dict[str, Any], ...]:
        """Return the event that names the role."""
        return (self._delta({"role": "assistant", "content": ""}, None),)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the object of a finished completion."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}
        return self._object([choice], _usage(completion.usage))

    def chunk(self, chunk: Chunk) -> dict[str, Any]:
        """Return the event of a chunk."""
        return self._delta({"content": chunk.text} if chunk.text else {}, chunk.finish_reason)

    def _delta(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._object([choice], None)
